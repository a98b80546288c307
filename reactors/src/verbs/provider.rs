//! The real provider of verbs: libibverbs, one object a file, each holding what it was made in.

mod adapter;
mod completion;
mod device;
mod domain;
mod events;
mod library;
mod markers;
mod memory;
mod nic;
mod parallel;
mod pinned;
mod posted;
mod queue;
mod receives;
mod send;
mod status;
mod way;
mod window;

pub use self::adapter::Adapter;
pub use self::device::{Device, Gid, Limits, PortState};
pub use self::library::VerbsError;
pub use self::memory::{PIECE_MAX_BYTES, Progress, Registration};
pub use self::nic::{Counters, Depths, Nic};
pub use self::way::Way;
use super::{
    AsyncEvent, Completed, Completion, Operation, Post, QpAddress, QpNumber, QpState, RemoteAccess,
    RemoteKey, Status, WorkRequest,
};
