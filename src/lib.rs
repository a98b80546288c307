//! kvrail moves LLM KV cache between prefill and decode processes.
#![forbid(unsafe_code)]

// Called by the engine only.
#[allow(dead_code, unused_imports)]
pub mod control;
mod error;
pub mod limits;
mod memory;
pub mod runtime;
pub mod topology;

pub use error::{Error, ErrorKind, Landed, PathKind, Result};
pub use kvrail_reactors::region::Foreign;
pub use memory::{
    Access, Block, BlockPool, ExclusiveLease, Lease, Location, Region, SharedLease,
};
