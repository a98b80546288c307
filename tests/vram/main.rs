//! Memory on GPUs, by every path. The GPUs here are made of memfds (`Fake`), one driver an engine,
//! so that engines of one test see each other's memory as two processes do; with
//! `KVRAIL_GPUS=real` the same tests run on the machine's own.

mod child;
mod events;
mod faults;
mod foreign;
mod killed;
mod leaks;
mod ownership;
mod paths;
mod processes;
#[path = "../stopping/mod.rs"]
mod stopping;
mod tcp;
mod timed;

use std::sync::Arc;
use std::time::Duration;

use kvrail::{
    Access, Batch, Engine, EngineBuilder, Lease, Location, PathKind, Peer, Region, RemoteBuffer,
};
use kvrail_reactors::cuda::fake::Fake;
use kvrail_reactors::cuda::{Driver, Gpus};

/// Memory of a GPU that isn't there.
const VRAM_BYTES: u64 = 256 << 20;

/// GPUs that aren't there.
pub(crate) fn fake() -> Arc<Fake> {
    Arc::new(Fake::new(2, VRAM_BYTES))
}

pub(crate) fn is_real() -> bool {
    std::env::var_os("KVRAIL_GPUS").is_some_and(|kind| kind == "real")
}

/// GPUs of the machine, or that aren't there.
pub(crate) fn driver() -> Arc<dyn Driver> {
    match is_real() {
        true => Gpus::default().driver().expect("GPUs"),
        false => fake(),
    }
}

/// An engine with GPUs.
pub(crate) fn engine(build: impl FnOnce(EngineBuilder) -> EngineBuilder) -> Engine {
    engine_on(&driver(), build)
}

/// One with these.
pub(crate) fn engine_on(
    driver: &Arc<dyn Driver>,
    build: impl FnOnce(EngineBuilder) -> EngineBuilder,
) -> Engine {
    build(Engine::builder().gpus(Gpus::given(driver.clone()))).start().expect("an engine")
}

/// One with these.
pub(crate) fn engine_with(fake: &Arc<Fake>) -> Engine {
    let builder = Engine::builder().gpus(Gpus::given(fake.clone()));
    builder.start().expect("an engine")
}

pub(crate) fn region(engine: &Engine, len: usize, location: Location) -> Region {
    engine.allocate(len, location, Access::READ_WRITE).expect("a region")
}

/// Bytes that differ from place to place and from seed to seed.
pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; len];
    random.fill(&mut bytes);
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

/// A page's place on either side.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Page {
    pub(crate) near: usize,
    pub(crate) far: usize,
}

/// Pages of one length, near and far in another order.
pub(crate) fn pages(count: usize, len: usize) -> Vec<Page> {
    let mut far: Vec<usize> = (0..count).collect();
    fastrand::Rng::with_seed(count as u64).shuffle(&mut far);
    far.into_iter().enumerate().map(|(k, far)| Page { near: k * len, far: far * len }).collect()
}

pub(crate) fn write(peer: &Peer, near: &Region, far: &RemoteBuffer, pages: &[Page]) -> Batch {
    let len = near.len() / pages.len();
    let mut batch = Batch::new(peer);
    for page in pages {
        let lease = near.share(page.near..page.near + len).expect("a lease");
        batch.write(&lease, far.addr + page.far as u64);
    }
    batch
}

pub(crate) fn read(peer: &Peer, near: &Region, far: &RemoteBuffer, pages: &[Page]) -> Batch {
    let len = near.len() / pages.len();
    let mut batch = Batch::new(peer);
    for page in pages {
        let lease = near.lease(page.near..page.near + len).expect("a lease");
        batch.read(lease, far.addr + page.far as u64);
    }
    batch
}

/// What the far side holds after the pages were written.
pub(crate) fn scattered(bytes: &[u8], pages: &[Page]) -> Vec<u8> {
    let len = bytes.len() / pages.len();
    let mut far = vec![0; bytes.len()];
    for page in pages {
        far[page.far..][..len].copy_from_slice(&bytes[page.near..][..len]);
    }
    far
}

pub(crate) fn buffer(region: &Region) -> RemoteBuffer {
    let name = region.location().to_string();
    RemoteBuffer { name, addr: region.addr(), len: region.len() as u64 }
}

/// Runs a test to its end, and fails it rather than hang.
pub(crate) fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let patience = Duration::from_secs(60);
    runtime.expect("a runtime").block_on(async {
        tokio::time::timeout(patience, test).await.expect("the test hangs");
    });
}

pub(crate) async fn open(from: &Engine, to: &Engine, path: PathKind) -> Peer {
    let peer = from.open(to.name()).await.expect("a peer");
    assert_eq!(peer.path(), path);
    peer
}

pub(crate) fn shared(lease: Lease) -> bool {
    matches!(lease, Lease::Shared(_))
}
