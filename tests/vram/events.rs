//! Transfers between events of the caller's streams: nothing leaves before its kernel has ended,
//! and what waits for a transfer begins behind it.

use std::sync::Arc;
use std::time::Duration;

use kvrail::{
    Access, Batch, CudaEvent, Engine, ErrorKind, Landed, Location, PathKind, Peer, Region,
};
use kvrail_reactors::cuda::Driver;
use kvrail_reactors::cuda::fake::Fake;
use kvrail_reactors::cuda::outside::{EternalVram, Work};

use super::{
    buffer, contents, driver, engine_on, engine_with, fake, fill, open, pages, pattern, read,
    region, run, scattered, write,
};

const LEN: usize = 1 << 20;
const PAGES: usize = 256;
const GPU: Location = Location::Cuda(0);

/// Somebody else's stream on GPU 0, with memory that its kernels compute and where they put it.
struct Caller {
    driver: Arc<dyn Driver>,
    work: Work,
    computed: EternalVram,
    cache: EternalVram,
}

impl Caller {
    fn new(driver: Arc<dyn Driver>) -> Self {
        let vram = || EternalVram::new(driver.clone(), 0, LEN, true).expect("memory");
        let (work, computed, cache) = (Work::new(&driver, 0).expect("a stream"), vram(), vram());
        Self { driver, work, computed, cache }
    }

    fn event(&self) -> CudaEvent {
        self.driver.outside().event(0).expect("an event")
    }

    fn is_complete(&self, event: &CudaEvent) -> bool {
        self.driver.outside().is_complete(event)
    }

    /// Has kernels write these bytes to the cache, long ones where the GPU is real, and an event
    /// behind them.
    fn compute(&mut self, engine: &Engine, bytes: &[u8], event: &CudaEvent) {
        let region = engine.register_vram(self.computed.foreign(), Access::LOCAL).expect("memory");
        fill(&region, bytes);
        // Some 20 ms of an H100's.
        let slow = EternalVram::new(self.driver.clone(), 0, 1 << 24, true).expect("memory");
        for _ in 0..2000 {
            self.work.compute(&slow, &slow, 0).expect("work");
        }
        self.work.compute(&self.computed, &self.cache, 0).expect("work");
        self.work.record(event).expect("an event");
        futures_lite::future::block_on(engine.unregister(region)).expect("quiet");
    }
}

/// Writes the cache's pages to the far region, behind an event, before the kernels are done.
async fn push_behind(a: &Engine, peer: &Peer, caller: &mut Caller, far: &Region) {
    let (bytes, pages, event) =
        (pattern(far.addr(), LEN), pages(PAGES, LEN / PAGES), caller.event());
    let near = a.register_vram(caller.cache.foreign(), Access::READ_WRITE).expect("a region");
    fill(&near, &vec![0; LEN]);
    caller.compute(a, &bytes, &event);
    let mut batch = write(peer, &near, &buffer(far), &pages);
    batch.wait_event(event);
    let mut transfer = a.transfer(batch);
    // Its leases are back where it is over: nothing of it may be kept.
    let early = tokio::time::timeout(Duration::from_millis(30), &mut transfer);
    let is_waiting = early.await.is_err();
    if !super::is_real() {
        assert!(is_waiting, "its kernel is not done");
        assert!(contents(far) == vec![0; LEN], "nothing may have left");
    }
    caller.work.finish().expect("done");
    if is_waiting {
        transfer.await.expect("a write");
    }
    assert!(contents(far) == scattered(&bytes, &pages));
    a.unregister(near).await.expect("quiet");
}

#[test]
fn pages_leave_when_their_kernel_ends_by_every_path() {
    run(async {
        let (ours, theirs) = (driver(), driver());
        let mut caller = Caller::new(ours.clone());
        let a = engine_on(&ours, |builder| builder);
        for far in [Location::Cuda(1), Location::Cpu(None)] {
            let far = region(&a, LEN, far);
            push_behind(&a, &a.local(), &mut caller, &far).await;
        }
        for (is_on, path) in [(true, PathKind::Host), (false, PathKind::Tcp)] {
            let same_host = |builder: kvrail::EngineBuilder| builder.same_host(is_on);
            let (a, b) = (engine_on(&ours, same_host), engine_on(&theirs, same_host));
            let peer = open(&a, &b, path).await;
            push_behind(&a, &peer, &mut caller, &region(&b, LEN, Location::Cuda(1))).await;
        }
    });
}

