//! The streams and lanes without a kernel.

mod duet;

mod lanes;
mod server;
mod shard;
