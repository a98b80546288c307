//! One send or receive: how far it is, and one try to bring it further.

use std::io;
use std::os::fd::AsRawFd;

use super::Seat;
use crate::stream::{Direction, Done, Manner, Work};
use crate::ticket::Ticket;

/// Pieces that the kernel takes in one call (`UIO_MAXIOV`); a send goes on with the others.
const IOVECS_MAX: usize = 1024;

pub(super) struct Op {
    work: Work,
    manner: Manner,
    seat: Ticket<Seat>,
    /// Bytes that went out already.
    sent: usize,
}

/// What came of a try.
pub(super) struct Tried {
    /// The operation's result, when it is over.
    pub(super) ended: Option<io::Result<usize>>,
    /// Bytes that moved.
    pub(super) moved: usize,
    /// All that was asked for moved, or nothing is known: there may be more.
    pub(super) was_full: bool,
    /// For [`crate::Reactor::poll`]: 0 when it was in vain.
    pub(super) did: usize,
}

impl Op {
    pub(super) fn new(work: Work, manner: Manner, seat: Ticket<Seat>) -> Self {
        Self { work, manner, seat, sent: 0 }
    }

    pub(super) fn seat(&self) -> Ticket<Seat> {
        self.seat
    }

    pub(super) fn direction(&self) -> Direction {
        self.work.direction
    }

    pub(super) fn finish(self, result: io::Result<usize>) -> Done {
        let Work { tag, direction, vector, .. } = self.work;
        Done { tag, direction, result, vector }
    }

    /// Moves what can be moved now. Never blocks, in whatever mode the socket is.
    pub(super) fn attempt(&mut self, iovecs: &mut Vec<libc::iovec>) -> Tried {
        self.work.vector.fill_iovecs(iovecs);
        let asked = cut(iovecs, self.sent);
        match self.call(iovecs) {
            Ok(moved) => self.moved(moved, asked),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let ended = (self.manner == Manner::Now).then_some(Err(error));
                let did = usize::from(ended.is_some());
                Tried { ended, moved: 0, was_full: false, did }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                Tried { ended: None, moved: 0, was_full: true, did: 0 }
            }
            Err(error) => Tried { ended: Some(Err(error)), moved: 0, was_full: true, did: 1 },
        }
    }

    fn moved(&mut self, moved: usize, asked: usize) -> Tried {
        let ended = match self.work.direction {
            Direction::Receive => Some(Ok(moved)),
            Direction::Send => {
                self.sent += moved;
                (self.sent >= self.work.vector.len()).then_some(Ok(self.sent))
            }
        };
        // An end of the stream stays what it is, however often it is read.
        let is_end = moved == 0;
        Tried { ended, moved, was_full: is_end || moved >= asked, did: 1 }
    }

    fn call(&self, iovecs: &mut [libc::iovec]) -> io::Result<usize> {
        // SAFETY: msghdr is a C struct of integers and pointers, for which zero means "none".
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = iovecs.as_mut_ptr();
        message.msg_iovlen = iovecs.len() as _;
        let fd = self.work.socket.as_raw_fd();
        let count = match self.work.direction {
            Direction::Send => {
                let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
                // SAFETY: `iovecs` describe memory of `self.work`, which outlives the call; the
                // kernel does not keep them.
                unsafe { libc::sendmsg(fd, &raw const message, flags) }
            }
            Direction::Receive => {
                let flags = libc::MSG_DONTWAIT | self.manner.flags();
                // SAFETY: as above, and the memory is the work's to be written into.
                unsafe { libc::recvmsg(fd, &raw mut message, flags) }
            }
        };
        usize::try_from(count).map_err(|_| io::Error::last_os_error())
    }
}

/// Leaves out the first `skip` bytes and what one call doesn't take; returns how many are left.
fn cut(iovecs: &mut Vec<libc::iovec>, mut skip: usize) -> usize {
    let mut used = 0;
    while let Some(iovec) = iovecs.get_mut(used) {
        if skip < iovec.iov_len {
            iovec.iov_base = iovec.iov_base.wrapping_byte_add(skip);
            iovec.iov_len -= skip;
            break;
        }
        skip -= iovec.iov_len;
        used += 1;
    }
    iovecs.drain(..used);
    iovecs.truncate(IOVECS_MAX);
    iovecs.iter().map(|iovec| iovec.iov_len).sum()
}
