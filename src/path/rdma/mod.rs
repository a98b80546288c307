//! Transfers by RDMA, as state machines without a device: what is posted to which queue pair, what
//! a completion proves, and when memory is quiet on both sides.
//!
//! An [`Initiator`] has endpoints to its peers, one a rail at a time; a [`Target`] has accepted
//! those of others. Both take messages, completions and the time, and answer with [`Action`]s that
//! whoever owns the devices carries out. One endpoint serves the transfers of the side that opened
//! it and no other, so that giving up a transfer, which costs its queue pairs, never costs the
//! peer's work.

mod action;
mod clocks;
mod ending;
mod endpoint;
mod events;
mod handshake;
mod initiator;
mod ledger;
mod message;
pub(crate) mod mooncake;
mod notice;
mod posting;
mod queue;
mod rail;
mod sweep;
mod target;
#[cfg(test)]
mod tests;
mod transfer;
mod windows;

pub(crate) use self::action::{Action, RdmaLimits};
pub(crate) use self::ending::{Culprit, Ending, Fenced, SliceEnd};
pub(crate) use self::endpoint::scratch_bytes;
pub(crate) use self::initiator::Initiator;
pub(crate) use self::ledger::Counted;
pub(crate) use self::message::{
    EndpointName, Incarnation, InitiatorId, Mailbox, Message, Refusal, Strike,
};
pub(crate) use self::notice::queue_bytes;
#[cfg(any(test, feature = "sim"))]
pub(crate) use self::queue::Signals;
pub(crate) use self::rail::Ends;
pub(crate) use self::target::Target;
#[cfg(any(test, feature = "sim"))]
pub(crate) use self::transfer::Guard;
pub(crate) use self::transfer::{Event, Keys, Order, RdmaSlice};
pub(crate) use self::windows::Granted;
