//! From settings to running shards: what the machine refuses is found out before any thread starts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::time::Duration;

use super::actor::{ActorPanic, OnPanic};
use super::clock::Clock;
use super::driver::{self, Driver};
use super::inbox::inbox;
use super::placement::{self, ShardPlacement, Shards};
use super::shard::{Idle, ShardParts, Stop};
use super::{Handle, Owner, Runtime, Shared, lock, seam};
use crate::limits::{MAILBOX_MESSAGES, SHARD_COMMANDS, STOP_DRAIN};
use crate::topology::Topology;
use crate::{Error, Result};

/// Settings of a [`Runtime`].
#[must_use]
pub struct RuntimeBuilder {
    shards: Shards,
    idle: Idle,
    driver: Driver,
    name: String,
    mailbox: usize,
    drain: Duration,
    on_panic: OnPanic,
}

impl RuntimeBuilder {
    pub(super) fn new() -> Self {
        Self {
            shards: Shards::default(),
            idle: Idle::default(),
            driver: Driver::default(),
            name: "kvrail".into(),
            mailbox: MAILBOX_MESSAGES,
            drain: STOP_DRAIN,
            on_panic: OnPanic::default(),
        }
    }

    /// How many shards, and where; [`Shards::Auto`] by default.
    pub fn shards(mut self, shards: Shards) -> Self {
        self.shards = shards;
        self
    }

    /// What an idle shard does; by default it polls for [`crate::limits::IDLE_BUDGET`], then parks.
    pub fn idle(mut self, idle: Idle) -> Self {
        self.idle = idle;
        self
    }

    /// What the shards wait on; [`Driver::Auto`] by default.
    pub fn driver(mut self, driver: Driver) -> Self {
        self.driver = driver;
        self
    }

    /// Prefix of the threads' names, `kvrail` by default.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Messages that may wait for one actor or pump, [`MAILBOX_MESSAGES`] by default; at least 1.
    pub fn mailbox(mut self, messages: usize) -> Self {
        self.mailbox = messages;
        self
    }

    /// How long a stop lets actors and pumps finish, [`STOP_DRAIN`] by default.
    pub fn drain(mut self, time: Duration) -> Self {
        self.drain = time;
        self
    }

    /// Who hears of panics in actors, pumps and futures, on the shard's thread; by default an
    /// error event of `tracing`.
    pub fn on_panic(mut self, handler: impl Fn(ActorPanic) + Send + Sync + 'static) -> Self {
        self.on_panic = OnPanic(Arc::new(handler));
        self
    }

    /// Starts the shards; returns when each of them runs.
    ///
    /// # Errors
    /// Refused when the placement is impossible, or the system gives no thread or descriptor, or
    /// with [`Driver::Uring`] no io_uring or locked memory; nothing is left running then.
    pub fn build(self) -> Result<Runtime> {
        if self.mailbox == 0 {
            return Err(Error::refused("a mailbox of 0 messages takes none: ask for 1 or more"));
        }
        let placements = placement::place(&Topology::here()?, &self.shards)?;
        let (mut chosen, mut why_not) = self.driver.choose()?;
        let started = self.start(chosen, &placements).or_else(|error| {
            if (self.driver, chosen) != (Driver::Auto, Driver::Uring) {
                return Err(error);
            }
            // The probe was let through and the shards were not: too little memory, say.
            (chosen, why_not) = (Driver::Epoll, Some(error));
            self.start(chosen, &placements)
        });
        let runtime = started?;
        driver::announce(chosen, why_not.as_ref());
        Ok(runtime)
    }

    /// Starts every shard, or none: dropping the owner stops those that did start.
    fn start(&self, driver: Driver, placements: &[ShardPlacement]) -> Result<Runtime> {
        let (shared, seeds) = self.shared(driver, placements.to_vec(), Clock::new())?;
        let owner = Owner { shared, threads: Mutex::default() };
        let (started, starts) = mpsc::channel();
        for (seed, index) in seeds.into_iter().zip(0..) {
            let thread = owner.start(format!("{}-{index}", self.name), seed, started.clone())?;
            lock(&owner.threads).push(thread);
        }
        drop(started);
        let running = starts.iter().sum::<Result<usize>>()?;
        if running < placements.len() {
            return Err(Error::refused("a shard's thread ended while starting"));
        }
        Ok(Runtime(Arc::new(owner)))
    }

    /// Shards without threads, for the simulator to drive.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn detached(
        &self,
        placements: Vec<ShardPlacement>,
        clock: quanta::Clock,
    ) -> Result<(Runtime, Vec<super::Shard>)> {
        let (shared, parts) = self.shared(Driver::Uring, placements, Clock::of(clock))?;
        let owner = Owner { shared, threads: Mutex::default() };
        Ok((Runtime(Arc::new(owner)), parts.into_iter().map(super::Shard::new).collect()))
    }

    fn shared(
        &self,
        driver: Driver,
        placements: Vec<ShardPlacement>,
        clock: Clock,
    ) -> Result<(Arc<Shared>, Vec<ShardParts>)> {
        static RUNTIMES: AtomicU64 = AtomicU64::new(0);
        let runtime = RUNTIMES.fetch_add(1, Ordering::Relaxed);
        let stop = Arc::new(Stop::new());
        let mut shards = Vec::new();
        let mut seeds = Vec::new();
        for index in 0..placements.len() {
            let doorbell = Arc::new(seam::doorbell(driver).map_err(|error| {
                Error::refused("no descriptor for a doorbell: raise `ulimit -n`").with_source(error)
            })?);
            let (sender, commands) = inbox(SHARD_COMMANDS, doorbell.clone());
            shards.push(Handle { commands: sender, doorbell: doorbell.clone() });
            seeds.push(ShardParts {
                index,
                runtime,
                driver,
                commands,
                doorbell,
                stop: stop.clone(),
                idle: self.idle,
                clock: clock.clone(),
                on_panic: self.on_panic.clone(),
            });
        }
        let shared = Shared {
            runtime,
            driver,
            shards,
            placements,
            stop,
            clock,
            drain: self.drain,
            mailbox: self.mailbox,
            running: Mutex::new(0),
            ended: Condvar::new(),
        };
        Ok((Arc::new(shared), seeds))
    }
}
