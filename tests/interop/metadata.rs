//! Engines that find each other through a metadata server: Mooncake's and ours.

use kvrail::{Batch, ErrorKind, Metadata};
use serde_json::json;

use crate::ours::{self, Ours, wait};
use crate::rig::{Agent, Bench, MetadataServer, eventually};
use crate::setup::{Setup, interop_tests};

const LENGTH: usize = 1 << 20;

interop_tests!(their_server: v13, v13_no_reuse, v13_v1, v11, v11_reuse);
interop_tests!(our_server: v13, v13_no_reuse, v13_v1, v11, v11_reuse);

fn their_server(setup: Setup) {
    let server = MetadataServer::start(setup);
    meet(setup, &server.url);
}

fn our_server(setup: Setup) {
    let server = ours::metadata_server();
    meet(setup, &server.url());
}

/// Data, notes and probes in both directions, and their bench; who left is found no more.
fn meet(setup: Setup, url: &str) {
    let forced = setup.is_version_1();
    let start = |name: &str| Ours::start(name, Metadata::Http(url.to_owned()), forced, LENGTH, 1);
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
