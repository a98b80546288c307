//! Peers that are killed or stopped while a GPU copies for them or theirs for us: what is out ends
//! within seconds, its receipt claims no more than is known, memory comes back, and others are
//! served as ever.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kvrail::{Engine, ErrorKind, Fenced, Landed, PathKind, Peer, Proof, Receipt, Region};
use kvrail::{Failed, RemoteBuffer};
use kvrail_reactors::cuda::Driver;
use kvrail_reactors::cuda::fake::Fake;

use super::child::{BOTH, Child, LEN, Means, Memory, PAGES};
use super::{contents, engine_on, fake, fill, is_real, pages, pattern, read, run, shared, write};

/// Within which ends what somebody else's death or standing still can touch: an engine gives
/// a peer that owes it an end two seconds, and the machine may be busy.
const SECONDS: Duration = Duration::from_secs(8);

/// Transfers that are under way at a time.
const WORKERS: usize = 6;

/// How long after the first rounds somebody is killed: at once, and in the midst of later ones.
const MOMENTS_MS: [u64; 3] = [0, 7, 40];

/// Of transfers with a peer that is to stand still: no other takes so long.
const DEADLINE: Duration = Duration::from_secs(1);

/// What a real driver may keep for itself of what it took meanwhile; a round that leaked would keep
/// [`WORKERS`] regions.
const KEPT_BYTES: u64 = 4 * LEN as u64;

/// An engine, by its GPUs.
struct Stage {
    driver: Arc<dyn Driver>,
    /// Where its GPUs aren't there.
    fake: Option<Arc<Fake>>,
    engine: Engine,
}

impl Stage {
    fn new() -> Self {
        let fake = (!is_real()).then(fake);
        let driver = match &fake {
            Some(fake) => fake.clone(),
            None => super::driver(),
        };
        let engine = engine_on(&driver, |builder| builder);
        Self { driver, fake, engine }
    }

    fn free_bytes(&self) -> u64 {
        self.driver.free_bytes(0).expect("a GPU")
    }

    fn near(&self, means: Means) -> Region {
        Memory::new(&self.driver, means).region(&self.engine)
    }

    async fn open(&self, child: &Child) -> Peer {
        let peer = self.engine.open(&child.name).await.expect("a peer");
        assert_eq!(peer.path(), PathKind::Host);
        peer
    }

    fn worker(&self, peer: &Peer, near: &Region, far: RemoteBuffer) -> Worker {
        let (engine, peer, near) = (self.engine.clone(), peer.clone(), near.clone());
        Worker { engine, peer, near, far, deadline: None }
    }

    /// Returns when as much is free as was before.
    async fn has_again(&self, free_bytes: u64) {
        let kept = if self.fake.is_some() { 0 } else { KEPT_BYTES };
        eventually("memory comes back", || self.free_bytes() + kept >= free_bytes).await;
    }

    async fn unregister(&self, region: Region) {
        in_time(self.engine.unregister(region)).await.expect("quiet");
    }
}

async fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < SECONDS, "{what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// What ends in time, or the test does.
async fn in_time<T>(what: impl IntoFuture<Output = T>) -> T {
    tokio::time::timeout(SECONDS, what.into_future()).await.expect("it ends within seconds")
}

async fn pause(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}

/// How a transfer ended that did not succeed.
#[derive(Debug, Clone, Copy)]
struct End {
    is_write: bool,
    kind: ErrorKind,
    receipt: Receipt,
}

impl End {
    fn of(is_write: bool, failed: &Failed) -> Self {
        Self { is_write, kind: failed.error().kind(), receipt: *failed.receipt() }
    }

    /// Nobody answers for what the peer had begun.
    fn is_open(&self) -> bool {
        let Self { receipt, .. } = self;
        let known = (receipt.landed(), receipt.fenced(), receipt.remote());
        known == (Landed::Maybe, Fenced::Nobody, Proof::Unproven)
    }

