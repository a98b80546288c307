//! The simulator: whole engines in one thread, on a network, a clock and a schedule that one seed
//! decides, under an oracle that knows every byte. What runs is what production runs: shards and
//! their inboxes, the TCP path, copies, regions, leases, plans and flights; only sockets, threads,
//! time and the control thread are played. The same-host path needs real memory descriptors, and
//! is left to tests with real processes.
//!
//! The RDMA path, which no engine uses yet, has a world of its own in `rdma`.

mod ends;
mod hearing;
mod node;
mod oracle;
mod pattern;
mod process;
mod rdma;
mod schedule;
mod tenancy;
#[cfg(test)]
mod tests;
mod transfer;
mod trouble;
mod work;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::canary;
pub use crate::canary::Canary;
use schedule::Schedule;
use world::World;

/// How a seed is run.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// A mistake to make.
    pub canary: Option<Canary>,
    /// Whether to write a trace.
    pub is_traced: bool,
    /// Happenings of the schedule to leave out, by number.
    pub dropped: Vec<usize>,
    /// Which world.
    pub world: Worlds,
}

/// What is simulated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Worlds {
    /// Whole engines over TCP and in one process.
    #[default]
    Engines,
    /// The RDMA path's state machines, which no engine uses yet, on simulated verbs.
    Rdma,
}

impl Worlds {
    /// The world of this name.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "engines" => Some(Self::Engines),
            "rdma" => Some(Self::Rdma),
            _ => None,
        }
    }
}

/// What a seed did.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Why it failed, if it did.
    pub failure: Option<String>,
    /// Steps that the world made.
    pub steps: u64,
    /// Virtual time that passed, in nanoseconds.
    pub virtual_ns: u64,
    /// Transfers that were asked for, and those of them that succeeded.
    pub transfers: usize,
    /// See above.
    pub succeeded: usize,
    /// How many happenings its schedule has.
    pub happenings: usize,
    /// The trace, a line a happening.
    pub trace: Vec<String>,
}

/// Runs one seed on this thread.
pub fn run(seed: u64, options: &Options) -> Report {
    if options.world == Worlds::Rdma {
        return rdma::run(seed, options);
    }
    canary::set(options.canary);
    let schedule = Schedule::new(seed, &options.dropped);
    let happenings = schedule.happenings.len();
    let mut world = World::new(seed, schedule, options.is_traced);
    let ran = catch_unwind(AssertUnwindSafe(|| world.run()));
    canary::set(None);
    let failure = match ran {
        Ok(Ok(())) => None,
        Ok(Err(what)) => Some(what),
        Err(panic) => Some(format!("a panic: {}", words(&*panic))),
    };
    let report = Report {
        failure,
        steps: world.steps,
        virtual_ns: world.now_ns,
        transfers: world.transfers,
        succeeded: world.succeeded,
        happenings,
        trace: world.trace.take().unwrap_or_default(),
    };
    // A world that broke may break once more when it is taken down.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(world)));
    report
}

/// Leaves happenings out while the seed still fails; returns the numbers left out.
pub fn shrink(seed: u64, options: &Options) -> Vec<usize> {
    let mut dropped = options.dropped.clone();
    let total = match options.world {
        Worlds::Engines => Schedule::new(seed, &[]).happenings.len(),
        Worlds::Rdma => rdma::happenings(seed),
    };
    for number in (0..total).rev().filter(|number| !options.dropped.contains(number)) {
        dropped.push(number);
        let fewer = Options { dropped: dropped.clone(), is_traced: false, ..*options };
        if run(seed, &fewer).failure.is_none() {
            dropped.pop();
        }
    }
    dropped.sort_unstable();
    dropped
}

fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without words").to_owned()
}
