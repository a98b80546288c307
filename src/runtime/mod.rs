//! Threads of their own for actors, futures and pumps: usable by itself, from any executor.
//!
//! A [`Runtime`] owns its shards: threads inside a NUMA node, each with a loop that polls, spins
//! for a while, and parks. What is spawned on a shard stays there. A message to it is a queue
//! operation, and a system call only if the shard sleeps.

mod actor;
mod builder;
mod clock;
mod driver;
mod inbox;
mod placement;
mod pump;
mod seam;
mod shard;
mod task;

use std::any::type_name;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

pub use kvrail_reactors::doorbell::Doorbell;

use self::actor::Birth;
pub use self::actor::{
    Actor, ActorError, ActorPanic, Address, CastError, Context, Exit, Join, RestartPolicy,
};
pub use self::builder::RuntimeBuilder;
use self::clock::Clock;
pub use self::driver::Driver;
pub use self::inbox::SendError;
pub(crate) use self::inbox::inbox;
pub use self::placement::{ShardPlacement, Shards};
use self::pump::Seat;
pub use self::pump::{Pump, PumpAddress, PumpContext};
use self::seam::Executor;
pub use self::shard::Idle;
#[cfg(any(test, feature = "sim"))]
pub(crate) use self::shard::Step;
use self::shard::{Command, ShardParts, Stop};
pub(crate) use self::shard::{Shard, is_shard};
use self::task::caught;
use crate::limits::{SHARD_COMMANDS, STOP_GRACE};
use crate::{Error, Result};

/// A running set of shards. Clones are the same runtime; the last one's drop stops it, and so may
/// block its thread like [`Runtime::stop`]: on an async executor, stop where blocking is allowed.
#[derive(Clone)]
pub struct Runtime(Arc<Owner>);

struct Owner {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    runtime: u64,
    driver: Driver,
    shards: Vec<Handle>,
    placements: Vec<ShardPlacement>,
    stop: Arc<Stop>,
    clock: Clock,
    drain: Duration,
    mailbox: usize,
    /// Threads that have not ended yet.
    running: Mutex<usize>,
    ended: Condvar,
}

/// A shard, from outside.
struct Handle {
    commands: inbox::Sender<Command>,
    doorbell: Arc<Doorbell>,
}

impl Runtime {
    /// A runtime with the defaults, to be changed.
    pub fn builder() -> RuntimeBuilder {
        RuntimeBuilder::new()
    }

    /// How many shards.
    pub fn shards(&self) -> usize {
        self.0.shared.shards.len()
    }

    /// What the shards wait on: [`Driver::Uring`] or [`Driver::Epoll`].
    pub fn driver(&self) -> Driver {
        self.0.shared.driver
    }

    /// Where each shard runs, by its index.
    pub fn placement(&self) -> &[ShardPlacement] {
        &self.0.shared.placements
    }

    /// Moves `actor` to a shard.
    ///
    /// # Errors
    /// Refused for a shard that isn't there, Busy when the shard has too much to start, Closed
    /// after the runtime's stop.
    pub fn spawn_actor<A: Actor + Send>(&self, shard: usize, actor: A) -> Result<Address<A>> {
        self.spawn_actor_with(shard, move || actor)
    }

    /// Makes an actor on its shard, so that it need not be `Send`.
    ///
    /// # Errors
    /// As [`Runtime::spawn_actor`]. A factory that panics closes the address.
    pub fn spawn_actor_with<A: Actor>(
        &self,
        shard: usize,
        factory: impl FnOnce() -> A + Send + 'static,
    ) -> Result<Address<A>> {
        let mut factory = Some(factory);
        // The policy allows no second life, so the factory is there when it is asked for.
        let make = move || factory.take().map(|make| make()).expect("made once");
        self.spawn_supervised(shard, make, RestartPolicy::NEVER)
    }

    /// Makes an actor on its shard, and makes it anew after a panic; its address and its queued
    /// messages stay, the message that made it panic is gone.
    ///
    /// # Errors
    /// As [`Runtime::spawn_actor`].
    pub fn spawn_supervised<A: Actor>(
        &self,
        shard: usize,
        factory: impl FnMut() -> A + Send + 'static,
        policy: RestartPolicy,
    ) -> Result<Address<A>> {
        let (birth, address) = Birth::new(shard, self.0.shared.mailbox, policy, factory);
        self.command(shard, Box::new(move |shard| birth.on(shard)))?;
        Ok(address)
    }

    /// Runs the future that `factory` makes on a shard; it need not be `Send`. The future is
    /// dropped, and its [`Join`] is Closed, if the runtime stops first.
    ///
    /// # Errors
    /// As [`Runtime::spawn_actor`].
    pub fn spawn_on<F, Fut>(&self, shard: usize, factory: F) -> Result<Join<Fut::Output>>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future + 'static,
        Fut::Output: Send + 'static,
    {
        let (sender, join) = Join::channel();
        let start = move |shard: &mut Shard| {
            let (index, on_panic) = (shard.index(), shard.on_panic().clone());
            shard.spawn(async move {
                let result = caught(async { factory().await }).await;
                if let Err(text) = &result {
                    on_panic.report(ActorPanic::new(index, type_name::<Fut>(), text.clone()));
                }
                let _ = sender.send(result); // nobody may wait for it
            });
        };
        self.command(shard, Box::new(start))?;
        Ok(join)
    }

    /// Makes a pump on a shard, into its hot loop.
    ///
    /// # Errors
    /// As [`Runtime::spawn_actor`]. A factory that panics closes the address.
    pub fn spawn_pump<P: Pump>(
        &self,
        shard: usize,
        factory: impl FnOnce(PumpContext<P::Message>) -> P + Send + 'static,
    ) -> Result<PumpAddress<P::Message>> {
        self.try_spawn_pump(shard, |context| Some(factory(context)))
    }