    /// A receipt claims what is known, and all of it: what never left, and what changes nothing
    /// there, leaves no doubt.
    fn is_honest(&self) -> bool {
        let Self { is_write, receipt, .. } = self;
        let is_unposted = (receipt.landed(), receipt.fenced()) == (Landed::No, Fenced::Unposted);
        match is_write {
            true => self.is_open() || is_unposted,
            false => receipt.remote() == Proof::Quiet,
        }
    }
}

/// Writes to a peer and reads back.
#[derive(Clone)]
struct Worker {
    engine: Engine,
    peer: Peer,
    near: Region,
    far: RemoteBuffer,
    deadline: Option<Duration>,
}

impl Worker {
    fn by(self, deadline: Duration) -> Self {
        Self { deadline: Some(deadline), ..self }
    }

    /// The bytes of what has completed are right.
    async fn round(&self, bytes: &[u8]) -> Result<(), End> {
        fill(&self.near, bytes);
        self.transfer(true).await?;
        fill(&self.near, &vec![0; LEN]);
        self.transfer(false).await?;
        assert!(contents(&self.near) == bytes, "bytes of what has completed are wrong");
        Ok(())
    }

    async fn transfer(&self, is_write: bool) -> Result<(), End> {
        let Self { engine, peer, near, far, deadline } = self;
        let pages = pages(PAGES, LEN / PAGES);
        let mut batch = match is_write {
            true => write(peer, near, far, &pages),
            false => read(peer, near, far, &pages),
        };
        deadline.map(|deadline| batch.deadline(deadline));
        let ended = in_time(engine.transfer(batch)).await;
        let ended = ended.map(drop).map_err(|failed| End::of(is_write, &failed));
        assert!(!near.is_leased(0..LEN), "a lease is not back");
        ended
    }

