//! The fabric does what verbs do, the unpleasant part too.

use std::sync::Arc;

use super::*;
use crate::region::Region;
use crate::verbs::{Completed, Operation, Status, WorkRequest};

const BYTES: usize = 1_000;
const ADDR: u64 = 0x5000;
const ALL: RemoteAccess = RemoteAccess { read: true, write: true };

/// Two NICs with a queue pair each, connected, and a registered range at both.
struct Pair {
    fabric: Fabric,
    nics: [Nic; 2],
    qps: [QpNumber; 2],
    memory: [Slice; 2],
    keys: [RemoteKey; 2],
}

fn pair(seed: u64) -> Pair {
    let fabric = Fabric::new(seed);
    let nics = [fabric.nic(), fabric.nic()];
    let addresses = [nics[0].create_qp(), nics[1].create_qp()];
    assert!(nics[0].connect(addresses[0].number, 1, addresses[1]));
    assert!(nics[1].connect(addresses[1].number, 0, addresses[0]));
    let memory = [1, 2].map(|fill| {
        let region = Arc::new(Region::allocate(BYTES, None).unwrap());
        let slice = Slice::new(region, 0, BYTES).unwrap();
        slice.write(0, &[fill; BYTES]).unwrap();
        slice
    });
    let keys = [0, 1].map(|end| nics[end].register(memory[end].clone(), ADDR, ALL));
    let qps = addresses.map(|address| address.number);
    Pair { fabric, nics, qps, memory, keys }
}

impl Pair {
    fn post(&mut self, operations: &[Operation], is_signalled: bool) {
        let request = |(id, operation): (usize, &Operation)| WorkRequest {
            id: id as u64 + 1,
            operation: *operation,
            local: (*operation != Operation::Nothing).then(|| self.memory[0].clone()),
            remote_addr: ADDR,
            key: self.keys[1],
            is_signalled: is_signalled || id + 1 == operations.len(),
        };
        let requests = operations.iter().enumerate().map(request).collect();
        assert!(self.nics[0].submit(Post { qp: self.qps[0], requests }).is_ok());
    }

    /// Everything happens that will, by `until_ns`.
    fn run(&self, until_ns: u64) {
        while self.fabric.step(until_ns).is_some() {}
    }

    fn completions(&mut self, end: usize) -> Vec<(u64, Completed)> {
        let mut done = Vec::new();
        self.nics[end].poll(usize::MAX, &mut done);
        done.into_iter().map(|done| (done.id, done.what)).collect()
    }

    fn bytes(&self, end: usize) -> Vec<u8> {
        let mut bytes = vec![0; BYTES];
        self.memory[end].read(0, &mut bytes).unwrap();
        bytes
    }
}

const LATE_NS: u64 = 1_000_000_000;

#[test]
fn bytes_move_and_only_signalled_work_and_immediates_complete() {
    for seed in 0..50 {
        let mut pair = pair(seed);
        if seed % 2 == 1 {
            pair.fabric.set_loss(10);
        }
        pair.nics[1].post_receives(1);
        pair.post(&[Operation::Write, Operation::Write, Operation::WriteWithImmediate(7)], false);
        pair.run(LATE_NS);
        assert_eq!(pair.bytes(1), [1; BYTES]);
        assert_eq!(pair.completions(0), [(3, Completed::Sent(Status::Success))]);
        assert_eq!(pair.completions(1), [(0, Completed::Received(7))]);
        pair.memory[1].write(0, &[9; BYTES]).unwrap();
        pair.post(&[Operation::Read], true);
        pair.run(2 * LATE_NS);
        assert_eq!(pair.bytes(0), [9; BYTES]);
        assert_eq!(pair.completions(0), [(1, Completed::Sent(Status::Success))]);
    }
}

/// Posts a write, does `then` in its middle, and says how many of `tries` changed the target later.
fn late_stores(tries: u64, then: impl Fn(&mut Pair)) -> usize {
    let changed = |seed: &u64| {
        let mut pair = pair(*seed);
        pair.post(&[Operation::Write; 4], false);
        pair.run(2_000 + seed * 100);
        then(&mut pair);
        let before = pair.bytes(1);
        pair.run(LATE_NS);
        pair.bytes(1) != before
    };
    (0..tries).filter(changed).count()
}

