//! kvrail moves LLM KV cache between prefill and decode processes.
#![forbid(unsafe_code)]

mod arrivals;
mod config;
mod control;
mod counter;
mod engine;
mod error;
mod flight;
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub mod fuzzing;
pub mod limits;
mod memory;
pub mod metrics;
mod notification;
mod path;
mod peer;
mod plan;
mod request;
pub mod runtime;
pub mod topology;
mod transfer;
mod window;

pub use config::{EngineBuilder, Metadata};
pub use control::metadata;
pub use counter::Counter;
pub use engine::Engine;
pub use error::{Error, ErrorKind, Landed, PathKind, Result};
pub use kvrail_reactors::region::Foreign;
pub use memory::{Access, Block, BlockPool, ExclusiveLease, Lease, Location, Region, SharedLease};
pub use notification::Notification;
pub use peer::{Peer, RemoteBuffer};
pub use request::{Batch, Pages, Strided};
pub use transfer::{Failed, Outcome, Prepared, Transfer};
