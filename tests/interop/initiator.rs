//! Our engine on Mooncake's targets: when we say done, the bytes are there.

use kvrail::{Batch, ErrorKind, Metadata, Pages, Peer, Strided};
use serde_json::json;

use crate::ours::{Ours, wait};
use crate::rig::{Agent, bench_target};
use crate::setup::{Setup, interop_tests};

const LENGTH: usize = 4 << 20;

interop_tests!(python: v13, v13_v1, v11);
interop_tests!(vram: v13, v13_v1, v11);
interop_tests!(refused_range: v13, v13_v1, v11);
interop_tests!(bench: v13, v13_v1, v11);
interop_tests!(peer_leaves: v13, v13_v1, v11);

/// Their target and our engine, which has opened it. `v13_v1` forces version 1 on our side.
struct Pair {
    ours: Ours,
    agent: Agent,
    peer: Peer,
    base: u64,
}

impl Pair {
    fn new(setup: Setup) -> Self {
        let forced = setup.is_version_1();
        Self::with(Ours::start("127.0.0.1", Metadata::P2p, forced, LENGTH, 1), setup)
    }

    fn with(ours: Ours, setup: Setup) -> Self {
        let mut agent = Agent::p2p(setup);
        let base = agent.register(LENGTH, 2);
        let peer = wait(ours.engine.open(&agent.name)).unwrap();
        Self { ours, agent, peer, base }
    }
}

/// Whole leases, pages, strides, a large batch, notes and a probe.
fn python(setup: Setup) {
    let mut pair = Pair::new(setup);
    let buffers: Vec<_> = pair.peer.buffers().iter().map(|b| (b.addr, b.len)).collect();
    assert_eq!(buffers, [(pair.base, LENGTH as u64)]);
    wait(pair.ours.engine.probe(&pair.peer)).unwrap();
    for (offset, length) in [(0, 1), (3, 7), (4095, 4098), (65536, 65536), (77, 3_000_003)] {
        write(&mut pair, offset, length);
        read(&mut pair, offset, length);
    }
    batch(&mut pair);
    pages(&mut pair);
    rows(&mut pair);
    notes(&mut pair);
    regions_that_come_and_go(&mut pair, setup);
    pair.agent.stop();
}

/// Data from a GPU and into it.
fn vram(setup: Setup) {
    let mut pair = Pair::with(Ours::on_gpu(setup.is_version_1(), LENGTH, 1), setup);
    for (offset, length) in [(0, 1), (3, 7), (4095, 4098), (65536, 65536), (77, 3_000_003)] {
        write(&mut pair, offset, length);
        read(&mut pair, offset, length);
    }
    batch(&mut pair);
    pages(&mut pair);
    rows(&mut pair);
    pair.agent.stop();
}

fn write(pair: &mut Pair, offset: usize, length: usize) {
    pair.ours.fill(3, 0, LENGTH);
    pair.agent.fill(2, 0, LENGTH);
    let mut batch = Batch::new(&pair.peer);
    let source = pair.ours.region.share(offset..offset + length).unwrap();
    batch.write(&source, pair.base + offset as u64);
    pair.ours.transfer(batch).unwrap();
    let end = offset + length;
    pair.agent.expect(3, offset, offset, length);
    pair.agent.expect(2, 0, 0, offset);
    pair.agent.expect(2, end, end, LENGTH - end);
}

fn read(pair: &mut Pair, offset: usize, length: usize) {
    pair.ours.fill(1, 0, LENGTH);
    pair.agent.fill(4, 0, LENGTH);
    let mut batch = Batch::new(&pair.peer);
    let target = pair.ours.region.lease(offset..offset + length).unwrap();
    batch.read(target, pair.base + offset as u64);
    pair.ours.transfer(batch).unwrap();
    let end = offset + length;
    pair.ours.expect(4, offset, offset, length);
    pair.ours.expect(1, 0, 0, offset);
    pair.ours.expect(1, end, end, LENGTH - end);
}

