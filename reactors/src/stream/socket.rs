//! What a connection stands on: a TCP socket, or one of a simulated network where there is one.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsRawFd, RawFd};

/// A connected stream socket.
#[derive(Debug)]
pub enum Socket {
    /// The kernel's.
    Tcp(TcpStream),
    /// A simulated network's; its reactor is the simulator's.
    #[cfg(feature = "sim")]
    Sim(crate::sim::Stream),
}

impl Socket {
    /// Ends one direction or both; what is under way fails.
    ///
    /// # Errors
    /// The system's own, where the socket is down already.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => socket.shutdown(how),
            #[cfg(feature = "sim")]
            Self::Sim(stream) => stream.shutdown(how),
        }
    }

    /// Readies it for any of the reactors: io_uring waits on blocking sockets only, readiness
    /// takes both.
    ///
    /// # Errors
    /// The system's own.
    pub fn make_blocking(&self) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => socket.set_nonblocking(false),
            #[cfg(feature = "sim")]
            Self::Sim(_) => Ok(()),
        }
    }

    /// The kernel's socket.
    ///
    /// # Errors
    /// Unsupported where it is simulated.
    pub(crate) fn tcp(&self) -> io::Result<&TcpStream> {
        match self {
            Self::Tcp(socket) => Ok(socket),
            #[cfg(feature = "sim")]
            Self::Sim(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

/// No kernel has it: every call on it fails.
#[cfg(feature = "sim")]
const NO_FD: RawFd = -1;

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Tcp(socket) => socket.as_raw_fd(),
            #[cfg(feature = "sim")]
            Self::Sim(_) => NO_FD,
        }
    }
}

impl From<TcpStream> for Socket {
    fn from(socket: TcpStream) -> Self {
        Self::Tcp(socket)
    }
}
