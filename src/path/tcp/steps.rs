//! Where a server's side of a connection is: what it receives, and what it has to answer.

use kvrail_reactors::region::Slice;

use super::granted::{Answering, Sink};
use super::storing::Came;
use super::wire::{Status, Version};
use crate::memory::grant::Use;

/// What is received next.
#[derive(Debug)]
pub(super) enum Receiving {
    Header,
    Body {
        target: Slice,
        version: Version,
        used: Option<Use>,
    },
    /// What a request under a grant may not, or not any more, store.
    Sink(Sink),
    Event {
        body: Vec<u8>,
        len: usize,
    },
    Name {
        body: Vec<u8>,
        len: usize,
        has_pass: bool,
    },
}

/// What is to be answered.
#[derive(Debug)]
pub(super) enum Reply {
    Status(Status),
    Memory(Slice),
    /// To a READ under a grant.
    Granted(Answering),
}

/// Takes of these bytes what a body of `len` lacks; how many, and the body once it is whole.
pub(super) fn complete(
    body: &mut Vec<u8>,
    len: usize,
    came: &Came<'_>,
) -> (usize, Option<Vec<u8>>) {
    let used = came.append_to(body, len - body.len());
    (used, (body.len() == len).then(|| std::mem::take(body)))
}
