//! Mooncake against Mooncake: proves the rig, so that a failure elsewhere is about kvrail.

use serde_json::json;

use crate::rig::{Agent, Bench, MetadataServer, bench_target, eventually, pattern};
use crate::setup::{v11, v11_reuse, v13, v13_no_reuse, v13_v1, v13_v1_no_reuse};

const LENGTH: usize = 1 << 20;

#[test]
fn the_pattern_is_the_agents() {
    assert_eq!(pattern(3, 3, 10), [0, 0, 0, 0, 3, 0xb1, 0x79, 0x37, 0x9e, 0]);
}

#[test]
#[ignore = "needs Mooncake's wheels: cargo xtask test --only interop"]
fn both_wheels_exchange_data_notes_and_probes() {
    for (one, two) in [(v13(), v11()), (v13_v1(), v13_no_reuse()), (v11_reuse(), v13_v1_no_reuse())]
    {
        exchange(Agent::p2p(one), Agent::p2p(two));
        exchange(Agent::p2p(two), Agent::p2p(one));
    }
}

#[test]
#[ignore = "needs Mooncake's wheels: cargo xtask test --only interop"]
fn both_wheels_meet_in_their_metadata_server() {
    for setup in [v13(), v11()] {
        let server = MetadataServer::start(setup);
        let join = |name| Agent::start(setup, name, &server.url);
        exchange(join("one"), join("two:1234"));
    }
}

#[test]
#[ignore = "needs Mooncake's wheels: cargo xtask test --only interop"]
fn the_bench_runs_on_a_bench_and_writes_zeros() {
    let bench = Bench { threads: 2, batch: 4, block: 65536 };
    for setup in [v13(), v11()] {
        let (_process, segment) = bench_target(setup);
        bench.run(setup, "P2PHANDSHAKE", &segment, "read");
        let mut agent = Agent::p2p(setup);
        agent.register(LENGTH, 7);
        let name = agent.name.clone();
        bench.run(setup, "P2PHANDSHAKE", &name, "write");
        agent.expect(7, bench.span(), bench.span(), LENGTH - bench.span());
        let peeked = agent.ask(json!({"do": "peek", "length": bench.span()}));
        assert!(peeked.as_str().unwrap().bytes().all(|digit| digit == b'0'));
    }
}

#[test]
#[ignore = "needs Mooncake's wheels: cargo xtask test --only interop"]
fn a_wrong_byte_is_found() {
    let mut agent = Agent::p2p(v13());
    agent.register(LENGTH, 1);
    agent.ask(json!({"do": "poke", "bytes_hex": "ff", "offset": 70_000}));
    assert_eq!(agent.compare(1, 0, 0, LENGTH), Some(70_000));
    agent.expect(1, 70_001, 70_001, LENGTH - 70_001);
}

/// Writes, reads, a batch, a note and a probe from one agent to the other.
fn exchange(mut one: Agent, mut two: Agent) {
    one.register(LENGTH, 1);
    let remote = two.register(LENGTH, 2);
    let peer = two.name.clone();
    assert_eq!(one.transfer("read", &peer, remote, 0, LENGTH as u64), 0);
    one.expect(2, 0, 0, LENGTH);
    one.fill(3, 0, LENGTH);
    assert_eq!(one.transfer("write", &peer, remote + 5, 5, 300_001), 0);
    eventually("the write", || two.compare(3, 5, 5, 300_001).is_none());
    two.expect(2, 300_006, 300_006, LENGTH - 300_006);
    let requests: Vec<_> = (0..16).map(|k| (k * 65536, remote + k * 65536, 65536)).collect();
    assert_eq!(one.batch("batch_write", &peer, &requests), 0);
    eventually("the batch", || two.compare(3, 0, 0, LENGTH).is_none());
    let noted = json!({
        "do": "write", "peer": peer, "remote": remote, "length": 1, "notify": ["one", "héllo"]
    });
    assert_eq!(one.ask(noted), 0);
    assert_eq!(two.notifies(1), [("one".to_owned(), "héllo".to_owned())]);
    assert_eq!(one.probe(&peer), 0);
    one.stop();
    two.stop();
}
