//! kvrail moves LLM KV cache between prefill and decode processes.
#![forbid(unsafe_code)]

mod error;
pub mod limits;

pub use error::{Error, ErrorKind, Landed, PathKind, Result};
