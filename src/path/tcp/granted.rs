//! Requests under a grant, from the server's side: what is answered to a READ, and where the bytes
//! of a WRITE go that may not be stored. Pure.
//!
//! A grant may be taken back at any time. What is under way then keeps its place in the stream,
//! without the memory: a WRITE's bytes are swallowed, a READ's are zeros, and either ends as Stale.

use kvrail_reactors::region::Slice;
use kvrail_reactors::vector::Vector;

use super::wire::{HEADER_BYTES, KEY_BYTES, Status};
use crate::limits::{SEND_MAX_BYTES, SMALL_REQUEST_BYTES, SMALL_ROOM_BYTES};
use crate::memory::grant::{Denied, Use};
use crate::path::asking::RequestName;

/// A header, and the key behind it.
pub(super) fn split(
    bytes: &[u8; HEADER_BYTES + KEY_BYTES],
) -> (&[u8; HEADER_BYTES], &[u8; KEY_BYTES]) {
    let (header, key) = bytes.split_first_chunk().expect("both are of constant length");
    (header, key.first_chunk().expect("as above"))
}

/// The status that says why.
pub(super) fn status(denied: Denied) -> Status {
    match denied {
        Denied::Stale => Status::Stale,
        Denied::Refused => Status::Refused,
    }
}

/// The bytes of a WRITE that are not stored.
#[derive(Debug)]
pub(super) struct Sink {
    left: u64,
    status: Status,
}

impl Sink {
    pub(super) fn new(left: u64, status: Status) -> Self {
        Self { left, status }
    }

    /// Takes some of `count` bytes; how many, and the status behind the last one.
    pub(super) fn swallow(&mut self, count: usize) -> (usize, Option<Status>) {
        let used = self.left.min(count as u64);
        self.left -= used;
        (used as usize, (self.left == 0).then_some(self.status))
    }
}

/// The answer to a READ: its bytes, then a status.
#[derive(Debug)]
pub(super) struct Answering {
    bytes: Bytes,
    request: Option<RequestName>,
    is_over: bool,
}

#[derive(Debug)]
enum Bytes {
    Memory(Slice, Use),
    Zeros { left: u64, status: Status },
}

impl Answering {
    pub(super) fn new(
        found: Result<(Slice, Use), Denied>,
        len: u64,
        request: Option<RequestName>,
    ) -> Self {
        let bytes = match found {
            Ok((memory, used)) => Bytes::Memory(memory, used),
            Err(denied) => Bytes::Zeros { left: len, status: status(denied) },
        };
        Self { bytes, request, is_over: false }
    }

    /// Whether all of it was put into a vector.
    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }

    /// The memory that is still to be read.
    pub(super) fn memory(&self) -> Option<&Slice> {
        match &self.bytes {
            Bytes::Memory(memory, _) => Some(memory),
            Bytes::Zeros { .. } => None,
        }
    }

    /// Does without the memory from here on, if the grant was taken back.
    pub(super) fn let_go(&mut self) {
        if let Bytes::Memory(memory, used) = &self.bytes
            && used.is_struck()
        {
            let request = self.request.map(tracing::field::display);
            tracing::debug!(request, "a grant was taken back under a read");
            self.bytes = Bytes::Zeros { left: memory.len() as u64, status: Status::Stale };
        }
    }

    /// Puts the next bytes into `vector`; returns the use that their sending makes of the grant.
    pub(super) fn send_into(&mut self, vector: &mut Vector) -> Option<Use> {
        self.let_go();
        match &mut self.bytes {
            Bytes::Zeros { left, status } => {
                let now = (*left).min(SMALL_ROOM_BYTES as u64);
                vector.push_zeros(now as usize);
                *left -= now;
                if *left == 0 {
                    vector.push_bytes(&status.encode());
                    self.is_over = true;
                }
                None
            }
            Bytes::Memory(memory, used) if memory.is_empty() => {
                let status = if used.is_struck() { Status::Stale } else { Status::Ok };
                vector.push_bytes(&status.encode());
                self.is_over = true;
                None
            }
            // A copy costs less than the system call for a status of its own.
            Bytes::Memory(memory, used)
                if memory.len() as u64 <= SMALL_REQUEST_BYTES
                    && memory.region().device().is_none() =>
            {
                vector.push_copy(memory);
                let status = if used.is_struck() { Status::Stale } else { Status::Ok };
                vector.push_bytes(&status.encode());
                self.is_over = true;
                None
            }
            Bytes::Memory(memory, used) => {
                let mut now = memory.clone();
                now.truncate(SEND_MAX_BYTES.saturating_sub(vector.len()));
                memory.advance(now.len());
                vector.push_memory(now);
                Some(used.clone())
            }
        }
    }
}
