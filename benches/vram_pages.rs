//! What does an engine add to a launch? The pages of one long prompt, 960 of 12 KiB, from one GPU
//! to another: by the reactor alone, which is the limit; inside one engine; and between two, where
//! a read is our own GPU's and a write the peer's. Batches are prepared, and callers look for the
//! end.
//!
//! `KVRAIL_GPUS=real cargo bench --features cuda,sim --bench vram_pages` on a machine with two
//! GPUs; without the variable the GPUs are made of memfds and pages have 64 bytes, so that what is
//! left is the engine's own work.

use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futures_lite::future::block_on;
use kvrail::runtime::{Idle, Shards};
use kvrail::{Access, Batch, Engine, Location, Peer, Prepared, Region};
use kvrail_reactors::copy::CopyWork;
use kvrail_reactors::cuda::fake::Fake;
use kvrail_reactors::cuda::{Cuda, DeviceMemory, Driver, Gpus, Pages};
use kvrail_reactors::doorbell::Doorbell;
use kvrail_reactors::region::{Region as Memory, Slice};

const PAGES: usize = 960;

/// So many pages apart lie two neighbours on the far side: a prime, so each page is met once.
const APART: usize = 487;

fn is_real() -> bool {
    std::env::var_os("KVRAIL_GPUS").is_some_and(|kind| kind == "real")
}

fn page_bytes() -> usize {
    if is_real() { 12 << 10 } else { 64 }
}

fn driver() -> Arc<dyn Driver> {
    match is_real() {
        true => Gpus::default().driver().expect("GPUs"),
        false => Arc::new(Fake::new(2, 64 << 20)),
    }
}

/// Where each page lies, near and far.
fn places() -> impl Iterator<Item = [usize; 2]> {
    let at = |page: usize| page * page_bytes();
    (0..PAGES).map(move |page| [at(page), at(page * APART % PAGES)])
}

/// The launch, and nothing around it.
fn launch(driver: &Arc<dyn Driver>) -> Arc<Pages> {
    let len = PAGES * page_bytes();
    let on = |device| {
        let memory = DeviceMemory::allocate(driver.clone(), device, len).expect("memory");
        Arc::new(Memory::on_device(memory, len).expect("a region"))
    };
    let (near, far) = (on(0), on(1));
    let part = |region: &Arc<Memory>, at| Slice::new(region.clone(), at, page_bytes()).expect("in");
    let copy = |[near_at, far_at]: [usize; 2]| CopyWork {
        tag: 0,
        source: part(&far, far_at).into(),
        target: part(&near, near_at),
    };
    let copies: Vec<_> = places().map(copy).collect();
    Arc::new(Pages::of(copies.iter()).expect("copies of one GPU"))
}

fn engine(driver: &Arc<dyn Driver>) -> Engine {
    let builder = Engine::builder().gpus(Gpus::given(driver.clone())).idle(Idle::Spin);
    builder.shards(Shards::Count(1)).start().expect("an engine")
}

fn region(engine: &Engine, device: u32) -> Region {
    let len = PAGES * page_bytes();
    engine.allocate(len, Location::Cuda(device), Access::READ_WRITE).expect("memory")
}

fn read(engine: &Engine, peer: &Peer, near: &Region, far: &Region) -> Prepared {
    let mut batch = Batch::new(peer);
    for [near_at, far_at] in places() {
        let lease = near.lease(near_at..near_at + page_bytes()).expect("a lease");
        batch.read(lease, far.addr() + far_at as u64);
    }
    engine.prepare(batch).expect("a good batch")
}

fn write(engine: &Engine, peer: &Peer, near: &Region, far: &Region) -> Prepared {
    let mut batch = Batch::new(peer);
    for [near_at, far_at] in places() {
        let lease = near.share(near_at..near_at + page_bytes()).expect("a lease");
        batch.write(&lease, far.addr() + far_at as u64);
    }
    engine.prepare(batch).expect("a good batch")
}

fn pages(criterion: &mut Criterion) {
    let driver = driver();
    let mut group = criterion.benchmark_group(format!("{PAGES} pages of {} bytes", page_bytes()));
    group.throughput(Throughput::Bytes((PAGES * page_bytes()) as u64));
    let launch = launch(&driver);
    let mut cuda = Cuda::new(1, Arc::new(Doorbell::new().expect("an eventfd")));
    group.bench_function("limit, the reactor alone", |bencher| {
        bencher.iter(|| cuda.make(launch.clone()).expect("a copy"));
    });
    // A driver each, so that they see each other's memory as two processes do.
    let other = if is_real() { driver.clone() } else { self::driver() };
    let (a, b) = (engine(&driver), engine(&other));
    let (near, beside, far) = (region(&a, 0), region(&a, 1), region(&b, 1));
    let peer = block_on(a.open(b.name())).expect("a peer");
    for (name, peer, far, is_write) in [
        ("read inside one engine", &a.local(), &beside, false),
        ("read from a peer", &peer, &far, false),
        ("write to a peer", &peer, &far, true),
    ] {
        let prepare = if is_write { write } else { read };
        let batch = prepare(&a, peer, &near, far);
        // The first posting asks the peer how its memory can be reached.
        block_on(a.post(&batch)).expect("a transfer");
        group.bench_function(name, |bencher| {
            bencher.iter(|| block_on(a.post(&batch)).expect("a transfer"));
        });
    }
    group.finish();
    block_on(async {
        a.stop().await;
        b.stop().await;
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2))
        .sample_size(50);
    targets = pages
}
criterion_main!(benches);
