//! The loop of one shard: commands, tasks and pumps by polling; when all are idle for their budget
//! it arms the pumps, looks once more, and parks on one doorbell. It decides nothing itself.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kvrail_reactors::doorbell::Doorbell;
use slab::Slab;
use tokio::sync::Notify;

use super::actor::{ActorPanic, OnPanic};
use super::clock::Clock;
use super::driver::Driver;
use super::inbox::{Receiver, may_wait};
use super::pump::{Driven, Turn};
use super::seam::{Executor, Waiter};
use super::task::{Tasks, unwinding};
use crate::limits::{IDLE_BUDGET, SPIN_TURNS, STOP_TICK, TURN_BURST};

/// What a shard does when it finds nothing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Idle {
    /// Polls for ever: the lowest latency, for a whole core.
    Spin,
    /// Polls for `budget`, then parks.
    Hybrid {
        /// How long since the last work, default [`IDLE_BUDGET`].
        budget: Duration,
    },
    /// Parks at once.
    Event,
}

impl Default for Idle {
    fn default() -> Self {
        Self::Hybrid { budget: IDLE_BUDGET }
    }
}

impl Idle {
    /// How long to poll in vain before parking; `None` is for ever.
    fn budget_ns(self) -> Option<u64> {
        match self {
            Self::Spin => None,
            Self::Hybrid { budget } => Some(budget.as_nanos().try_into().unwrap_or(u64::MAX)),
            Self::Event => Some(0),
        }
    }
}

/// Something to do on the shard's thread, with the shard in hand.
pub(crate) type Command = Box<dyn FnOnce(&mut Shard) + Send>;

/// What a shard is made of, before it has a thread.
pub(crate) struct ShardParts {
    pub(crate) index: usize,
    pub(crate) runtime: u64,
    pub(crate) driver: Driver,
    pub(crate) commands: Receiver<Command>,
    pub(crate) doorbell: Arc<Doorbell>,
    pub(crate) stop: Arc<Stop>,
    pub(crate) idle: Idle,
    pub(crate) clock: Clock,
    pub(crate) on_panic: OnPanic,
}

/// When a runtime's shards stop.
#[derive(Debug)]
pub(crate) struct Stop(AtomicU64);

impl Stop {
    const NEVER: u64 = u64::MAX;

    pub(crate) fn new() -> Self {
        Self(AtomicU64::new(Self::NEVER))
    }

    /// Asks every shard to drain and to end by `deadline_ns`; the first asked deadline stands.
    pub(crate) fn ask(&self, deadline_ns: u64) {
        let asked = deadline_ns.min(Self::NEVER - 1);
        let _ = self.0.compare_exchange(Self::NEVER, asked, Ordering::AcqRel, Ordering::Acquire);
    }

    pub(crate) fn deadline_ns(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Acquire)).filter(|deadline| *deadline != Self::NEVER)
    }
}

/// What a shard does next, where the simulator drives it.
#[cfg(any(test, feature = "sim"))]
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It takes another turn.
    Awake,
    /// It sleeps until it is rung, and for so long at most.
    Parked { nap: Option<Duration> },
    /// It has ended.
    Over,
}