/// 64 writes to the lower half and 64 reads from the upper, of one batch.
fn batch(pair: &mut Pair) {
    let (half, piece) = (LENGTH / 2, LENGTH / 128);
    pair.ours.fill(5, 0, LENGTH);
    pair.agent.fill(6, 0, LENGTH);
    let mut batch = Batch::new(&pair.peer);
    for k in 0..64 {
        let (low, high) = (k * piece, half + k * piece);
        let source = pair.ours.region.share(low..low + piece).unwrap();
        batch.write(&source, pair.base + (half - low - piece) as u64);
        batch.read(pair.ours.region.lease(high..high + piece).unwrap(), pair.base + high as u64);
    }
    let outcome = pair.ours.transfer(batch).unwrap();
    assert!(outcome.statuses().len() == 128 && outcome.statuses().iter().all(Result::is_ok));
    drop(outcome);
    pair.ours.expect(6, half, half, half);
    for k in 0..64 {
        pair.agent.expect(5, k * piece, half - (k + 1) * piece, piece);
    }
}

/// Every second page of ours to pages of theirs in descending order, and back.
fn pages(pair: &mut Pair) {
    const PAGE: usize = 4096;
    let count = LENGTH / PAGE / 2;
    let offset = |k: usize| 2 * k * PAGE;
    let place = |k: usize| LENGTH - (k + 1) * PAGE;
    let local = (0..count).map(|k| offset(k) as u64).collect();
    let remote = (0..count).map(|k| pair.base + place(k) as u64).collect();
    let pages = Pages { page_bytes: PAGE, local, remote };
    pair.ours.fill(7, 0, LENGTH);
    let mut batch = Batch::new(&pair.peer);
    batch.write_pages(&pair.ours.region.share(0..LENGTH).unwrap(), pages.clone());
    pair.ours.transfer(batch).unwrap();
    for k in (0..count).step_by(97) {
        pair.agent.expect(7, offset(k), place(k), PAGE);
    }
    pair.agent.fill(8, 0, LENGTH);
    let mut batch = Batch::new(&pair.peer);
    batch.read_pages(pair.ours.region.lease(0..LENGTH).unwrap(), pages);
    pair.ours.transfer(batch).unwrap();
    for k in 0..count {
        pair.ours.expect(8, place(k), offset(k), PAGE);
        pair.ours.expect(7, offset(k) + PAGE, offset(k) + PAGE, PAGE);
    }
}

/// 100 rows of 1000 bytes, apart by 1024 at home and by 3000 there.
fn rows(pair: &mut Pair) {
    pair.ours.fill(9, 0, LENGTH);
    pair.agent.fill(10, 0, LENGTH);
    let rows = Strided {
        rows: 100,
        row_bytes: 1000,
        local_stride: 1024,
        remote: pair.base,
        remote_stride: 3000,
    };
    let mut batch = Batch::new(&pair.peer);
    batch.write_strided(&pair.ours.region.share(0..LENGTH).unwrap(), rows);
    pair.ours.transfer(batch).unwrap();
    for row in 0..100 {
        pair.agent.expect(9, row * 1024, row * 3000, 1000);
        pair.agent.expect(10, row * 3000 + 1000, row * 3000 + 1000, 2000);
    }
}

/// A note with a batch arrives after its data, one without data arrives too.
fn notes(pair: &mut Pair) {
    pair.ours.fill(11, 0, 65536);
    let mut batch = Batch::new(&pair.peer);
    batch.write(&pair.ours.region.share(0..65536).unwrap(), pair.base).notify("with data: é");
    pair.ours.transfer(batch).unwrap();
    wait(pair.ours.engine.notify(&pair.peer, "alone")).unwrap();
    let texts = pair.agent.notifies(2).into_iter().map(|(_, text)| text);
    assert_eq!(texts.collect::<Vec<_>>(), ["with data: é", "alone"]);
    pair.agent.expect(11, 0, 0, 65536);
}

