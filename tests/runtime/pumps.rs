//! Pumps: pushes wake a parked shard and none is lost, rings of a foreign source wake it too,
//! panics stay inside, a stop waits until they are quiet.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};

use kvrail::ErrorKind;
use kvrail::runtime::{Doorbell, Pump, PumpContext, SendError};

use super::*;

/// Counts and sums what it gets, and reports each sum; quiet when told.
struct Summer {
    sum: u64,
    report: mpsc::Sender<u64>,
    quiet: Arc<AtomicBool>,
}

impl Pump for Summer {
    type Message = u64;

    fn handle(&mut self, number: u64) {
        assert!(number != u64::MAX, "told to");
        self.sum += number;
        let _ = self.report.send(self.sum);
    }

    fn poll(&mut self, _: u64) -> usize {
        0
    }

    fn arm(&mut self, _: u64) -> bool {
        true
    }

    fn stopping(&mut self, _: u64) -> bool {
        self.quiet.load(Ordering::Relaxed)
    }
}

type Reports = mpsc::Receiver<u64>;

/// A factory, what its pump reports, and the switch that makes it quiet.
fn summer() -> (impl FnOnce(PumpContext<u64>) -> Summer + Send, Reports, Arc<AtomicBool>) {
    let (report, reports) = mpsc::channel();
    let quiet = Arc::new(AtomicBool::new(true));
    let told = quiet.clone();
    (move |_: PumpContext<u64>| Summer { sum: 0, report, quiet: told }, reports, quiet)
}

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn a_push_wakes_a_parked_shard() {
    let runtime = runtime();
    let (factory, reports, _) = summer();
    let pump = runtime.spawn_pump(0, factory).unwrap();
    for turn in 1..=200 {
        pump.send(1).unwrap();
        assert_eq!(reports.recv_timeout(PATIENCE), Ok(turn));
        if turn % 4 == 0 {
            std::thread::sleep(Duration::from_millis(1)); // long enough to park
        }
    }
}

#[test]
fn no_push_from_many_threads_is_lost() {
    const THREADS: u64 = 4;
    const EACH: u64 = 5000;
    for idle in [Idle::Event, Idle::Hybrid { budget: Duration::from_micros(20) }, Idle::Spin] {
        let runtime = builder().idle(idle).mailbox(64).build().unwrap();
        let (factory, reports, _) = summer();
        let pump = runtime.spawn_pump(1, factory).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                let pump = pump.clone();
                scope.spawn(move || {
                    for _ in 0..EACH {
                        while let Err(SendError::Full(_)) = pump.send(1) {
                            std::thread::yield_now();
                        }
                    }
                });
            }
        });
        let last = THREADS * EACH;
        let sums: Vec<u64> =
            (0..last).map(|_| reports.recv_timeout(PATIENCE).expect("a lost push")).collect();
        assert_eq!(sums.last(), Some(&last), "{idle:?}");
    }
}

/// Counts completions of a foreign source that rings the eventfd as a ring's completions do.
struct Listener {
    source: Arc<AtomicU64>,
    seen: u64,
    report: mpsc::Sender<u64>,
}

impl Pump for Listener {
    type Message = ();

    fn handle(&mut self, _: ()) {}

    fn poll(&mut self, _: u64) -> usize {
        let now = self.source.load(Ordering::Acquire);
        let new = now - self.seen;
        if new > 0 {
            self.seen = now;
            let _ = self.report.send(now);
        }
        new as usize
    }

    fn arm(&mut self, _: u64) -> bool {
        self.source.load(Ordering::Acquire) == self.seen
    }

    fn stopping(&mut self, _: u64) -> bool {
        true
    }
}

#[test]
fn a_completion_source_wakes_a_parked_shard_through_the_eventfd() {
    let runtime = runtime();
    let source = Arc::new(AtomicU64::new(0));
    let (report, reports) = mpsc::channel();
    let (bells, bell) = mpsc::channel::<Arc<Doorbell>>();
    let inside = source.clone();
    let _pump = runtime
        .spawn_pump(0, move |context: PumpContext<()>| {
            bells.send(context.doorbell.clone()).unwrap();
            Listener { source: inside, seen: 0, report }
        })
        .unwrap();
    let doorbell = bell.recv_timeout(PATIENCE).unwrap();
    for turn in 1..=100 {
        if turn % 4 == 0 {
            std::thread::sleep(Duration::from_millis(1)); // long enough to park
        }
        source.store(turn, Ordering::Release);
        doorbell.ring();
        assert_eq!(reports.recv_timeout(PATIENCE), Ok(turn));
    }
}

#[test]
fn several_pumps_and_actors_share_a_shard() {
    let runtime = runtime();
    let pumps: Vec<_> = (0..3)
        .map(|_| {
            let (factory, reports, _) = summer();
            (runtime.spawn_pump(0, factory).unwrap(), reports)
        })
        .collect();
    let adder = runtime.spawn_actor(0, Adder::default()).unwrap();
    for turn in 1..=50 {
        for (pump, reports) in &pumps {
            pump.send(2).unwrap();
            assert_eq!(reports.recv_timeout(PATIENCE), Ok(2 * turn));
        }
        assert_eq!(block_on(adder.call(Ask::Add(1))), Ok(vec![turn]));
    }
}

