//! What does it cost to name a piece of work in flight, to find it by its name and to take it out,
//! with few and with many others in flight? The limits beside it: a bare slab, whose keys outlive
//! their entries, and the standard library's map, whose keys don't.
//!
//! `cargo bench --bench flight_table`

use std::collections::HashMap;
use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use kvrail_reactors::ticket::Table;
use slab::Slab;

/// A batch, a window of a NIC, and the largest batch.
const IN_FLIGHT: [usize; 3] = [16, 4 << 10, 64 << 10];

/// As large as what a path knows of a request.
type Work = [u64; 8];

const WORK: Work = [7; 8];

fn tables(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("insert, get, remove");
    for others in IN_FLIGHT {
        let mut slab: Slab<_> = (0..others).map(|key| (key, WORK)).collect();
        group.bench_function(BenchmarkId::new("limit, slab", others), |bencher| {
            bencher.iter(|| {
                let key = slab.insert(black_box(WORK));
                black_box(slab.get_mut(black_box(key)));
                slab.remove(key)
            });
        });
        let mut table = Table::default();
        for _ in 0..others {
            table.insert(WORK);
        }
        group.bench_function(BenchmarkId::new("tickets", others), |bencher| {
            bencher.iter(|| {
                let ticket = table.insert(black_box(WORK));
                black_box(table.get_mut(black_box(ticket)));
                table.remove(ticket)
            });
        });
        let mut map: HashMap<u64, Work> = (0..others as u64).map(|name| (name, WORK)).collect();
        let mut next = others as u64;
        group.bench_function(BenchmarkId::new("map", others), |bencher| {
            bencher.iter(|| {
                next += 1;
                map.insert(next, black_box(WORK));
                black_box(map.get_mut(&black_box(next)));
                map.remove(&next)
            });
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
    targets = tables
}
criterion_main!(benches);
