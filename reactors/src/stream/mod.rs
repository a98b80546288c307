//! What a reactor for sockets is asked and answers, and the two there are, behind one type: their
//! owner names neither. Bytes of GPUs, which no system call reaches, go by way of the host
//! (`staging`).

mod pacing;
mod socket;
mod staging;
#[cfg(test)]
mod tests;
mod tls;

use std::io;
use std::sync::Arc;

pub use self::pacing::unpace;
pub use self::socket::{Socket, Tcp};
use self::staging::Staging;
pub use self::tls::SECRET_BYTES;
use crate::Reactor;
use crate::cuda::Failure;
use crate::doorbell::Doorbell;
use crate::sockets::Sockets;
use crate::uring::Uring;
use crate::vector::Vector;

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the vector to the socket; the whole vector, unless the connection ends or is
    /// encrypted: then it may be a part.
    Send,
    /// From the socket into the vector; whatever has arrived, at least one byte.
    Receive,
}

/// A send or a receive. For io_uring the socket must be in blocking mode: on a non-blocking one it
/// answers `EAGAIN` where it would wait. Readiness takes both.
#[derive(Debug)]
pub struct Work {
    /// Whose work it is; comes back with the completion.
    pub tag: u64,
    /// The connection.
    pub socket: Arc<Socket>,
    /// Which way bytes go.
    pub direction: Direction,
    /// What is sent, or where bytes go. Not empty.
    pub vector: Vector,
}

/// A send or a receive that has ended: the kernel does not touch the vector's memory any more.
#[derive(Debug)]
pub struct Done {
    /// The work's tag.
    pub tag: u64,
    /// Which way bytes went.
    pub direction: Direction,
    /// Bytes sent or received. 0 for a receive means that the peer has closed.
    pub result: io::Result<usize>,
    /// The work's vector, not advanced.
    pub vector: Vector,
}

/// Whether an operation ended because it was fenced. Of a receive nothing was received then.
pub fn is_fenced(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ECANCELED)
}

/// What a GPU said, where an operation ended since the bytes did not get from or to it. The socket
/// is well, and of a send nothing went out.
pub fn gpu_failure(error: &io::Error) -> Option<&Failure> {
    error.get_ref()?.downcast_ref()
}

/// How a receive is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// It waits for bytes.
    Wait,
    /// It waits for bytes and leaves them where they are.
    Peek,
    /// It fails with `EAGAIN` where it would wait.
    Now,
}

impl Manner {
    /// What it is for the kernel.
    pub(crate) fn flags(self) -> libc::c_int {
        match self {
            Self::Wait => 0,
            Self::Peek => libc::MSG_PEEK,
            Self::Now => libc::MSG_DONTWAIT,
        }
    }
}

/// A reactor for sockets, of either kind.
pub struct Streams {
    kind: Kind,
    /// None where no GPU's bytes are asked for.
    staging: Option<Box<Staging>>,
}

enum Kind {
    /// On a ring of its own.
    Uring(Uring),
    /// By readiness, where there is no io_uring.
    Sockets(Sockets),
    /// On a network that is not there.
    #[cfg(feature = "sim")]
    Sim(crate::sim::Streams),
}

impl From<Uring> for Streams {
    fn from(ring: Uring) -> Self {
        Self { kind: Kind::Uring(ring), staging: None }
    }
}

impl From<Sockets> for Streams {
    fn from(sockets: Sockets) -> Self {
        Self { kind: Kind::Sockets(sockets), staging: None }
    }
}

#[cfg(feature = "sim")]
impl From<crate::sim::Streams> for Streams {
    fn from(streams: crate::sim::Streams) -> Self {
        Self { kind: Kind::Sim(streams), staging: None }
    }
}

impl Streams {
    /// Takes GPUs' bytes, too: copies of so many blocks a launch bring them to host memory and
    /// back, and ring `doorbell` when they are done.
    #[must_use]
    pub fn staging(self, doorbell: Arc<Doorbell>, blocks: u32) -> Self {
        Self { staging: Some(Box::new(Staging::new(doorbell, blocks))), ..self }
    }

    /// Ends the wait of the doorbell's sleeper at `at_ns` at the latest, where both times are of
    /// the caller's clock.
    pub fn set_alarm(&mut self, at_ns: u64, now_ns: u64) {
        match &mut self.kind {
            Kind::Uring(ring) => ring.set_alarm(at_ns, now_ns),
            Kind::Sockets(sockets) => sockets.set_alarm(at_ns, now_ns),
            #[cfg(feature = "sim")]
            Kind::Sim(streams) => streams.set_alarm(at_ns, now_ns),
        }
    }

    /// Whether something waits for a GPU, which must be looked at now and then: one that is lost
    /// rings nobody.
    pub fn awaits_gpus(&self) -> bool {
        self.staging.as_ref().is_some_and(|staging| staging.awaits_gpus())
    }
}

impl Reactor for Streams {
    type Work = Work;
    type Done = Done;

    fn submit(&mut self, work: Work) -> Result<u64, Work> {
        match &mut self.staging {
            Some(staging) if work.vector.is_on_gpu() => staging.submit(work, &mut self.kind),
            _ => self.kind.submit(work),
        }
    }

    fn poll(&mut self, budget: usize, done: &mut Vec<Done>) -> usize {
        match &mut self.staging {
            Some(staging) if !staging.is_idle() => staging.poll(budget, done, &mut self.kind),
            _ => self.kind.poll(budget, done),
        }
    }

    fn arm(&mut self) -> bool {
        self.kind.arm() && self.staging.as_mut().is_none_or(|staging| staging.arm())
    }

    fn fence(&mut self, name: u64) {
        match &mut self.staging {
            Some(staging) if staging::is_staged(name) => staging.fence(name, &mut self.kind),
            _ => self.kind.fence(name),
        }
    }
}

impl Kind {
    /// As [`Reactor::submit`], in a manner; a simulated network knows but one, and no staging.
    fn submit_as(&mut self, work: Work, manner: Manner) -> Result<u64, Work> {
        match self {
            Self::Uring(ring) => ring.submit_as(work, manner),
            Self::Sockets(sockets) => sockets.submit_as(work, manner),
            #[cfg(feature = "sim")]
            Self::Sim(streams) => streams.submit(work),
        }
    }
}

impl Reactor for Kind {
    type Work = Work;
    type Done = Done;

    fn submit(&mut self, work: Work) -> Result<u64, Work> {
        self.submit_as(work, Manner::Wait)
    }

    fn poll(&mut self, budget: usize, done: &mut Vec<Done>) -> usize {
        match self {
            Self::Uring(ring) => ring.poll(budget, done),
            Self::Sockets(sockets) => sockets.poll(budget, done),
            #[cfg(feature = "sim")]
            Self::Sim(streams) => streams.poll(budget, done),
        }
    }

    fn arm(&mut self) -> bool {
        match self {
            Self::Uring(ring) => ring.arm(),
            Self::Sockets(sockets) => sockets.arm(),
            #[cfg(feature = "sim")]
            Self::Sim(streams) => streams.arm(),
        }
    }

    fn fence(&mut self, name: u64) {
        match self {
            Self::Uring(ring) => ring.fence(name),
            Self::Sockets(sockets) => sockets.fence(name),
            #[cfg(feature = "sim")]
            Self::Sim(streams) => streams.fence(name),
        }
    }
}
