//! Engines that find each other through a metadata server: Mooncake's and ours.

use kvrail::{Batch, ErrorKind};
use serde_json::json;

use crate::ours::{self, Ours, wait};
use crate::rig::{Agent, Bench, MetadataServer, eventually, pattern};
#[cfg(feature = "etcd")]
use crate::service::{Kind, Service};
use crate::setup::{Setup, interop_tests};

const LENGTH: usize = 1 << 20;

interop_tests!(their_server: v13, v13_no_reuse, v13_v1, v11, v11_reuse);
interop_tests!(our_server: v13, v13_no_reuse, v13_v1, v11, v11_reuse);
#[cfg(feature = "etcd")]
interop_tests!(etcd: v13, v13_v1, v11);
interop_tests!(two_and_two_over_http: v13, v11);
#[cfg(feature = "etcd")]
interop_tests!(two_and_two_over_etcd: v13, v11);

fn their_server(setup: Setup) {
    let server = MetadataServer::start(setup);
    meet(setup, &server.url);
}

fn our_server(setup: Setup) {
    let server = ours::metadata_server();
    meet(setup, &server.url());
}

#[cfg(feature = "etcd")]
fn etcd(setup: Setup) {
    let service = Service::start(Kind::Etcd);
    meet(setup, &service.url());
}

fn two_and_two_over_http(setup: Setup) {
    let server = ours::metadata_server();
    two_and_two(setup, &server.url());
}

#[cfg(feature = "etcd")]
fn two_and_two_over_etcd(setup: Setup) {
    let service = Service::start(Kind::Etcd);
    two_and_two(setup, &service.url());
    // Ours have left the store as they found it; Mooncake's take theirs along when they stop.
    for name in ["kvrail-1", "kvrail-2", "mooncake-1", "mooncake-2"] {
        assert_eq!(service.get(&format!("mooncake/rpc_meta/{name}")), None, "{name}");
        assert_eq!(service.get(&format!("mooncake/ram/{name}")), None, "{name}");
    }
}

/// Two engines of ours and two of Mooncake's in one store: each writes into a part of every
/// other's memory, and reads it back.
fn two_and_two(setup: Setup, url: &str) {
    let forced = setup.is_version_1();
    let ours = ["kvrail-1", "kvrail-2"]
        .map(|name| Ours::start(name, url.parse().unwrap(), forced, LENGTH, 1));
    let theirs = ["mooncake-1", "mooncake-2"];
    let mut theirs = theirs.map(|name| (name, Agent::start(setup, name, url)));
    let bases: Vec<_> =
        theirs.iter_mut().map(|(name, agent)| (*name, agent.register(LENGTH, 1))).collect();
    for (number, one) in ours.iter().enumerate() {
        let far = ours[1 - number].region.addr();
        we_exchange(one, number, ours[1 - number].engine.name(), far);
        bases.iter().for_each(|(name, base)| we_exchange(one, number, name, *base));
    }
    for (number, (own, agent)) in theirs.iter_mut().enumerate() {
        let far = ours.iter().map(|one| (one.engine.name(), one.region.addr()));
        let far = far.chain(bases.iter().copied()).filter(|(name, _)| name != own);
        far.for_each(|(name, base)| they_exchange(agent, 2 + number, name, base));
    }
    theirs.into_iter().for_each(|(_, agent)| agent.stop());
    ours.iter().for_each(|one| wait(one.engine.stop()));
}

/// A part of the memory for each writer, and one more of its own to read into.
const PART: usize = LENGTH / 5;

fn we_exchange(ours: &Ours, number: usize, name: &str, base: u64) {
    let (seed, at) = (20 + number as u8, number * PART);
    let peer = wait(ours.engine.open(name)).unwrap();
    let far = base + at as u64;
    let own = at..at + PART;
    ours.region.lease(own.clone()).unwrap().copy_in(0, &pattern(seed, 0, PART)).unwrap();
    let mut batch = Batch::new(&peer);
    batch.write(&ours.region.share(own).unwrap(), far);
    ours.transfer(batch).unwrap();
    let spare = 4 * PART..5 * PART;
    ours.region.lease(spare.clone()).unwrap().copy_in(0, &[0; PART]).unwrap();
    let mut batch = Batch::new(&peer);
    batch.read(ours.region.lease(spare).unwrap(), far);
    ours.transfer(batch).unwrap();
    ours.expect(seed, 0, 4 * PART, PART);
}