thread_local! {
    /// The runtime whose shard this thread is.
    static RUNTIME: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Whether the calling thread is a shard, of any runtime.
pub(crate) fn is_shard() -> bool {
    RUNTIME.get().is_some()
}

/// Whether the calling thread is a shard of `runtime`.
pub(crate) fn is_shard_of(runtime: u64) -> bool {
    RUNTIME.get() == Some(runtime)
}

/// A running shard; lives on its thread.
pub(crate) struct Shard {
    parts: ShardParts,
    tasks: Tasks,
    pumps: Vec<Box<dyn Driven>>,
    actors: Rc<Actors>,
    /// The loop has seen the stop.
    stopping: bool,
}

impl Shard {
    pub(crate) fn new(parts: ShardParts) -> Self {
        RUNTIME.set(Some(parts.runtime));
        Self {
            tasks: Tasks::new(parts.doorbell.clone()),
            pumps: Vec::new(),
            actors: Rc::default(),
            stopping: false,
            parts,
        }
    }

    pub(crate) fn index(&self) -> usize {
        self.parts.index
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.parts.clock
    }

    pub(crate) fn actors(&self) -> &Rc<Actors> {
        &self.actors
    }

    pub(crate) fn on_panic(&self) -> &OnPanic {
        &self.parts.on_panic
    }

    pub(crate) fn spawn(&mut self, future: impl Future<Output = ()> + 'static) {
        self.tasks.spawn(future);
    }

    pub(crate) fn seat(&mut self, pump: Box<dyn Driven>) {
        if self.stopping {
            pump.stop();
        }
        self.pumps.push(pump);
    }

    /// The loop. Ends after the stop, when actors and pumps are drained or the time is up.
    pub(crate) async fn run(&mut self) {
        let waiter = match Executor::waiter(self.parts.driver, self.parts.doorbell.clone()) {
            Ok(waiter) => waiter,
            Err(error) => return tracing::error!(shard = self.index(), %error, "no doorbell"),
        };
        let budget_ns = self.parts.idle.budget_ns();
        let mut busy_ns = self.parts.clock.now_ns();
        let mut vain = 0u32;
        loop {
            let now_ns = self.parts.clock.now_ns();
            let done = self.turn(now_ns);
            if self.is_over(now_ns) {
                return;
            }
            if done > 0 {
                (busy_ns, vain) = (now_ns, 0);
            } else if budget_ns.is_some_and(|budget| now_ns.saturating_sub(busy_ns) >= budget) {
                if let Err(error) = self.park(&waiter, now_ns).await {
                    return tracing::error!(shard = self.index(), %error, "can't park");
                }
                busy_ns = self.parts.clock.now_ns();
            } else {
                vain = vain.wrapping_add(1);
                if vain.is_multiple_of(SPIN_TURNS) {
                    std::thread::yield_now();
                }
                std::hint::spin_loop();
            }
        }
    }

    /// One turn of the loop for the simulator, which has the clock and the threads.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn step(&mut self, now_ns: u64) -> Step {
        self.parts.doorbell.wake();
        let done = self.turn(now_ns);
        if self.is_over(now_ns) {
            return Step::Over;
        }
        if done > 0 || !self.may_park(now_ns) {
            return Step::Awake;
        }
        Step::Parked { nap: self.nap(now_ns) }
    }

    /// Whether somebody has rung since it parked.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn is_rung(&self) -> bool {
        !self.parts.doorbell.is_sleeping()
    }

    /// Drops every task and pump, whatever it waits for.
    pub(crate) fn clear(&mut self) {
        let (shard, on_panic) = (self.parts.index, &self.parts.on_panic);
        self.tasks.clear(|text| on_panic.report(ActorPanic::new(shard, "task", text)));
        for pump in self.pumps.drain(..) {
            let name = pump.name();
            if let Err(text) = unwinding(|| drop(pump)) {
                on_panic.report(ActorPanic::new(shard, name, text));
            }
        }
    }

    fn turn(&mut self, now_ns: u64) -> usize {
        let commands = self.run_commands();
        let (shard, on_panic) = (self.parts.index, &self.parts.on_panic);
        let tasks = self.tasks.run(|text| on_panic.report(ActorPanic::new(shard, "task", text)));
        commands + tasks + self.drive_pumps(now_ns)
    }

    fn run_commands(&mut self) -> usize {
        for done in 0..TURN_BURST {
            let Some(command) = self.parts.commands.receive() else { return done };
            if let Err(text) = unwinding(|| command(self)) {
                self.report("spawn", text);
            }
        }
        TURN_BURST
    }

    fn drive_pumps(&mut self, now_ns: u64) -> usize {
        let mut done = 0;
        let mut index = 0;
        while let Some(pump) = self.pumps.get_mut(index) {
            match unwinding(|| pump.turn(now_ns)) {
                Ok(Turn::Did(did)) => {
                    done += did;
                    index += 1;
                    continue;
                }
                Ok(Turn::Quiet) => self.unseat(index, None),
                Err(text) => self.unseat(index, Some(text)),
            }
            done += 1;
        }
        done
    }

    fn unseat(&mut self, index: usize, panic: Option<String>) {
        let pump = self.pumps.swap_remove(index);
        let name = pump.name();
        let dropped = unwinding(|| drop(pump)).err();
        panic.into_iter().chain(dropped).for_each(|text| self.report(name, text));
    }

    fn report(&self, actor: &'static str, text: String) {
        self.parts.on_panic.report(ActorPanic::new(self.parts.index, actor, text));
    }

    /// Whether the loop is to end.
    fn is_over(&mut self, now_ns: u64) -> bool {
        let Some(deadline_ns) = self.parts.stop.deadline_ns() else { return false };
        if !self.stopping {
            self.stopping = true;
            self.parts.commands.close();
            self.actors.stop();
            self.pumps.iter().for_each(|pump| pump.stop());
            return false;
        }
        now_ns >= deadline_ns
            || (self.actors.is_empty() && self.pumps.is_empty() && self.parts.commands.is_empty())
    }

    async fn park(&mut self, waiter: &Waiter, now_ns: u64) -> crate::Result<()> {
        if !self.may_park(now_ns) {
            return Ok(());
        }
        let doorbell = self.parts.doorbell.clone();
        let parked = waiter.rung(self.nap(now_ns)).await;
        doorbell.wake();
        doorbell.drain();
        parked
    }

    /// Announces the sleep; `false`, and awake again, where something came meanwhile.
    fn may_park(&mut self, now_ns: u64) -> bool {
        let doorbell = self.parts.doorbell.clone();
        may_wait(&doorbell, || self.is_quiet(now_ns))
    }

    /// For how long to park at most: for ever, unless a pump has a clock or the shard stops.
    fn nap(&self, now_ns: u64) -> Option<Duration> {
        if self.stopping || self.pumps.iter().any(|pump| pump.is_stopping()) {
            return Some(STOP_TICK);
        }
        let first_ns = self.pumps.iter().filter_map(|pump| pump.wake_at_ns()).min()?;
        Some(Duration::from_nanos(first_ns.saturating_sub(now_ns)))
    }

    /// Whether nothing came since the turn that found nothing. Arms the pumps.
    fn is_quiet(&mut self, now_ns: u64) -> bool {
        let stop_is_new = self.parts.stop.deadline_ns().is_some() != self.stopping;
        if stop_is_new || !self.parts.commands.is_empty() || !self.tasks.is_idle() {
            return false;
        }
        for index in 0..self.pumps.len() {
            match unwinding(|| self.pumps[index].arm(now_ns)) {
                Ok(true) => {}
                Ok(false) => return false,
                Err(text) => {
                    self.unseat(index, Some(text));
                    return false;
                }
            }
        }
        true
    }
}

/// The actors that live on a shard, to be asked to drain when it stops.
#[derive(Default)]
pub(crate) struct Actors {
    stops: RefCell<Slab<Arc<Notify>>>,
    stopping: Cell<bool>,
}

impl Actors {
    /// Counts an actor in for as long as the guard lives; `stop` is how it is asked to end.
    pub(crate) fn enter(self: &Rc<Self>, stop: Arc<Notify>) -> Present {
        if self.stopping.get() {
            stop.notify_one();
        }
        let key = self.stops.borrow_mut().insert(stop);
        Present { actors: self.clone(), key }
    }

    fn stop(&self) {
        self.stopping.set(true);
        self.stops.borrow().iter().for_each(|(_, stop)| stop.notify_one());
    }

    fn is_empty(&self) -> bool {
        self.stops.borrow().is_empty()
    }
}

/// An actor is alive.
pub(crate) struct Present {
    actors: Rc<Actors>,
    key: usize,
}

impl Drop for Present {
    fn drop(&mut self) {
        self.actors.stops.borrow_mut().remove(self.key);
    }
}