#[test]
fn host_memory_stands_behind_an_event_too() {
    run(async {
        let fake = fake();
        let (engine, mut caller) = (engine_with(&fake), Caller::new(fake.clone()));
        let host = || region(&engine, LEN, Location::Cpu(None));
        let (near, far, event) = (host(), host(), caller.event());
        caller.work.record(&event).expect("an event");
        fill(&near, &pattern(1, LEN));
        let mut batch = write(&engine.local(), &near, &buffer(&far), &pages(PAGES, LEN / PAGES));
        batch.wait_event(event);
        let mut transfer = engine.transfer(batch);
        let early = tokio::time::timeout(Duration::from_millis(30), &mut transfer).await;
        assert!(early.is_err() && contents(&far) == vec![0; LEN]);
        caller.work.finish().expect("done");
        transfer.await.expect("a write");
        assert!(contents(&far) == scattered(&contents(&near), &pages(PAGES, LEN / PAGES)));
    });
}

/// Behind an event on a stream, nobody else waits.
#[test]
fn other_transfers_pass_one_that_waits() {
    run(async {
        let fake = fake();
        let (engine, mut caller) = (engine_with(&fake), Caller::new(fake.clone()));
        let regions = [(); 4].map(|()| region(&engine, LEN, GPU));
        let event = caller.event();
        caller.work.record(&event).expect("an event");
        let pages = pages(PAGES, LEN / PAGES);
        let mut batch = write(&engine.local(), &regions[0], &buffer(&regions[1]), &pages);
        batch.wait_event(event);
        let waiting = engine.transfer(batch);
        let batch = write(&engine.local(), &regions[2], &buffer(&regions[3]), &pages);
        engine.transfer(batch).await.expect("a write");
        caller.work.finish().expect("done");
        waiting.await.expect("a write");
    });
}

/// What is recorded behind the copies is there before they end, and a stream that waits for it goes
/// on behind them.
#[test]
fn an_event_is_recorded_behind_the_copies_of_one_gpu() {
    run(async {
        let fake = fake();
        let (engine, mut caller) = (engine_with(&fake), Caller::new(fake.clone()));
        let (near, far) = (region(&engine, LEN, GPU), region(&engine, LEN, GPU));
        let (bytes, done) = (pattern(3, LEN), caller.event());
        fill(&far, &bytes);
        fake.break_with(|faults| faults.is_stalled = true);
        let mut batch = read(&engine.local(), &near, &buffer(&far), &pages(PAGES, LEN / PAGES));
        batch.record_event(done);
        let transfer = engine.transfer(batch);
        transfer.recorded().await;
        assert!(!caller.is_complete(&done), "the copies are not done");
        caller.work.wait(&done).expect("it waits");
        fake.break_with(|faults| faults.is_stalled = false);
        caller.work.finish().expect("done");
        assert!(caller.is_complete(&done));
        transfer.await.expect("a read");
        assert!(contents(&near).len() == bytes.len());
    });
}

#[test]
fn an_event_is_recorded_at_the_end_of_what_others_carry() {
    run(async {
        let (ours, theirs) = (driver(), driver());
        for (is_on, path) in [(true, PathKind::Host), (false, PathKind::Tcp)] {
            let same_host = |builder: kvrail::EngineBuilder| builder.same_host(is_on);
            let (a, b) = (engine_on(&ours, same_host), engine_on(&theirs, same_host));
            let peer = open(&a, &b, path).await;
            let (near, far) = (region(&a, LEN, GPU), region(&b, LEN, GPU));
            let mut caller = Caller::new(ours.clone());
            let (before, done) = (caller.event(), caller.event());
            let mut batch = write(&peer, &near, &buffer(&far), &pages(PAGES, LEN / PAGES));
            batch.wait_event(before).record_event(done);
            let prepared = a.prepare(batch).expect("a batch");
            for _ in 0..3 {
                caller.work.record(&before).expect("an event");
                caller.work.finish().expect("done");
                let transfer = a.post(&prepared);
                let recorded = transfer.recorded();
                transfer.await.expect("a write");
                recorded.await;
                caller.work.wait(&done).expect("it waits");
                caller.work.finish().expect("done");
                assert!(caller.is_complete(&done));
            }
        }
    });
}

/// A batch whose event never completes, until the caller's work is told to end.
fn stuck(
    fake: &Arc<Fake>,
    engine: &Engine,
    peer: &Peer,
    far: &Region,
) -> (Caller, Batch, CudaEvent) {
    let mut caller = Caller::new(fake.clone());
    let (event, done) = (caller.event(), caller.event());
    caller.work.record(&event).expect("an event");
    let near = region(engine, LEN, GPU);
    let mut batch = write(peer, &near, &buffer(far), &pages(PAGES, LEN / PAGES));
    batch.wait_event(event).record_event(done);
    (caller, batch, done)
}