fn they_exchange(agent: &mut Agent, number: usize, name: &str, base: u64) {
    let (seed, at) = (20 + number as u8, number * PART);
    let far = base + at as u64;
    agent.fill(seed, at, PART);
    assert_eq!(agent.transfer("write", name, far, at as u64, PART as u64), 0);
    // A write of version 1 may land after it was reported.
    eventually("their write", || {
        agent.fill(1, 4 * PART, PART);
        assert_eq!(agent.transfer("read", name, far, (4 * PART) as u64, PART as u64), 0);
        agent.compare(seed, 0, 4 * PART, PART).is_none()
    });
}

/// Data, notes and probes in both directions, and their bench; who left is found no more.
fn meet(setup: Setup, url: &str) {
    let forced = setup.is_version_1();
    let start = |name: &str| Ours::start(name, url.parse().unwrap(), forced, LENGTH, 1);
    let ours = start("kvrail/one:17");
    let mut agent = Agent::start(setup, "mooncake:4711", url);
    let base = agent.register(LENGTH, 2);
    from_them(&mut agent, &ours);
    from_us(&ours, &mut agent, base);
    bench(setup, &ours, url);
    agent.stop();
    let gone = wait(ours.engine.open("mooncake:4711")).unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::Lost, "{gone}");
    wait(ours.engine.stop());
    let another = start("another");
    let gone = wait(another.engine.open("kvrail/one:17")).unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::Lost, "{gone}");
}

fn from_them(agent: &mut Agent, ours: &Ours) {
    let (peer, base) = (ours.engine.name(), ours.region.addr());
    assert_eq!(agent.probe(peer), 0);
    assert_eq!(agent.transfer("read", peer, base + 1, 1, 300_001), 0);
    agent.expect(1, 1, 1, 300_001);
    agent.fill(3, 0, LENGTH);
    assert_eq!(agent.transfer("write", peer, base + 5, 5, 300_001), 0);
    ours.expect_soon(3, 5, 5, 300_001);
    ours.expect(1, 300_006, 300_006, LENGTH - 300_006);
    let note = json!({
        "do": "write", "peer": peer, "remote": base, "length": 1, "notify": ["them", "hello"]
    });
    assert_eq!(agent.ask(note), 0);
    assert_eq!(ours.notification(), ("them".to_owned(), "hello".to_owned()));
}

fn from_us(ours: &Ours, agent: &mut Agent, base: u64) {
    let peer = wait(ours.engine.open("mooncake:4711")).unwrap();
    wait(ours.engine.probe(&peer)).unwrap();
    ours.fill(4, 0, LENGTH);
    agent.fill(5, 0, LENGTH);
    let (low, high) = (0..LENGTH / 2, LENGTH / 2..LENGTH);
    let mut batch = Batch::new(&peer);
    batch.write(&ours.region.share(low.clone()).unwrap(), base);
    batch.read(ours.region.lease(high.clone()).unwrap(), base + high.start as u64);
    batch.notify("done");
    ours.transfer(batch).unwrap();
    agent.expect(4, 0, 0, low.len());
    ours.expect(5, high.start, high.start, high.len());
    let texts = agent.notifies(1).into_iter().map(|(_, text)| text);
    assert_eq!(texts.collect::<Vec<_>>(), ["done"]);
}

/// It writes zeros, and only where it was told to.
fn bench(setup: Setup, ours: &Ours, url: &str) {
    let bench = Bench { threads: 1, batch: 8, block: 4096 };
    ours.fill(6, 0, LENGTH);
    bench.run(setup, url, ours.engine.name(), "read");
    ours.expect(6, 0, 0, LENGTH);
    bench.run(setup, url, ours.engine.name(), "write");
    eventually("zeros", || ours.bytes(0, bench.span()).iter().all(|byte| *byte == 0));
    ours.expect(6, bench.span(), bench.span(), LENGTH - bench.span());
}