    /// Like [`Runtime::spawn_pump`], for a pump that may fail to start on its shard: then its
    /// factory returns `None`, and whoever sends to it gets Closed.
    ///
    /// # Errors
    /// As [`Runtime::spawn_pump`].
    pub fn try_spawn_pump<P: Pump>(
        &self,
        shard: usize,
        factory: impl FnOnce(PumpContext<P::Message>) -> Option<P> + Send + 'static,
    ) -> Result<PumpAddress<P::Message>> {
        let doorbell = self.handle(shard)?.doorbell.clone();
        let (sender, receiver) = inbox(self.0.shared.mailbox, doorbell.clone());
        let address = PumpAddress::new(sender, doorbell.clone());
        let context = PumpContext {
            shard,
            doorbell,
            address: address.clone(),
            clock: self.0.shared.clock.clone(),
        };
        let seat = address.clone();
        let start = move |shard: &mut Shard| {
            if let Some(pump) = factory(context) {
                shard.seat(Box::new(Seat::new(pump, receiver, &seat)));
            }
        };
        self.command(shard, Box::new(start))?;
        Ok(address)
    }

    /// Monotonic time in nanoseconds since the runtime was built, as its pumps see it.
    pub fn now_ns(&self) -> u64 {
        self.0.shared.clock.now_ns()
    }

    /// The clock of the shards.
    pub(crate) fn clock(&self) -> Clock {
        self.0.shared.clock.clone()
    }

    /// Stops every shard: takes nothing new, lets actors and pumps finish for the drain time, drops
    /// what is left, and waits for the threads. Who still waits for a reply gets Closed. Returns
    /// whether all threads ended; false names them in a warning: something blocks them.
    ///
    /// Blocks at most for the drain time plus [`STOP_GRACE`]; called on a thread of this runtime it
    /// only asks, and returns false. Every further call waits likewise.
    pub fn stop(&self) -> bool {
        self.0.stop()
    }

    fn command(&self, shard: usize, command: Command) -> Result<()> {
        self.handle(shard)?.commands.send(command).map_err(|error| match error {
            SendError::Full(_) => {
                Error::busy(format!("shard {shard} has {SHARD_COMMANDS} spawns to do: retry later"))
            }
            SendError::Closed(_) => Error::closed("the runtime was stopped"),
        })
    }

    fn handle(&self, shard: usize) -> Result<&Handle> {
        self.0.shared.shards.get(shard).ok_or_else(|| {
            Error::refused(format!("shard {shard}: this runtime has {}", self.shards()))
        })
    }
}

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runtime").field("placement", &self.placement()).finish_non_exhaustive()
    }
}

impl Owner {
    fn start(
        &self,
        name: String,
        seed: ShardParts,
        started: mpsc::Sender<Result<usize>>,
    ) -> Result<JoinHandle<()>> {
        let running = Running::new(self.shared.clone());
        let body = move || {
            let shared = running;
            run_shard(&shared.0.placements[seed.index], seed, started);
        };
        thread::Builder::new().name(name).spawn(body).map_err(|error| {
            Error::refused("no thread for a shard: raise `ulimit -u` or the pids limit")
                .with_source(error)
        })
    }

    fn stop(&self) -> bool {
        let shared = &self.shared;
        let drain_ns = u64::try_from(shared.drain.as_nanos()).unwrap_or(u64::MAX);
        shared.stop.ask(shared.clock.now_ns().saturating_add(drain_ns));
        shared.shards.iter().for_each(|shard| shard.doorbell.ring());
        if shard::is_shard_of(shared.runtime) {
            return false;
        }
        let left = shared.wait(shared.drain.saturating_add(STOP_GRACE));
        if left > 0 {
            tracing::warn!(left, "shards did not end: something blocks their threads");
            return false;
        }
        let threads = std::mem::take(&mut *lock(&self.threads));
        threads.into_iter().for_each(|thread| drop(thread.join()));
        true
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    /// Waits until all threads ended, at most for `patience`; returns how many did not.
    fn wait(&self, patience: Duration) -> usize {
        let running = lock(&self.running);
        let waited = self.ended.wait_timeout_while(running, patience, |running| *running > 0);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// Counts a thread in until it ends, however it does.
struct Running(Arc<Shared>);

impl Running {
    fn new(shared: Arc<Shared>) -> Self {
        *lock(&shared.running) += 1;
        Self(shared)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        *lock(&self.0.running) -= 1;
        self.0.ended.notify_all();
    }
}

/// The body of a shard's thread.
fn run_shard(placement: &ShardPlacement, seed: ShardParts, started: mpsc::Sender<Result<usize>>) {
    let pinned = seam::pin(&placement.cpus).map_err(|error| {
        Error::refused(format!("the kernel does not let a thread run on CPUs {}", placement.cpus))
            .with_source(error)
    });
    let executor = match pinned.and_then(|()| Executor::new(seed.driver)) {
        Ok(executor) => executor,
        Err(error) => return drop(started.send(Err(error))),
    };
    let index = seed.index;
    // Outside of what the executor owns: should it panic, waiters still learn that all is over.
    let mut shard = Shard::new(seed);
    let _ = started.send(Ok(1));
    drop(started);
    let ran = catch_unwind(AssertUnwindSafe(|| executor.run(shard.run())));
    if ran.is_err() {
        tracing::error!(shard = index, "the executor panicked; everything on the shard ends");
    }
    shard.clear();
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