#[test]
fn what_waits_on_the_host_is_cancelled_and_expires_at_once() {
    run(async {
        let fake = fake();
        let (a, b) = (engine_with(&fake), engine_with(&super::fake()));
        let peer = open(&a, &b, PathKind::Host).await;
        let far = region(&b, LEN, GPU);
        let (mut caller, batch, done) = stuck(&fake, &a, &peer, &far);
        let transfer = a.transfer(batch);
        tokio::time::sleep(Duration::from_millis(20)).await;
        let outcome = transfer.cancel().await;
        let failed = outcome.statuses()[0].as_ref().expect_err("cancelled");
        assert_eq!(
            (failed.kind(), failed.landed()),
            (ErrorKind::Cancelled, Landed::No),
            "{failed}"
        );
        assert!(outcome.into_leases().into_iter().all(super::shared));
        assert!(caller.is_complete(&done), "its memory is quiet");
        caller.work.finish().expect("done");
        let (mut caller, mut batch, _) = stuck(&fake, &a, &peer, &far);
        batch.deadline(Duration::from_millis(20));
        let failed = a.transfer(batch).await.expect_err("late");
        assert_eq!(failed.error().kind(), ErrorKind::Expired, "{}", failed.error());
        caller.work.finish().expect("done");
        assert!(contents(&far) == vec![0; LEN]);
    });
}

#[test]
fn what_waits_on_a_stream_ends_behind_the_event() {
    run(async {
        let fake = fake();
        let engine = engine_with(&fake);
        let far = region(&engine, LEN, GPU);
        let (mut caller, batch, done) = stuck(&fake, &engine, &engine.local(), &far);
        let transfer = engine.transfer(batch);
        transfer.recorded().await;
        let mut cancelled = std::pin::pin!(transfer.cancel());
        let early = tokio::time::timeout(Duration::from_millis(50), &mut cancelled).await;
        assert!(early.is_err() && !caller.is_complete(&done), "its memory is in use");
        caller.work.finish().expect("done");
        cancelled.await;
        assert!(caller.is_complete(&done));
    });
}

#[test]
fn gpus_that_refuse_events_fail_the_batch_and_nothing_leaves() {
    run(async {
        for is_local in [true, false] {
            let (fake, theirs) = (fake(), fake());
            let (a, b) = (engine_with(&fake), engine_with(&theirs));
            let (peer, far) = match is_local {
                true => (a.local(), region(&a, LEN, GPU)),
                false => (open(&a, &b, PathKind::Host).await, region(&b, LEN, GPU)),
            };
            // Whoever is to wait for the event can't.
            let (mut caller, batch, done) = stuck(&fake, &a, &peer, &far);
            fake.break_with(|faults| faults.no_wait = true);
            let failed = a.transfer(batch).await.expect_err("no wait");
            assert_eq!(failed.error().kind(), ErrorKind::Refused, "{}", failed.error());
            assert!(contents(&far) == vec![0; LEN]);
            assert!(caller.is_complete(&done));
            fake.break_with(|faults| faults.no_wait = false);
            caller.work.finish().expect("done");
            // Nobody records the one behind: the data is there all the same.
            let (mut caller, batch, _) = stuck(&fake, &a, &peer, &far);
            caller.work.finish().expect("done");
            fake.break_with(|faults| faults.no_record = true);
            let failed = a.transfer(batch).await.expect_err("no record");
            assert_eq!(failed.error().kind(), ErrorKind::Refused, "{}", failed.error());
            assert!(failed.into_outcome().statuses().iter().all(Result::is_ok));
            fake.break_with(|faults| faults.no_record = false);
            // The device goes while it is waited for.
            let (_caller, batch, _) = stuck(&fake, &a, &peer, &far);
            let transfer = a.transfer(batch);
            tokio::time::sleep(Duration::from_millis(20)).await;
            fake.break_with(|faults| faults.is_lost = true);
            let failed = transfer.await.expect_err("it is lost");
            assert_eq!(failed.error().kind(), ErrorKind::Lost, "{}", failed.error());
        }
    });
}

#[test]
fn an_event_of_a_gpu_that_is_not_here_is_refused() {
    run(async {
        let (few, more) = (fake(), Arc::new(Fake::new(5, super::VRAM_BYTES)));
        let engine = engine_with(&few);
        let event = more.outside().event(4).expect("an event");
        let mut batch = Batch::new(&engine.local());
        batch.wait_event(event);
        let failed = engine.transfer(batch).await.expect_err("no such GPU");
        assert!(failed.error().to_string().contains("cuda:4"), "{}", failed.error());
        let engine = kvrail::Engine::builder().vram(false).start().expect("an engine");
        let mut batch = Batch::new(&engine.local());
        batch.record_event(event);
        assert!(engine.transfer(batch).await.is_err());
    });
}
