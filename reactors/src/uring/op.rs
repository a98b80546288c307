//! One send, receive or alarm: what the kernel reads while it is in flight, in one box.

use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use io_uring::{opcode, squeue, types};

use crate::stream::{Direction, Done, Manner, Socket, Work};

pub(super) struct Op {
    kind: Kind,
    iovecs: Vec<libc::iovec>,
    message: libc::msghdr,
}

enum Kind {
    Transfer(Work, Manner),
    Alarm(types::Timespec),
    Spare,
}

impl Op {
    pub(super) fn transfer(work: Work, manner: Manner) -> Self {
        Self::new(Kind::Transfer(work, manner))
    }

    pub(super) fn alarm(after: Duration) -> Self {
        Self::new(Kind::Alarm(after.into()))
    }

    fn new(kind: Kind) -> Self {
        // SAFETY: msghdr is a C struct of integers and pointers, for which zero means "none".
        let message = unsafe { std::mem::zeroed() };
        Self { kind, iovecs: Vec::new(), message }
    }

    /// Becomes `other`, keeping its own allocations.
    pub(super) fn reuse(&mut self, other: Self) {
        self.kind = other.kind;
    }

    /// The submission entry. Points into `self`, which therefore must not move or change until
    /// the completion.
    pub(super) fn entry(&mut self) -> squeue::Entry {
        match &mut self.kind {
            Kind::Transfer(work, manner) => {
                work.vector.fill_iovecs(&mut self.iovecs);
                self.message.msg_iov = self.iovecs.as_mut_ptr();
                self.message.msg_iovlen = self.iovecs.len();
                let fd = types::Fd(work.socket.as_raw_fd());
                match work.direction {
                    Direction::Send => opcode::SendMsg::new(fd, &self.message)
                        .flags(send_flags(&work.socket) as u32)
                        .build(),
                    Direction::Receive => opcode::RecvMsg::new(fd, &mut self.message)
                        .flags(manner.flags() as u32)
                        .build(),
                }
            }
            Kind::Alarm(after) => opcode::Timeout::new(after).build(),
            Kind::Spare => opcode::Nop::new().build(),
        }
    }

    /// The operation is over; an alarm is nobody's completion.
    pub(super) fn finish(&mut self, result: i32) -> Option<Done> {
        let Kind::Transfer(work, _) = std::mem::replace(&mut self.kind, Kind::Spare) else {
            return None;
        };
        let result = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result));
        Some(Done { tag: work.tag, direction: work.direction, result, vector: work.vector })
    }
}

/// MSG_WAITALL: the kernel goes on after a short send by itself. Its TLS knows no such flag.
fn send_flags(socket: &Socket) -> libc::c_int {
    if socket.seals() { libc::MSG_NOSIGNAL } else { libc::MSG_NOSIGNAL | libc::MSG_WAITALL }
}
