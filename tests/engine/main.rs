//! Whole engines in one process, through the public API alone: by shared memory on what they choose
//! by themselves and on epoll, over TCP, and locally. Every path means the same.
#![expect(clippy::duplicate_mod, reason = "one suite for two drivers and two paths")]

mod auto;
mod epoll;
mod tcp;

use kvrail::runtime::Driver;
use kvrail::{Access, Engine, EngineBuilder, Location, PathKind, Peer, Region};

pub(crate) fn region(engine: &Engine, len: usize, access: Access) -> Region {
    engine.allocate(len, Location::Cpu(None), access).expect("a region")
}

/// Bytes that differ from place to place and from seed to seed.
pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        // xorshift64 (Marsaglia, 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

pub(crate) fn fill(region: &Region, bytes: &[u8]) {
    region.lease(0..bytes.len()).expect("a lease").copy_in(0, bytes).expect("room");
}

pub(crate) fn contents(region: &Region) -> Vec<u8> {
    let mut bytes = vec![0; region.len()];
    region.share(0..region.len()).expect("a lease").copy_out(0, &mut bytes).expect("room");
    bytes
}

/// Runs a test to its end, and fails it rather than hang.
pub(crate) fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("tokio");
    let limit = std::time::Duration::from_secs(60);
    runtime.block_on(async { tokio::time::timeout(limit, test).await.expect("the test hangs") });
}
