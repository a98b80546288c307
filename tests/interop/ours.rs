//! Our side: an engine with one region whose bytes are patterns.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use kvrail::metadata::server::{MetadataServer, ServerLimits};
use kvrail::{
    Access, Batch, Engine, EngineBuilder, Failed, Location, Metadata, Outcome, Region, Result,
};
use kvrail_reactors::cuda::Gpus;
use kvrail_reactors::cuda::fake::Fake;
use tokio::time::timeout;

use crate::rig::{eventually, pattern};

/// Longer than every timeout of the engine's own, so that its verdict comes first.
const WAIT_S: u64 = 90;

/// An engine and the region that peers may read and write.
pub struct Ours {
    pub engine: Engine,
    pub region: Region,
}

impl Ours {
    /// An engine known as `name` in `metadata`, with `length` bytes of pattern `seed`.
    pub fn start(name: &str, metadata: Metadata, version_1: bool, length: usize, seed: u8) -> Self {
        let builder = Engine::builder().name(name).advertise("127.0.0.1").metadata(metadata);
        Self::of(builder.tcp_version_1(version_1), Location::Cpu(None), length, seed)
    }

    /// One in peer-to-peer mode whose region is on a GPU (made of memfds, `Fake`).
    pub fn on_gpu(version_1: bool, length: usize, seed: u8) -> Self {
        let gpus = Gpus::given(Arc::new(Fake::new(1, 1 << 30)));
        let builder = Engine::builder().gpus(gpus).tcp_version_1(version_1);
        Self::of(builder, Location::Cuda(0), length, seed)
    }

    fn of(builder: EngineBuilder, location: Location, length: usize, seed: u8) -> Self {
        let engine = builder.start().unwrap();
        let region = engine.allocate(length, location, Access::READ_WRITE).unwrap();
        wait(engine.publish()).unwrap();
        let ours = Self { engine, region };
        ours.fill(seed, 0, length);
        ours
    }

    /// An engine in peer-to-peer mode on loopback.
    pub fn p2p(length: usize, seed: u8) -> Self {
        Self::start("127.0.0.1", Metadata::P2p, false, length, seed)
    }

    pub fn fill(&self, seed: u8, offset: usize, length: usize) {
        let mut lease = self.region.lease(offset..offset + length).unwrap();
        lease.copy_in(0, &pattern(seed, 0, length)).unwrap();
    }

    /// Asserts that the region holds pattern `seed` from byte `skip` on, at `offset`.
    pub fn expect(&self, seed: u8, skip: usize, offset: usize, length: usize) {
        let differs = self.compare(seed, skip, offset, length);
        assert_eq!(differs, None, "our memory differs from pattern {seed}");
    }

    /// The same, for what lands some time after the peer reported it.
    pub fn expect_soon(&self, seed: u8, skip: usize, offset: usize, length: usize) {
        eventually("their write", || self.compare(seed, skip, offset, length).is_none());
    }

    /// Where the region first differs from pattern `seed`, if it does.
    pub fn compare(&self, seed: u8, skip: usize, offset: usize, length: usize) -> Option<usize> {
        let (have, want) = (self.bytes(offset, length), pattern(seed, skip, length));
        let position = || have.iter().zip(&want).position(|(have, want)| have != want);
        (have != want).then(|| offset + position().unwrap())
    }

    pub fn bytes(&self, offset: usize, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        if length == 0 {
            return bytes;
        }
        let lease = self.region.share(offset..offset + length).unwrap();
        lease.copy_out(0, &mut bytes).unwrap();
        bytes
    }

    pub fn transfer(&self, batch: Batch) -> Result<Outcome, Failed> {
        wait(async { self.engine.transfer(batch).await })
    }

    /// The next message, as (name, text).
    pub fn notification(&self) -> (String, String) {
        let note = wait(self.engine.notification());
        (note.from, String::from_utf8(note.bytes).unwrap())
    }
}

/// Our own metadata server on a free port of loopback.
pub fn metadata_server() -> MetadataServer {
    MetadataServer::start(("127.0.0.1", 0), ServerLimits::default()).unwrap()
}

/// Waits for an answer of the engine's, not forever.
pub fn wait<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let limited = async { timeout(Duration::from_secs(WAIT_S), future).await };
    runtime.block_on(limited).expect("the engine did not answer")
}
