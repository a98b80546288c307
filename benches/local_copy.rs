//! How near does a transfer inside one process come to memcpy on the same memory?
//!
//! In turn, memcpy, kvrail, memcpy, kvrail ...: the ratio of one pair of rounds survives the
//! drift of a shared machine, which two separate benchmarks don't. `cargo bench --bench local_copy`

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_lite::future::block_on;
use kvrail::{Access, Batch, Engine, Location, Prepared};
use kvrail_reactors::region::{Region, Slice};

const ROUNDS: usize = 9;
const ROUND: Duration = Duration::from_millis(100);

fn main() {
    let engine = Engine::builder().start().expect("an engine");
    println!("{:>6} {:>26} {:>26} {:>18}", "bytes", "memcpy GB/s", "kvrail GB/s", "ratio");
    for (name, len) in
        [("64K", 64 << 10), ("1M", 1 << 20), ("4M", 4 << 20), ("16M", 16 << 20), ("64M", 64 << 20)]
    {
        let memcpy = memcpy(len);
        let (prepared, _memory) = transfer(&engine, len);
        let pairs: Vec<(f64, f64)> = (0..ROUNDS)
            .map(|_| {
                let copied = rate(len, &memcpy);
                (copied, rate(len, || assert!(block_on(engine.post(&prepared)).is_ok())))
            })
            .collect();
        let theirs = spread(pairs.iter().map(|pair| pair.0));
        let ours = spread(pairs.iter().map(|pair| pair.1));
        let ratio = spread(pairs.iter().map(|pair| pair.1 / pair.0));
        println!("{name:>6} {theirs:>26} {ours:>26} {ratio:>18}");
    }
}

/// One copy of `len` bytes between two regions of the kind that the engine allocates.
fn memcpy(len: usize) -> impl Fn() {
    let slice = || {
        let region = Region::allocate(len, None).expect("memory");
        Slice::new(Arc::new(region), 0, len).expect("the whole region")
    };
    let (source, target) = (slice(), slice());
    move || assert_eq!(source.copy_to(&target), len)
}

fn transfer(engine: &Engine, len: usize) -> (Prepared, impl Sized) {
    let region = || engine.allocate(len, Location::Cpu(None), Access::LOCAL).expect("memory");
    let (source, target) = (region(), region());
    let mut batch = Batch::new(&engine.local());
    batch.write(&source.share(0..len).expect("a lease"), target.addr());
    (engine.prepare(batch).expect("a plan"), (source, target))
}

/// Gigabytes a second of one round.
fn rate(len: usize, copy: impl Fn()) -> f64 {
    let (start, mut copies) = (Instant::now(), 0usize);
    while start.elapsed() < ROUND {
        copy();
        copies += 1;
    }
    (copies * len) as f64 / start.elapsed().as_secs_f64() * 1e-9
}

/// Median, minimum and maximum.
fn spread(values: impl Iterator<Item = f64>) -> String {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    format!("{:.2} ({:.2}-{:.2})", values[values.len() / 2], values[0], values[values.len() - 1])
}
