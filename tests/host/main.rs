//! The same-host path against peers that are killed, stopped, foreign or hostile. Peers are
//! processes of their own (`process`) or made by hand (`raw`); whatever they do, nobody else is
//! hurt, nothing is written where it wasn't permitted, and what is out ends.

mod containers;
mod credentials;
mod explain;
mod granted;
mod handshakes;
mod lanes;
mod offers;
mod process;
mod raw;
mod responders;
mod revoking;
mod signals;

use std::time::Duration;

use kvrail::{Access, Batch, Engine, Location, PathKind, Peer, Region};

pub(crate) fn engine() -> Engine {
    Engine::builder().start().expect("an engine")
}

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
    let limit = Duration::from_secs(100);
    runtime.block_on(async { tokio::time::timeout(limit, test).await.expect("the test hangs") });
}

/// An honest peer of an engine, with memory on either side.
pub(crate) struct Honest {
    engine: Engine,
    peer: Peer,
    near: Region,
    far: Region,
    round: u64,
}

impl Honest {
    const LEN: usize = 300_000;

    pub(crate) async fn of(victim: &Engine) -> Self {
        let engine = engine();
        let peer = engine.open(victim.name()).await.unwrap();
        let near = region(&engine, Self::LEN, Access::LOCAL);
        let far = region(victim, Self::LEN, Access::READ_WRITE);
        Self { engine, peer, near, far, round: 0 }
    }

    /// Writes and reads as ever, by shared memory.
    pub(crate) async fn is_served(&mut self) {
        self.round += 1;
        assert_eq!(self.peer.path(), PathKind::Host);
        let bytes = pattern(self.round, Self::LEN);
        fill(&self.near, &bytes);
        let mut batch = Batch::new(&self.peer);
        batch.write(&self.near.share(0..Self::LEN).unwrap(), self.far.addr());
        self.engine.transfer(batch).await.unwrap();
        assert!(contents(&self.far) == bytes, "what was written");
        fill(&self.near, &vec![0; Self::LEN]);
        let mut batch = Batch::new(&self.peer);
        batch.read(self.near.lease(0..Self::LEN).unwrap(), self.far.addr());
        self.engine.transfer(batch).await.unwrap();
        assert!(contents(&self.near) == bytes, "what was read");
    }
}
