//! How fast is one thread's copy, by size and by what the source's pages are: a memfd of base
//! pages, the same mapped as a peer maps it, huge pages (where some are set aside), memory of the
//! caller's, and another process's memory by `process_vm_readv`? The limit beside them:
//! `copy_from_slice` between two buffers of this process.
//!
//! `cargo bench --bench copy_kernels`

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main,
};
use kvrail_reactors::copy::Source;
use kvrail_reactors::host::process::{Process, ProcessSlice, Token};
use kvrail_reactors::host::view::{View, ViewSlice};
use kvrail_reactors::numa::NumaPolicy;
use kvrail_reactors::region::{Eternal, Pages, Region, Slice};

/// In the first cache, in the second, beyond both, and a layer of a long prompt.
const SIZES: [(&str, usize); 4] =
    [("4K", 4 << 10), ("64K", 64 << 10), ("1M", 1 << 20), ("16M", 16 << 20)];

const LARGEST: usize = SIZES[SIZES.len() - 1].1;

fn region(pages: Pages) -> Option<Arc<Region>> {
    let region = Region::allocate_with(LARGEST, &NumaPolicy::Any, pages, &mut |_| Ok(()));
    region.map(Arc::new).ok()
}

fn slice(region: &Arc<Region>, len: usize) -> Slice {
    Slice::new(region.clone(), 0, len).expect("it is as long")
}

fn copy(group: &mut BenchmarkGroup<'_, WallTime>, kind: &str, of: impl Fn(usize) -> Source) {
    let target = region(Pages::Base).expect("memory");
    for (name, len) in SIZES {
        let (source, target) = (of(len), slice(&target, len));
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(BenchmarkId::new(kind, name), |bencher| {
            bencher.iter(|| source.copy_to(&target).expect("it is readable"));
        });
    }
}

fn limit(group: &mut BenchmarkGroup<'_, WallTime>) {
    let (source, mut target) = (vec![1u8; LARGEST], vec![0u8; LARGEST]);
    for (name, len) in SIZES {
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(BenchmarkId::new("limit, two buffers", name), |bencher| {
            bencher.iter(|| {
                target[..len].copy_from_slice(black_box(&source[..len]));
                black_box(&mut target);
            });
        });
    }
}

fn kernels(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("copy");
    limit(&mut group);
    let base = region(Pages::Base).expect("memory");
    copy(&mut group, "memfd", |len| slice(&base, len).into());
    let view = View::map(base.memfd().expect("it is a memfd"), LARGEST).expect("it is sealed");
    let view = Arc::new(view);
    let mapped = |len| ViewSlice::new(view.clone(), 0, len).expect("it is as long");
    copy(&mut group, "memfd of a peer", |len| Source::View(mapped(len)));
    match region(Pages::Huge) {
        Some(huge) => copy(&mut group, "huge pages", |len| slice(&huge, len).into()),
        None => println!("no huge pages are set aside (vm.nr_hugepages): they are left out"),
    }
    let own = Arc::new(Region::foreign(Eternal::new(LARGEST).foreign()));
    copy(&mut group, "memory of the caller's", |len| slice(&own, len).into());
    let ourselves = Process::new(std::process::id() as i32, Token::new().place());
    let ourselves = Arc::new(ourselves.expect("a process may read itself"));
    let read = |len| ProcessSlice::new(ourselves.clone(), own.addr(), len);
    copy(&mut group, "process_vm_readv", |len| Source::Process(read(len)));
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
        .sample_size(20);
    targets = kernels
}
criterion_main!(benches);
