//! How a transfer ended, and what is proven about memory on both sides.

use kvrail_reactors::verbs::Status;

use super::message::{EndpointName, InitiatorId};
use super::rail::Ends;
use crate::receipt::Proof;
use crate::{ErrorKind, Landed};

/// What removed the last doubt about the remote side, the weakest last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fenced {
    /// Nothing was posted.
    Unposted,
    /// Everything posted has completed.
    Answered,
    /// The target moved its queue pairs to error, drained them and said so.
    Target,
    /// The process that had the memory is gone: another one answers.
    Gone,
    /// Nothing did.
    Nobody,
}

/// A slice that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SliceEnd {
    pub(crate) kind: ErrorKind,
    /// Maybe, if it was ever posted.
    pub(crate) landed: Landed,
}

/// A rail, and the status of the work request that it failed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Culprit {
    pub(crate) ends: Ends,
    pub(crate) status: Status,
    pub(crate) endpoint: EndpointName,
}

/// How a transfer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ending {
    /// Why it failed; none where all of it is in place.
    pub(crate) kind: Option<ErrorKind>,
    /// Each slice's end.
    pub(crate) slices: Vec<Result<(), SliceEnd>>,
    /// Our memory. Where it is unproven, [`Action::Released`](super::Action) follows.
    pub(crate) local: Proof,
    pub(crate) landed: Landed,
    pub(crate) fenced: Fenced,
    /// What logs call its event, by its initiator and a number, once that was on its way.
    pub(crate) event: Option<(InitiatorId, u64)>,
    /// What the device said, where one did.
    pub(crate) culprit: Option<Culprit>,
    /// From the cause of the end, or from posting, to quiet.
    pub(crate) took_ns: u64,
}

impl Ending {
    /// The peer's memory.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn remote(&self) -> Proof {
        if self.fenced == Fenced::Nobody { Proof::Unproven } else { Proof::Quiet }
    }
}
