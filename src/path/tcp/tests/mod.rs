//! The streams and lanes without a kernel.

mod duet;
mod granted;

mod lanes;
mod server;
mod shard;