    /// Rounds until one fails.
    async fn until_it_fails(self, rounds: Arc<AtomicUsize>) -> End {
        let bytes = [1, 2].map(|seed| pattern(seed + self.far.addr, LEN));
        let mut bytes = bytes.iter().cycle();
        loop {
            if let Err(end) = self.round(bytes.next().expect("a cycle")).await {
                return end;
            }
            rounds.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Does this to a peer while workers are at it, some time after the first rounds; how each ended.
async fn ends(workers: &[Worker], moment_ms: u64, what: impl FnOnce()) -> Vec<End> {
    let rounds = Arc::new(AtomicUsize::new(0));
    let mut under_way = tokio::task::JoinSet::new();
    for worker in workers {
        under_way.spawn(worker.clone().until_it_fails(rounds.clone()));
    }
    eventually("rounds", || rounds.load(Ordering::Relaxed) >= WORKERS).await;
    pause(moment_ms).await;
    what();
    under_way.join_all().await
}

/// A peer is killed while we write to its VRAM and read from it.
async fn holder_is_killed(means: Means) {
    let stage = Stage::new();
    let mut other = Child::start();
    let peer = stage.open(&other).await;
    let beside = stage.worker(&peer, &stage.near(means), other.shown(means));
    let nears: Vec<_> = (0..WORKERS).map(|_| stage.near(means)).collect();
    beside.round(&pattern(0, LEN)).await.expect("a peer");
    let free_bytes = stage.free_bytes();
    for moment_ms in MOMENTS_MS {
        let mut victim = Child::start();
        let peer = stage.open(&victim).await;
        let workers: Vec<_> =
            nears.iter().map(|near| stage.worker(&peer, near, victim.shown(means))).collect();
        let ends = ends(&workers, moment_ms, || victim.kill()).await;
        let is_fine = |end: &End| end.kind == ErrorKind::Lost && end.is_honest();
        assert!(ends.iter().all(is_fine), "{ends:?}");
        beside.round(&pattern(moment_ms, LEN)).await.expect("another peer goes on");
        stage.has_again(free_bytes).await;
        let gone = in_time(stage.engine.open(&victim.name)).await.expect_err("it is dead");
        assert_eq!(gone.kind(), ErrorKind::Lost, "{gone}");
    }
    for near in nears {
        stage.unregister(near).await;
    }
}

#[test]
fn a_peer_is_killed_whose_vram_we_write_and_read_by_descriptors() {
    run(holder_is_killed(Means::Descriptor));
}

#[test]
fn a_peer_is_killed_whose_vram_we_write_and_read_by_handles() {
    run(holder_is_killed(Means::Handle));
}

/// Stopped before, so that everything is out for certain when it dies.
#[test]
fn what_is_out_at_a_peer_that_is_killed_is_lost_and_nobody_vouches_for_it() {
    run(async {
        for means in BOTH {
            let (stage, mut victim) = (Stage::new(), Child::start());
            let peer = stage.open(&victim).await;
            let worker = stage.worker(&peer, &stage.near(means), victim.shown(means));
            worker.round(&pattern(1, LEN)).await.expect("a peer");
            victim.stop();
            worker.transfer(false).await.expect("our GPU needs nobody to read");
            let out: Vec<_> = (0..WORKERS)
                .map(|_| {
                    let pages = pages(PAGES, LEN / PAGES);
                    stage.engine.transfer(write(&peer, &worker.near, &worker.far, &pages))
                })
                .collect();
            victim.kill();
            for transfer in out {
                let end = End::of(true, &in_time(transfer).await.expect_err("nobody has written"));
                assert!(end.kind == ErrorKind::Lost && end.is_open(), "{end:?}");
            }
            assert!(contents(&worker.near) == pattern(1, LEN));
            stage.unregister(worker.near).await;
        }
    });
}

/// A peer is killed for which our GPUs write and which reads.
async fn asker_is_killed(means: Means) {
    let (stage, mut other) = (Stage::new(), Child::start());
    let beside = stage.near(means);
    other.use_for_ever(&stage.engine, &beside, means);
    let memory = Memory::new(&stage.driver, means);
    let free_bytes = stage.free_bytes();
    for moment_ms in MOMENTS_MS {
        let mut victim = Child::start();
        let region = memory.region(&stage.engine);
        victim.use_for_ever(&stage.engine, &region, means);
        pause(moment_ms).await;
        victim.kill();
        stage.unregister(region).await;
        // Its memory has another tenant.
        let (again, bytes) = (memory.region(&stage.engine), pattern(moment_ms, LEN));
        fill(&again, &bytes);
        other.goes_on();
        assert!(contents(&again) == bytes, "somebody writes what was taken back");
        stage.unregister(again).await;
        stage.has_again(free_bytes).await;
    }
}

#[test]
fn a_peer_is_killed_that_writes_and_reads_our_vram_by_descriptors() {
    run(asker_is_killed(Means::Descriptor));
}

#[test]
fn a_peer_is_killed_that_writes_and_reads_our_vram_by_handles() {
    run(asker_is_killed(Means::Handle));
}

#[test]
fn what_our_gpu_writes_for_the_dead_ends_before_its_memory_is_given_back() {
    if is_real() {
        return println!("only a fake GPU stands still");
    }
    run(async {
        for means in BOTH {
            let (stage, mut victim) = (Stage::new(), Child::start());
            let memory = Memory::new(&stage.driver, means);
            let (free_bytes, region) = (stage.free_bytes(), memory.region(&stage.engine));
            victim.use_for_ever(&stage.engine, &region, means);
            let fake = stage.fake.clone().expect("a fake GPU");
            fake.break_with(|faults| faults.is_stalled = true);
            pause(100).await;
            let rounds = victim.rounds();
            pause(100).await;
            assert_eq!(victim.rounds(), rounds, "its write is under way");
            victim.kill();
            stage.unregister(region).await;
            let (again, bytes) = (memory.region(&stage.engine), pattern(7, LEN));
            fill(&again, &bytes);
            fake.break_with(|faults| faults.is_stalled = false);
            pause(100).await;
            assert!(contents(&again) == bytes, "our GPU writes what was taken back");
            stage.unregister(again).await;
            stage.has_again(free_bytes).await;
            assert_eq!((fake.allocations(), fake.opened()), (0, 0), "the dead one's is closed");
        }
    });
}

/// A peer stands still while it is asked to write, and others get the memory of what it was asked.
async fn holder_is_stopped(means: Means) {
    let (stage, mut other, mut victim) = (Stage::new(), Child::start(), Child::start());
    let peer = stage.open(&other).await;
    let beside = stage.worker(&peer, &stage.near(means), other.shown(means));
    let nears: Vec<_> = (0..WORKERS).map(|_| stage.near(means)).collect();
    let fars: Vec<_> = nears.iter().map(|_| victim.shown(means)).collect();
    let bytes = pattern(9, LEN);
    // One that is stopped costs seconds.
    for moment_ms in MOMENTS_MS.into_iter().skip(1) {
        let peer = stage.open(&victim).await;
        let pairs = nears.iter().zip(&fars);
        let workers: Vec<_> =
            pairs.map(|(near, far)| stage.worker(&peer, near, far.clone()).by(DEADLINE)).collect();
        let ends = ends(&workers, moment_ms, || victim.stop()).await;
        let is_fine =
            |end: &End| matches!(end.kind, ErrorKind::Expired | ErrorKind::Lost) && end.is_honest();
        assert!(ends.iter().all(is_fine), "{ends:?}");
        assert!(ends.iter().any(|end| end.kind == ErrorKind::Expired && end.is_open()));
        nears.iter().for_each(|near| fill(near, &bytes));
        beside.round(&bytes).await.expect("another peer goes on");
        victim.go_on();
        pause(200).await;
        assert!(nears.iter().all(|near| contents(near) == bytes), "a peer writes here");
    }
    // Neither does it write its own any more, once it has taken that back.
    victim.take_back();
    let number = WORKERS - 1;
    victim.ask(&format!("fill {number} 5"));
    for near in nears {
        stage.unregister(near).await;
    }
    assert_eq!(victim.ask(&format!("check {number} 5")), "same");
}

#[test]
fn a_peer_stands_still_whose_vram_we_write_by_descriptors() {
    run(holder_is_stopped(Means::Descriptor));
}

#[test]
fn a_peer_stands_still_whose_vram_we_write_by_handles() {
    run(holder_is_stopped(Means::Handle));
}

#[test]
fn a_cancelled_write_to_a_peer_that_stands_still_gives_its_memory_back() {
    run(async {
        for means in BOTH {
            let (stage, mut victim) = (Stage::new(), Child::start());
            let peer = stage.open(&victim).await;
            let worker = stage.worker(&peer, &stage.near(means), victim.shown(means));
            worker.round(&pattern(1, LEN)).await.expect("a peer");
            victim.stop();
            let pages = pages(PAGES, LEN / PAGES);
            let transfer = stage.engine.transfer(write(&peer, &worker.near, &worker.far, &pages));
            pause(20).await;
            let outcome = in_time(transfer.cancel()).await;
            let error = outcome.statuses()[0].as_ref().expect_err("cancelled");
            assert_eq!((error.kind(), error.landed()), (ErrorKind::Cancelled, Landed::Maybe));
            let receipt = *outcome.receipt();
            assert_eq!((receipt.local(), receipt.remote()), (Proof::Quiet, Proof::Unproven));
            assert!(receipt.took() < SECONDS && outcome.into_leases().into_iter().all(shared));
            given_back(&stage, worker.near, &victim, means).await;
            let (peer, near) = (stage.open(&victim).await, stage.near(means));
            let worker = stage.worker(&peer, &near, victim.shown(means));
            worker.round(&pattern(2, LEN)).await.expect("it is met again");
        }
    });
}

/// Memory goes at once, unless a peer that stands still has it open by a handle: then as soon as
/// that goes on. What it has begun shows nowhere.
async fn given_back(stage: &Stage, near: Region, victim: &Child, means: Means) {
    fill(&near, &pattern(3, LEN));
    let mut unregistered = std::pin::pin!(stage.engine.unregister(near));
    let early = tokio::time::timeout(Duration::from_millis(300), &mut unregistered).await;
    assert_eq!(early.is_ok(), matches!(means, Means::Descriptor));
    let next = stage.near(means);
    fill(&next, &pattern(4, LEN));
    victim.go_on();
    if early.is_err() {
        in_time(unregistered).await.expect("quiet");
    }
    pause(200).await;
    assert!(contents(&next) == pattern(4, LEN), "a peer writes here");
    stage.unregister(next).await;
}