#[test]
fn a_local_flush_recalls_nothing_and_two_drained_ends_are_quiet() {
    let flush = |pair: &mut Pair| pair.nics[0].set_error(pair.qps[0]);
    let alone = late_stores(100, |pair| {
        flush(pair);
        pair.run(1);
    });
    assert!(alone > 10, "{alone} of 100 changed the target behind a local flush");
    let drained = late_stores(100, |pair| {
        flush(pair);
        pair.nics[1].set_error(pair.qps[1]);
        let marker = WorkRequest {
            id: 9,
            operation: Operation::Nothing,
            local: None,
            remote_addr: 0,
            key: RemoteKey(0),
            is_signalled: true,
        };
        let post = Post { qp: pair.qps[1], requests: vec![marker] };
        pair.nics[1].submit(post).unwrap();
        while pair.completions(1).is_empty() {
            assert!(pair.fabric.step(LATE_NS).is_some());
        }
    });
    assert_eq!(drained, 0, "a drained target changed");
}

#[test]
fn a_flush_completes_all_and_a_reset_nothing() {
    let mut flushed = pair(1);
    flushed.post(&[Operation::Write; 3], false);
    flushed.nics[0].set_error(flushed.qps[0]);
    flushed.run(LATE_NS);
    let all = [1, 2, 3].map(|id| (id, Completed::Sent(Status::Flushed)));
    assert_eq!(flushed.completions(0), all);
    let mut reset = pair(1);
    reset.post(&[Operation::Write; 3], false);
    reset.nics[0].reset(reset.qps[0]);
    reset.run(LATE_NS);
    assert_eq!(reset.completions(0), []);
}

#[test]
fn what_is_not_permitted_puts_both_ends_in_error() {
    let mut pair = pair(3);
    pair.post(&[Operation::Write], true);
    pair.run(LATE_NS);
    pair.completions(0);
    pair.nics[1].deregister(pair.keys[1]);
    pair.post(&[Operation::Write, Operation::Nothing], false);
    pair.run(2 * LATE_NS);
    let ended = [Status::RemoteAccess, Status::Flushed];
    let ended: Vec<_> = (1..).zip(ended.map(Completed::Sent)).collect();
    assert_eq!(pair.completions(0), ended);
    assert_eq!(pair.nics[1].events(), [AsyncEvent::AccessViolated(pair.qps[1])]);
    for end in 0..2 {
        assert_eq!(pair.nics[end].state(pair.qps[end]), Some(QpState::Error));
    }
}

#[test]
fn a_window_is_open_to_its_queue_pair_until_it_is_invalidated() {
    let mut pair = pair(4);
    let window = pair.nics[1].window();
    let request = |operation, id| WorkRequest {
        id,
        operation,
        local: Some(pair.memory[1].clone()),
        remote_addr: ADDR,
        key: pair.keys[1],
        is_signalled: true,
    };
    let bind = request(Operation::Bind { window, access: ALL }, 1);
    let invalidate = request(Operation::Invalidate(window), 2);
    pair.nics[1].submit(Post { qp: pair.qps[1], requests: vec![bind] }).unwrap();
    pair.keys[1] = window;
    pair.post(&[Operation::Write], true);
    pair.run(LATE_NS);
    assert_eq!(pair.completions(0), [(1, Completed::Sent(Status::Success))]);
    pair.nics[1].submit(Post { qp: pair.qps[1], requests: vec![invalidate] }).unwrap();
    pair.post(&[Operation::Write], true);
    pair.run(2 * LATE_NS);
    assert_eq!(pair.completions(0), [(1, Completed::Sent(Status::RemoteAccess))]);
}

#[test]
fn a_cut_wire_ends_in_exceeded_retries_and_a_silent_nic_in_nothing() {
    let mut cut = pair(5);
    cut.nics[1].set_link(false);
    cut.post(&[Operation::Write], true);
    cut.run(LATE_NS);
    assert_eq!(cut.completions(0), [(1, Completed::Sent(Status::RetryExceeded))]);
    let mut silent = pair(5);
    silent.nics[0].set_silent(true);
    silent.post(&[Operation::Write], true);
    silent.run(LATE_NS);
    assert_eq!((silent.completions(0), silent.bytes(1)), (vec![], vec![1; BYTES]));
}
