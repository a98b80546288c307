//! What does posting to a NIC cost, from an order to the end of it? The machines that choose rails
//! and windows and build lists, on the simulator's NIC; beside them the same lists given to that
//! NIC without any machine, and the machines with no NIC at all. The simulated NIC is no measure of
//! a real one: the limit here is how little stands between an order and its doorbells.
//!
//! `cargo bench --features sim --bench posting`

use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kvrail::hot::{ADDR, NoNic, Ports, Posting, SimulatedNic, WRITE_BYTES};
use kvrail_reactors::region::{Region, Slice};
use kvrail_reactors::verbs::{Operation, Post, QpNumber, RemoteKey, WorkRequest};

/// Writes of an order: one, a batch, and the most that one queue pair has under way.
const WRITES: [usize; 3] = [1, 16, 256];

/// What shares a doorbell (`RDMA_LIST_MAX`).
const LIST: usize = kvrail::limits::RDMA_LIST_MAX;

/// The lists of so many writes.
fn lists(qp: QpNumber, local: &Slice, writes: usize) -> impl Iterator<Item = Post> {
    let request = move |id: usize| WorkRequest {
        id: id as u64,
        operation: Operation::Write,
        local: Some(local.clone()),
        remote_addr: ADDR,
        key: RemoteKey(1),
        is_signalled: (id + 1).is_multiple_of(LIST) || id + 1 == writes,
    };
    let list = move |first| (first..writes.min(first + LIST)).map(request).collect();
    (0..writes).step_by(LIST).map(move |first| Post { qp, requests: list(first) })
}

fn posting(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("post");
    let region = Arc::new(Region::allocate(WRITE_BYTES, None).expect("memory"));
    let local = Slice::new(region, 0, WRITE_BYTES).expect("all of it");
    for writes in WRITES {
        group.throughput(Throughput::Elements(writes as u64));
        let mut nic = SimulatedNic::default();
        let [near, _] = nic.pair();
        let mut done = Vec::new();
        group.bench_function(BenchmarkId::new("limit, NIC alone", writes), |bencher| {
            bencher.iter(|| {
                lists(near.number, &local, writes).for_each(|list| nic.post(list));
                nic.ended(&mut done);
                assert_eq!(done.drain(..).count(), writes.div_ceil(LIST));
            });
        });
        let mut machines = Posting::new(NoNic::default(), writes);
        group.bench_function(BenchmarkId::new("machines alone", writes), |bencher| {
            bencher.iter(|| machines.round());
        });
        let mut whole = Posting::new(SimulatedNic::default(), writes);
        group.bench_function(BenchmarkId::new("machines and NIC", writes), |bencher| {
            bencher.iter(|| whole.round());
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2))
        .sample_size(30);
    targets = posting
}
criterion_main!(benches);
