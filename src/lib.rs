//! kvrail moves LLM KV cache between prefill and decode processes.
#![forbid(unsafe_code)]

mod error;
pub mod limits;
pub mod runtime;
pub mod topology;

pub use error::{Error, ErrorKind, Landed, PathKind, Result};
