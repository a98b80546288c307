//! What a connection stands on: a TCP socket, or one of a simulated network where there is one.

use std::io::{self, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use super::Direction;
use super::pacing::unpace;
use super::tls::{self, SECRET_BYTES};

/// A connected stream socket.
#[derive(Debug)]
pub enum Socket {
    /// The kernel's.
    Tcp(Tcp),
    /// A simulated network's; its reactor is the simulator's.
    #[cfg(feature = "sim")]
    Sim(crate::sim::Stream),
}

/// A TCP socket of the kernel's.
#[derive(Debug)]
pub struct Tcp {
    stream: TcpStream,
    /// What it sends is encrypted.
    seals: AtomicBool,
}

impl From<Tcp> for TcpStream {
    fn from(tcp: Tcp) -> Self {
        tcp.stream
    }
}

impl Socket {
    /// Has the kernel encrypt what is sent, or decrypt what is received, from here on (kernel
    /// TLS). No work may be under way in that direction; what the peer has sent and nobody has
    /// received yet counts as encrypted.
    ///
    /// # Errors
    /// ENOENT: the kernel has no TLS, or not this cipher, or their modules are not loaded. EINVAL:
    /// it is older than the cipher.
    /// Unsupported: the socket is simulated.
    pub fn encrypt(&self, direction: Direction, secret: &[u8; SECRET_BYTES]) -> io::Result<()> {
        tls::begin(self.tcp()?, direction, secret)?;
        if let (Self::Tcp(tcp), Direction::Send) = (self, direction) {
            // Whoever sends next got the socket from this thread.
            tcp.seals.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Whether the kernel encrypts what is sent.
    pub(crate) fn seals(&self) -> bool {
        match self {
            Self::Tcp(tcp) => tcp.seals.load(Ordering::Relaxed),
            #[cfg(feature = "sim")]
            Self::Sim(_) => false,
        }
    }

    /// Sends a few bytes, for which a new connection has room, past the reactors.
    ///
    /// # Errors
    /// The system's own. Unsupported: the socket is simulated.
    pub fn write_now(&self, bytes: &[u8]) -> io::Result<()> {
        self.tcp()?.write_all(bytes)
    }

    /// Ends one direction or both; what is under way fails.
    ///
    /// # Errors
    /// The system's own, where the socket is down already.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        match self {
            Self::Tcp(tcp) => tcp.stream.shutdown(how),
            #[cfg(feature = "sim")]
            Self::Sim(stream) => stream.shutdown(how),
        }
    }

    /// Readies it for any of the reactors: io_uring waits on blocking sockets only, readiness
    /// takes both. One of this host with itself is [unpaced](unpace).
    ///
    /// # Errors
    /// The system's own.
    pub fn make_ready(&self) -> io::Result<()> {
        match self {
            Self::Tcp(tcp) => {
                unpace(&tcp.stream);
                tcp.stream.set_nonblocking(false)
            }
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
            Self::Tcp(tcp) => Ok(&tcp.stream),
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
            Self::Tcp(tcp) => tcp.stream.as_raw_fd(),
            #[cfg(feature = "sim")]
            Self::Sim(_) => NO_FD,
        }
    }
}

impl From<TcpStream> for Socket {
    fn from(stream: TcpStream) -> Self {
        Self::Tcp(Tcp { stream, seals: AtomicBool::new(false) })
    }
}
