//! kvrail moves LLM KV cache between prefill and decode processes.
#![forbid(unsafe_code)]

// Called by the engine only.
#[allow(dead_code, unused_imports)]
pub mod control;
mod error;
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub mod fuzzing;
pub mod limits;

pub use error::{Error, ErrorKind, Landed, PathKind, Result};