#[test]
fn a_pump_that_panics_takes_nobody_with_it() {
    let (heard, panics) = mpsc::channel();
    let runtime = builder().on_panic(move |panic| heard.send(panic).unwrap()).build().unwrap();
    let (factory, _reports, _) = summer();
    let victim = runtime.spawn_pump(0, factory).unwrap();
    let (factory, reports, _) = summer();
    let neighbour = runtime.spawn_pump(0, factory).unwrap();
    victim.send(u64::MAX).unwrap();
    let panic = panics.recv_timeout(PATIENCE).unwrap();
    assert_eq!((panic.shard, &*panic.message), (0, "told to"));
    assert!(panic.actor.ends_with("Summer"));
    eventually("its address is closed", || matches!(victim.send(1), Err(SendError::Closed(1))));
    neighbour.send(1).unwrap();
    assert_eq!(reports.recv_timeout(PATIENCE), Ok(1));
}

/// Panics wherever it is told.
struct Rude(&'static str);

impl Pump for Rude {
    type Message = ();

    fn handle(&mut self, _: ()) {}

    fn poll(&mut self, _: u64) -> usize {
        assert!(self.0 != "poll", "rude in poll");
        0
    }

    fn arm(&mut self, _: u64) -> bool {
        assert!(self.0 != "arm", "rude in arm");
        true
    }

    fn stopping(&mut self, _: u64) -> bool {
        assert!(self.0 != "stopping", "rude in stopping");
        true
    }
}

impl Drop for Rude {
    fn drop(&mut self) {
        assert!(self.0 != "drop", "rude in drop");
    }
}

#[test]
fn a_panic_anywhere_in_a_pump_is_reported_once() {
    for place in ["factory", "poll", "arm", "stopping", "drop"] {
        let (heard, panics) = mpsc::channel();
        let runtime = builder().on_panic(move |panic| heard.send(panic).unwrap()).build().unwrap();
        let factory = move |_: PumpContext<()>| {
            assert!(place != "factory", "rude in factory");
            Rude(place)
        };
        let pump = runtime.spawn_pump(0, factory).unwrap();
        if matches!(place, "stopping" | "drop") {
            pump.stop();
        }
        assert_eq!(panics.recv_timeout(PATIENCE).unwrap().message, format!("rude in {place}"));
        assert_eq!(soon(runtime.spawn_on(0, || async { 1 }).unwrap()), Ok(1), "the shard lives");
        assert!(runtime.stop());
        assert!(panics.try_recv().is_err());
    }
}

#[test]
fn a_full_inbox_gives_the_message_back() {
    let runtime = builder().mailbox(2).build().unwrap();
    let (factory, reports, _) = summer();
    let (open, gate) = mpsc::channel::<()>();
    let held = runtime.spawn_on(0, move || async move { gate.recv().is_ok() }).unwrap();
    let pump = runtime.spawn_pump(0, factory).unwrap();
    // The shard's thread is held, so nothing is taken out.
    assert_eq!(
        [pump.send(1), pump.send(2), pump.send(4)],
        [Ok(()), Ok(()), Err(SendError::Full(4))]
    );
    open.send(()).unwrap();
    assert_eq!(soon(held), Ok(true));
    assert_eq!([(); 2].map(|()| reports.recv_timeout(PATIENCE)), [Ok(1), Ok(3)]);
}

#[test]
fn a_stop_handles_what_is_queued_and_waits_until_the_pump_is_quiet() {
    let runtime = runtime();
    let (factory, reports, quiet) = summer();
    quiet.store(false, Ordering::Relaxed);
    let pump = runtime.spawn_pump(0, factory).unwrap();
    for _ in 0..100 {
        pump.send(1).unwrap();
    }
    let stopper = std::thread::spawn(move || runtime.stop());
    eventually("the inbox is closed", || matches!(pump.send(0), Err(SendError::Closed(0))));
    assert!(!stopper.is_finished(), "it is not quiet yet");
    quiet.store(true, Ordering::Relaxed);
    assert!(stopper.join().unwrap());
    // Ends because the pump is dropped; the attempts above that were taken added nothing.
    assert_eq!(reports.iter().last(), Some(100));
}

#[test]
fn a_pump_can_be_stopped_alone() {
    let runtime = runtime();
    let (factory, reports, _) = summer();
    let pump = runtime.spawn_pump(0, factory).unwrap();
    pump.send(5).unwrap();
    pump.stop();
    assert_eq!(reports.recv_timeout(PATIENCE), Ok(5));
    assert_eq!(reports.recv_timeout(PATIENCE), Err(mpsc::RecvTimeoutError::Disconnected));
    assert!(matches!(pump.send(1), Err(SendError::Closed(1))));
    let (factory, _, _) = summer();
    let error = runtime.spawn_pump(9, factory).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Refused);
}
