//! Mooncake's initiators on our target: whatever way they use connections, the bytes are right.

use serde_json::json;

use crate::ours::{Ours, wait};
use crate::rig::{Agent, Bench, eventually};
use crate::setup::{Setup, interop_tests};

const LENGTH: usize = 4 << 20;

interop_tests!(python: v13, v13_no_reuse, v13_v1, v13_v1_no_reuse, v11, v11_reuse);
interop_tests!(vram: v13, v13_v1, v11);
interop_tests!(bench: v13, v13_no_reuse, v13_v1, v13_v1_no_reuse, v11, v11_reuse);
interop_tests!(refused_range: v13, v13_no_reuse, v13_v1, v13_v1_no_reuse, v11, v11_reuse);
interop_tests!(many_initiators: v13, v13_no_reuse, v13_v1, v11, v11_reuse);

/// Reads and writes of odd sizes at odd addresses, batches, notes, a probe, a region that goes.
fn python(setup: Setup) {
    served(setup, Ours::p2p(LENGTH, 1));
}

/// The same on a GPU, whose bytes go by way of the host.
fn vram(setup: Setup) {
    served(setup, Ours::on_gpu(false, LENGTH, 1));
}

fn served(setup: Setup, ours: Ours) {
    let (peer, base) = (ours.engine.name().to_owned(), ours.region.addr());
    let mut agent = Agent::p2p(setup);
    agent.register(LENGTH, 2);
    assert_eq!(agent.ask(json!({"do": "first_buffer_address", "peer": peer})), base);
    assert_eq!(agent.probe(&peer), 0);
    for (offset, length) in [(0, 1), (3, 7), (4095, 4098), (65536, 65536), (77, 3_000_003)] {
        read(&mut agent, &ours, offset, length);
        write(&mut agent, &ours, offset, length);
    }
    batches(&mut agent, &ours);
    let note = json!({
        "do": "write", "peer": peer, "remote": base, "length": 64, "notify": ["them", "grüße"]
    });
    assert_eq!(agent.ask(note), 0);
    assert_eq!(ours.notification(), ("them".to_owned(), "grüße".to_owned()));
    wait(ours.engine.unregister(ours.region.clone())).unwrap();
    assert_ne!(agent.transfer("read", &peer, base, 0, 64), 0, "the region is gone");
    agent.stop();
}

fn read(agent: &mut Agent, ours: &Ours, offset: usize, length: usize) {
    ours.fill(1, 0, LENGTH);
    agent.fill(2, 0, LENGTH);
    let remote = ours.region.addr() + offset as u64;
    let code = agent.transfer("read", ours.engine.name(), remote, offset as u64, length as u64);
    assert_eq!(code, 0);
    agent.expect(1, offset, offset, length);
    let end = offset + length;
    agent.expect(2, 0, 0, offset);
    agent.expect(2, end, end, LENGTH - end);
}

fn write(agent: &mut Agent, ours: &Ours, offset: usize, length: usize) {
    agent.fill(3, 0, LENGTH);
    let remote = ours.region.addr() + offset as u64;
    let code = agent.transfer("write", ours.engine.name(), remote, offset as u64, length as u64);
    assert_eq!(code, 0);
    ours.expect_soon(3, offset, offset, length);
    let end = offset + length;
    ours.expect(1, 0, 0, offset);
    ours.expect(1, end, end, LENGTH - end);
}

/// 32 pieces each, in the opposite order at the other side.
fn batches(agent: &mut Agent, ours: &Ours) {
    let piece = LENGTH / 32;
    let place = |k: usize| (31 - k) * piece;
    let pieces = (0..32).map(|k| ((k * piece) as u64, ours.region.addr() + place(k) as u64));
    let requests: Vec<_> = pieces.map(|(local, remote)| (local, remote, piece as u64)).collect();
    agent.fill(4, 0, LENGTH);
    assert_eq!(agent.batch("batch_write", ours.engine.name(), &requests), 0);
    (0..32).for_each(|k| ours.expect_soon(4, k * piece, place(k), piece));
    ours.fill(5, 0, LENGTH);
    assert_eq!(agent.batch("batch_read", ours.engine.name(), &requests), 0);
    (0..32).for_each(|k| agent.expect(5, place(k), k * piece, piece));
}

/// The bench checks no data, but it writes zeros, and a read of it must change nothing. Small
/// blocks on connections of their own come in bursts of thousands a second.
fn bench(setup: Setup) {
    // One thread: it uses buffers[thread % its NUMA nodes], and we publish one.
    for (batch, block) in [(16, 65536), (32, 4096)] {
        let bench = Bench { threads: 1, batch, block };
        let ours = Ours::p2p(2 * bench.span(), 1);
        bench.run(setup, "P2PHANDSHAKE", ours.engine.name(), "read");
        ours.expect(1, 0, 0, 2 * bench.span());
        bench.run(setup, "P2PHANDSHAKE", ours.engine.name(), "write");
        eventually("zeros", || ours.bytes(0, bench.span()).iter().all(|byte| *byte == 0));
        ours.expect(1, bench.span(), bench.span(), bench.span());
    }
}

/// A range we don't have is refused, touches nothing, and hurts nobody else.
fn refused_range(setup: Setup) {
    let ours = Ours::p2p(LENGTH, 1);
    let past_end = ours.region.addr() + LENGTH as u64 - 100;
    let mut agent = Agent::p2p(setup);
    agent.register(LENGTH, 2);
    assert_ne!(agent.transfer("read", ours.engine.name(), past_end, 0, 101), 0);
    let mut other = Agent::p2p(setup);
    other.register(LENGTH, 3);
    let code = other.transfer("write", ours.engine.name(), past_end, 0, 101);
    // Version 1 has no answer to a write: its initiator can't know.
    let knows = !setup.is_version_1();
    assert_eq!(code != 0, knows);
    let mut third = Agent::p2p(setup);
    third.register(LENGTH, 4);
    assert_eq!(third.transfer("read", ours.engine.name(), past_end, 0, 100), 0);
    third.expect(1, LENGTH - 100, 0, 100);
    ours.expect(1, 0, 0, LENGTH);
}

/// Three engines at once, each in its own part of one region.
fn many_initiators(setup: Setup) {
    const PART: usize = 1 << 20;
    let ours = Ours::p2p(3 * PART, 9);
    std::thread::scope(|scope| {
        for part in 0..3 {
            let ours = &ours;
            scope.spawn(move || {
                let mut agent = Agent::p2p(setup);
                agent.register(PART, part as u8);
                let remote = ours.region.addr() + (part * PART) as u64;
                for _ in 0..20 {
                    assert_eq!(
                        agent.transfer("write", ours.engine.name(), remote, 0, PART as u64),
                        0
                    );
                }
                ours.expect_soon(part as u8, 0, part * PART, PART);
                agent.fill(9, 0, PART);
                assert_eq!(agent.transfer("read", ours.engine.name(), remote, 0, PART as u64), 0);
                agent.expect(part as u8, 0, 0, PART);
            });
        }
    });
}
