//! The same-host path: between kvrail processes of one host and user, without the network.
//!
//! **A process writes only into memory of its own.** A write is asked for by a lane (a ring of
//! words in shared memory), and the peer that owns the destination copies it, from memory of ours
//! that it has mapped read-only; a read we copy ourselves. So a process that is stopped or killed
//! in the middle can't store into anybody's memory later, and taking memory back waits for nobody.
//! Behind a read stands a look at the owner's ledger: what was taken back meanwhile is no answer.
//!
//! - `hub` `responder` `asker` `message` `packets`: sessions, on the control thread
//! - `sources` `readable` `handed`: memory of the peer's that is readable here, how it becomes so,
//!   and that it stays while it is
//! - `asks` `entry` `lane`: requests by lanes, from the side that asks
//! - `server` `list` `pages` `shard`: the same on the shards that answer

mod asker;
mod asks;
mod entry;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzzing;
mod handed;
mod hub;
mod lane;
mod list;
mod message;
mod packets;
mod pages;
mod readable;
mod responder;
mod server;
mod shard;
mod sources;

pub(crate) use self::asker::{Asked, Neighbour, Offer};
pub(crate) use self::asks::{Ask, Asks};
#[cfg(any(test, feature = "sim"))]
pub(crate) use self::entry::{CopyEntry, Entry, LISTED_COPIES, ListedCopy};
pub(crate) use self::hub::Hub;
pub(crate) use self::lane::{Lane, watch};
pub(crate) use self::responder::serve;
pub(crate) use self::shard::{HostShard, Message};
pub(crate) use self::sources::{Known, Proof};
