//! The real provider of verbs: libibverbs, one object a file, each holding what it was made in.

mod completion;
mod device;
mod domain;
mod library;
mod memory;
mod nic;
mod queue;
mod receives;
mod send;
mod status;
mod window;

pub use self::completion::CompletionQueue;
pub use self::device::{Device, Gid, Limits, PortState};
pub use self::domain::Domain;
pub use self::library::VerbsError;
pub use self::memory::{PIECE_MAX_BYTES, Registration};
pub use self::nic::{Adapter, Depths, Nic};
pub use self::queue::Way;
pub use self::receives::Receives;
use super::{
    AsyncEvent, Completed, Completion, Operation, Post, QpAddress, QpNumber, QpState, RemoteAccess,
    RemoteKey, Status, WorkRequest,
};