/// What the peer registers after we opened it can be used until it is taken back.
fn regions_that_come_and_go(pair: &mut Pair, setup: Setup) {
    let late = pair.agent.register(65536, 12);
    let read = |pair: &Pair| {
        let mut batch = Batch::new(&pair.peer);
        batch.read(pair.ours.region.lease(0..65536).unwrap(), late);
        pair.ours.transfer(batch)
    };
    read(pair).unwrap();
    pair.ours.expect(12, 0, 0, 65536);
    assert_eq!(pair.agent.ask(json!({"do": "unregister", "region": 1})), 0);
    if setup.checks_ranges() {
        assert_eq!(read(pair).unwrap_err().error().kind(), ErrorKind::Refused);
    }
}

/// A bad request among good ones fails alone, whichever way their server says no.
fn refused_range(setup: Setup) {
    let mut pair = Pair::new(setup);
    // No process maps the first page, so the version without a range check stumbles too.
    let nowhere = 0x100;
    for bad in 0..8 {
        let mut batch = Batch::new(&pair.peer);
        for k in 0..8 {
            let remote = if k == bad { nowhere } else { pair.base + (k * 65536) as u64 };
            let part = k * 65536..(k + 1) * 65536;
            match k % 2 {
                0 => batch.write(&pair.ours.region.share(part).unwrap(), remote),
                _ => batch.read(pair.ours.region.lease(part).unwrap(), remote),
            };
        }
        let outcome = pair.ours.transfer(batch).unwrap_err().into_outcome();
        for (k, status) in outcome.statuses().iter().enumerate() {
            let kind = status.as_ref().map_err(kvrail::Error::kind);
            let want = if k == bad { Err(ErrorKind::Refused) } else { Ok(&()) };
            assert_eq!(kind, want, "request {k} of 8, of which {bad} is bad: {status:?}");
        }
    }
    (0..4).for_each(|k| pair.agent.expect(1, 2 * k * 65536, 2 * k * 65536, 65536));
    (0..4).for_each(|k| pair.ours.expect(2, (2 * k + 1) * 65536, (2 * k + 1) * 65536, 65536));
}

/// What we wrote to their bench is what we read back.
fn bench(setup: Setup) {
    let (_process, segment) = bench_target(setup);
    let ours = Ours::start("127.0.0.1", Metadata::P2p, setup.is_version_1(), LENGTH, 1);
    let peer = wait(ours.engine.open(&segment)).unwrap();
    let base = peer.buffers()[0].addr;
    let mut batch = Batch::new(&peer);
    batch.write(&ours.region.share(0..LENGTH).unwrap(), base);
    ours.transfer(batch).unwrap();
    ours.fill(2, 0, LENGTH);
    let mut batch = Batch::new(&peer);
    batch.read(ours.region.lease(0..LENGTH).unwrap(), base);
    ours.transfer(batch).unwrap();
    ours.expect(1, 0, 0, LENGTH);
}

/// A peer that is gone is an error, in bounded time, and the engine goes on with others.
fn peer_leaves(setup: Setup) {
    let pair = Pair::new(setup);
    let (ours, peer, base) = (pair.ours, pair.peer, pair.base);
    let read = |peer: &Peer, remote| {
        let mut batch = Batch::new(peer);
        batch.read(ours.region.lease(0..LENGTH).unwrap(), remote);
        ours.transfer(batch)
    };
    read(&peer, base).unwrap();
    drop(pair.agent);
    assert_eq!(read(&peer, base).unwrap_err().error().kind(), ErrorKind::Lost);
    assert_eq!(wait(ours.engine.probe(&peer)).unwrap_err().kind(), ErrorKind::Lost);
    let mut other = Agent::p2p(setup);
    let remote = other.register(LENGTH, 3);
    let peer = wait(ours.engine.open(&other.name)).unwrap();
    read(&peer, remote).unwrap();
    ours.expect(3, 0, 0, LENGTH);
}
