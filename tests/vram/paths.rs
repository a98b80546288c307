//! Every path, both directions, host memory and VRAM on either side: the bytes are right.

use std::time::Duration;

use kvrail::runtime::Shards;
use kvrail::{Access, Batch, Engine, Eternal, Location, PathKind, Peer, Region};

use super::{
    buffer, contents, engine, fill, open, pages, pattern, read, region, run, scattered, write,
};

const HOST: Location = Location::Cpu(None);
const GPU: Location = Location::Cuda(0);
const OTHER: Location = Location::Cuda(1);

/// Which memory meets which: near, then far.
const PAIRS: [(Location, Location); 6] =
    [(GPU, OTHER), (GPU, GPU), (GPU, HOST), (HOST, GPU), (OTHER, GPU), (HOST, OTHER)];

/// Pages by number and length: what one launch takes and more, more odd ones than a lane's ring
/// holds, and a single one.
const SHAPES: [(usize, usize); 6] =
    [(960, 12 << 10), (2000, 4096), (2000, 1000), (33, 17), (1, 5 << 20), (1, 4096)];

#[test]
fn inside_one_engine() {
    run(async {
        let engine = engine(|builder| builder);
        for (seed, (near, far)) in (1..).zip(PAIRS) {
            for (count, len) in SHAPES {
                let near = region(&engine, count * len, near);
                let far = region(&engine, count * len, far);
                round(&engine, &engine.local(), &near, &far, (count, seed)).await;
            }
        }
        engine.stop().await;
    });
}

/// The only shard ends what its task waits for: a caller that looked for its end itself, as threads
/// do, would look for an hour.
#[test]
fn a_task_on_a_shard_leaves_the_looking_to_its_shard() {
    run(async {
        let patience = Duration::from_secs(3600);
        let engine = engine(|builder| builder.shards(Shards::Count(1)).spin_caller(patience));
        let [near, far] = [GPU, OTHER].map(|location| region(&engine, 33 * 4096, location));
        fill(&near, &pattern(1, near.len()));
        let batch = write(&engine.local(), &near, &buffer(&far), &pages(33, 4096));
        let own = engine.clone();
        let task = move || async move { own.transfer(batch).await.is_ok() };
        let moved = engine.runtime().spawn_on(0, task).expect("a task");
        assert_eq!(moved.await, Ok(true));
        engine.stop().await;
    });
}

/// Writes the near region's pages to the far one and reads them back.
async fn round(
    engine: &Engine,
    peer: &Peer,
    near: &Region,
    far: &Region,
    (count, seed): (usize, u64),
) {
    let len = near.len() / count;
    let (bytes, pages) = (pattern(seed, near.len()), pages(count, len));
    fill(near, &bytes);
    engine.transfer(write(peer, near, &buffer(far), &pages)).await.expect("a write");
    assert!(contents(far) == scattered(&bytes, &pages), "{count} x {len} written");
    fill(near, &vec![0; near.len()]);
    engine.transfer(read(peer, near, &buffer(far), &pages)).await.expect("a read");
    assert!(contents(near) == bytes, "{count} x {len} read");
}

async fn between(a: &Engine, b: &Engine, path: PathKind) {
    let peer = open(a, b, path).await;
    for (seed, (near, far)) in (1..).zip(PAIRS) {
        for (count, len) in SHAPES {
            let (near, far) = (region(a, count * len, near), region(b, count * len, far));
            round(a, &peer, &near, &far, (count, seed)).await;
            a.unregister(near).await.expect("quiet");
            b.unregister(far).await.expect("quiet");
        }
    }
}

#[test]
fn between_processes_of_a_host() {
    run(async {
        let (a, b) = (engine(|builder| builder), engine(|builder| builder));
        between(&a, &b, PathKind::Host).await;
    });
}

#[test]
fn by_tcp_through_host_memory() {
    run(async {
        let tcp = |builder: kvrail::EngineBuilder| builder.same_host(false);
        let (a, b) = (engine(tcp), engine(tcp));
        between(&a, &b, PathKind::Tcp).await;
    });
}

#[test]
fn by_tcp_on_epoll_and_to_peers_that_know_version_1_alone() {
    run(async {
        let tcp = |builder: kvrail::EngineBuilder| {
            let driver = kvrail::runtime::Driver::Epoll;
            builder.same_host(false).tcp_version_1(true).driver(driver)
        };
        let (a, b) = (engine(tcp), engine(tcp));
        between(&a, &b, PathKind::Tcp).await;
    });
}

/// Pages of two GPUs in turn, on both sides: more of them than a lane has groups.
#[test]
fn one_batch_may_touch_several_gpus() {
    run(async {
        const PAGES: usize = 2400;
        let (a, b) = (engine(|builder| builder), engine(|builder| builder));
        let peer = open(&a, &b, PathKind::Host).await;
        let len = PAGES / 2 * 4096;
        let near = [GPU, OTHER].map(|location| region(&a, len, location));
        let far = [GPU, OTHER].map(|location| region(&b, len, location));
        let bytes = [pattern(1, len), pattern(2, len)];
        let (mut writes, mut reads) = (Batch::new(&peer), Batch::new(&peer));
        near.iter().zip(&bytes).for_each(|(near, bytes)| fill(near, bytes));
        let place = |k: usize| (k % 2, k / 2 * 4096);
        for (gpu, at) in (0..PAGES).map(place) {
            let lease = near[gpu].share(at..at + 4096).expect("a lease");
            writes.write(&lease, far[1 - gpu].addr() + (len - 4096 - at) as u64);
        }
        a.transfer(writes).await.expect("writes");
        near.iter().for_each(|near| fill(near, &vec![0; len]));
        for (gpu, at) in (0..PAGES).map(place) {
            let lease = near[gpu].lease(at..at + 4096).expect("a lease");
            reads.read(lease, far[1 - gpu].addr() + (len - 4096 - at) as u64);
        }
        a.transfer(reads).await.expect("reads");
        assert!(near.iter().zip(&bytes).all(|(near, bytes)| &contents(near) == bytes));
    });
}

/// No GPU reaches another process's own memory: whoever owns the target reads it first.
#[test]
fn memory_of_the_caller_s_own_meets_vram() {
    run(async {
        const LEN: usize = 1 << 20;
        let (a, b) = (engine(|builder| builder), engine(|builder| builder));
        let peer = open(&a, &b, PathKind::Host).await;
        let own = |engine: &Engine| {
            engine.register(Eternal::new(LEN).foreign(), Access::READ_WRITE).expect("a region")
        };
        for (near, far) in [(own(&a), region(&b, LEN, GPU)), (region(&a, LEN, GPU), own(&b))] {
            round(&a, &peer, &near, &far, (256, 1)).await;
        }
    });
}
