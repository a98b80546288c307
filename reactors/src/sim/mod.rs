//! Simulated completion sources: what the kernel and its devices do, decided by a seed. Nothing
//! here has a thread or a clock; whoever owns the world says when something moves.

pub mod fabric;
mod network;
mod stream;

pub use self::network::{Moved, Network};
pub use self::stream::{Stream, Streams};
