//! Engines that meet through real metadata services: etcd, Redis, and our own HTTP server.
//!
//! etcd and Redis come with Debian's packages etcd-server and redis-server; a test that doesn't
//! find its service fails and names the package.

mod contract;
mod crashes;
#[cfg(feature = "redis")]
mod foreign;
#[cfg(feature = "etcd")]
mod members;
mod outages;
mod peer;
mod service;

use std::time::{Duration, Instant};

use kvrail::{Access, Batch, Engine, EngineBuilder, Location, Region};

use self::service::{Kind, Service};

/// Far beyond every bound under test, so that a failing test ends.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// Long for a busy machine to renew in time, short for a test to wait for its end.
pub(crate) const LEASE: Duration = Duration::from_secs(6);

pub(crate) const LENGTH: usize = 1 << 20;

/// One test for each service that this build knows: `on_every_service!(check)` makes
/// `check::etcd`, `check::redis` and `check::http`, which call `check` with the kind.
macro_rules! on_every_service {
    ($($check:ident),* $(,)?) => {
        $(mod $check {
            crate::on!($check: "etcd" etcd Etcd, "redis" redis Redis, "cli" http Http);
        })*
    };
}
pub(crate) use on_every_service;

/// The same for those that end what nobody keeps, and compare before they write.
macro_rules! on_services_with_leases {
    ($($check:ident),* $(,)?) => {
        $(mod $check {
            crate::on!($check: "etcd" etcd Etcd, "redis" redis Redis);
        })*
    };
}
pub(crate) use on_services_with_leases;

macro_rules! on {
    ($check:ident: $($feature:literal $name:ident $kind:ident),*) => {
        $(
            #[cfg(feature = $feature)]
            #[test]
            fn $name() {
                super::$check(crate::Kind::$kind);
            }
        )*
    };
}
pub(crate) use on;

/// Settings of an engine that meets its peers there, and only over the network.
pub(crate) fn named(name: &str, url: &str) -> EngineBuilder {
    let metadata = url.parse().expect("a connection string");
    let builder = Engine::builder().name(name).metadata(metadata).advertise("127.0.0.1");
    builder.metadata_lease(LEASE).same_host(false)
}

pub(crate) fn engine(name: &str, service: &Service) -> Engine {
    named(name, &service.url()).start().expect("an engine")
}

/// A region full of `byte`, published.
pub(crate) fn region(engine: &Engine, byte: u8) -> Region {
    let location = Location::Cpu(None);
    let region = engine.allocate(LENGTH, location, Access::READ_WRITE).expect("memory");
    fill(&region, byte);
    wait(engine.publish()).expect("published");
    region
}

pub(crate) fn fill(region: &Region, byte: u8) {
    let mut lease = region.lease(0..LENGTH).expect("nobody uses it");
    lease.copy_in(0, &[byte; LENGTH]).expect("it fits");
}

pub(crate) fn holds(region: &Region, byte: u8) -> bool {
    let mut bytes = vec![0; LENGTH];
    region.share(0..LENGTH).expect("nobody writes").copy_out(0, &mut bytes).expect("it fits");
    bytes.iter().all(|found| *found == byte)
}

/// Opens `peer` and reads its memory, which is full of `byte`.
pub(crate) fn reads(engine: &Engine, peer: &str, byte: u8) {
    let own = region(engine, !byte);
    let peer = wait(engine.open(peer)).expect("the peer");
    let far = peer.buffers().first().expect("it has published memory").addr;
    let mut batch = Batch::new(&peer);
    batch.read(own.lease(0..LENGTH).expect("nobody uses it"), far);
    wait(async { engine.transfer(batch).await }).expect("a read");
    assert!(holds(&own, byte), "other bytes than the peer's");
    wait(engine.unregister(own)).expect("it was registered");
}

/// Keys of an engine's documents, where its daemon listens and its descriptor.
pub(crate) fn keys(name: &str) -> [String; 2] {
    [format!("mooncake/rpc_meta/{name}"), format!("mooncake/ram/{name}")]
}

/// Waits for an answer of the engine's, not forever.
pub(crate) fn wait<T>(answer: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let limited = async { tokio::time::timeout(LIMIT, answer).await };
    runtime.block_on(limited).expect("the engine did not answer")
}

/// Waits until `done` says so.
pub(crate) fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < end, "{what}: not within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
