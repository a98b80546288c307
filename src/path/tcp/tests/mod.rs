//! The streams and lanes without a kernel.

mod duet;
mod ends;
mod lanes;
mod server;
