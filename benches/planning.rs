//! How long does it take to plan the batch of one long prompt, 10,000 blocks of 12 KiB: pages that
//! lie in another order at the peer, and as many requests with a lease each? The limit beside it:
//! to copy the page lists, which a planner must at least read, and write as many slices down.
//!
//! `cargo bench --bench planning`

use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use kvrail::{Access, Batch, Engine, Location, Pages, Region};

const BLOCKS: usize = 10_000;
const BLOCK_BYTES: usize = 12 << 10;

/// So many blocks apart lie two neighbours at the peer: a prime, so each block is met once.
const APART: usize = 7_919;

fn pages(apart: usize) -> Pages {
    let addr = |block| (block * BLOCK_BYTES) as u64;
    let remote = (0..BLOCKS).map(|block| addr(block * apart % BLOCKS)).collect();
    Pages { page_bytes: BLOCK_BYTES, local: (0..BLOCKS).map(addr).collect(), remote }
}

/// One request of 10,000 pages.
fn paged(engine: &Engine, region: &Region, pages: &Pages) -> Batch {
    let mut batch = Batch::new(&engine.local());
    let lease = region.share(0..region.len()).expect("a lease");
    batch.write_pages(&lease, pages.clone());
    batch
}

/// 10,000 requests.
fn single(engine: &Engine, region: &Region, pages: &Pages) -> Batch {
    let mut batch = Batch::new(&engine.local());
    for (&at, &remote) in pages.local.iter().zip(&pages.remote) {
        let at = at as usize;
        batch.write(&region.share(at..at + BLOCK_BYTES).expect("a lease"), remote);
    }
    batch
}

/// What any planner has to do.
fn written(pages: &Pages) -> Vec<(usize, usize, u64, usize)> {
    let both = pages.local.iter().zip(&pages.remote);
    both.map(|(&local, &remote)| (0, local as usize, remote, BLOCK_BYTES)).collect()
}

fn planning(criterion: &mut Criterion) {
    let engine = Engine::builder().start().expect("an engine");
    let bytes = BLOCKS * BLOCK_BYTES;
    let region = engine.allocate(bytes, Location::Cpu(None), Access::LOCAL).expect("memory");
    let mut group = criterion.benchmark_group("plan 10,000 blocks");
    let [scattered, adjoining] = [pages(APART), pages(1)];
    group.bench_function("limit, slices written down", |bencher| {
        bencher.iter(|| (black_box(&scattered).clone(), written(black_box(&scattered))));
    });
    for (name, pages) in [("scattered pages", &scattered), ("adjoining pages", &adjoining)] {
        group.bench_function(name, |bencher| {
            let batch = || paged(&engine, &region, pages);
            let plan = |batch| engine.prepare(batch).expect("a good batch");
            bencher.iter_batched(batch, plan, BatchSize::PerIteration);
        });
    }
    group.bench_function("requests", |bencher| {
        let batch = || single(&engine, &region, &scattered);
        let plan = |batch| engine.prepare(batch).expect("a good batch");
        bencher.iter_batched(batch, plan, BatchSize::PerIteration);
    });
    group.bench_function("requests and their leases", |bencher| {
        bencher.iter_with_large_drop(|| {
            let batch = single(&engine, &region, &scattered);
            engine.prepare(batch).expect("a good batch")
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(3))
        .sample_size(50);
    targets = planning
}
criterion_main!(benches);
