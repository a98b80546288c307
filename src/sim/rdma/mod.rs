//! The RDMA path's world: its state machines as they are, on simulated verbs, with control
//! messages that get lost, come twice, late or out of order. The same seeds, schedules, traces and
//! oracle as for whole engines.

mod memory;
mod process;
mod schedule;
#[cfg(test)]
mod tests;
mod trouble;
mod work;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use self::schedule::Schedule;
use self::world::World;
use super::{Options, Report, words};
use crate::canary;

/// How many happenings a seed has.
pub(super) fn happenings(seed: u64) -> usize {
    Schedule::new(seed, &[]).happenings.len()
}

/// Runs one seed on this thread.
pub(super) fn run(seed: u64, options: &Options) -> Report {
    let mut report = Report::default();
    canary::set(options.canary);
    let schedule = Schedule::new(seed, &options.dropped);
    report.happenings = schedule.happenings.len();
    let world = World::new(seed, schedule, &mut report, options.is_traced);
    let ran = catch_unwind(AssertUnwindSafe(|| world.run()));
    canary::set(None);
    report.failure = match ran {
        Ok(ended) => ended.err(),
        Err(panic) => Some(format!("a panic: {}", words(&*panic))),
    };
    report
}
