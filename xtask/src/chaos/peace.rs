//! What the agents hold when nothing is under way: the same after the load as before it.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::agent::{Agent, Silence};
use super::player::{Plan, round};
use super::seat::Seat;
use super::{Arena, PLAYERS, Way, guest};

/// Connections close and threads end in the background.
const SETTLE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(100);
/// What a heap may keep of busier times.
const HEAP_SLACK_KIB: u64 = 32 << 10;

const REGIONS: usize = 4;

/// What a process holds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Held {
    descriptors: u64,
    threads: u64,
    mappings: u64,
    anonymous_kib: u64,
    /// The kernel's, for RDMA.
    queue_pairs: u64,
    memory_regions: u64,
    /// Of requesters, which did not come back.
    leases: u64,
    /// Of owners, which their pools don't hand out.
    blocks: u64,
}

impl Held {
    fn of(usage: &Value, (queue_pairs, memory_regions): (u64, u64)) -> Self {
        let number = |word: &str| usage["held"][word].as_u64().unwrap_or(u64::MAX);
        Self {
            descriptors: number("descriptors"),
            threads: number("threads"),
            mappings: number("mappings"),
            anonymous_kib: number("anonymous_kib"),
            queue_pairs,
            memory_regions,
            leases: usage["leases"].as_u64().unwrap_or(u64::MAX),
            blocks: usage["blocks"].as_u64().unwrap_or(u64::MAX),
        }
    }

    fn max(self, other: Self) -> Self {
        Self {
            descriptors: self.descriptors.max(other.descriptors),
            threads: self.threads.max(other.threads),
            mappings: self.mappings.max(other.mappings),
            anonymous_kib: self.anonymous_kib.max(other.anonymous_kib),
            queue_pairs: self.queue_pairs.max(other.queue_pairs),
            memory_regions: self.memory_regions.max(other.memory_regions),
            leases: self.leases.max(other.leases),
            blocks: self.blocks.max(other.blocks),
        }
    }

    fn fits(&self, before: &Self) -> bool {
        self.descriptors <= before.descriptors
            && self.threads <= before.threads
            && self.mappings <= before.mappings
            && self.anonymous_kib <= before.anonymous_kib + HEAP_SLACK_KIB
            && self.queue_pairs <= before.queue_pairs
            && self.memory_regions <= before.memory_regions
            && self.leases + self.blocks == 0
    }
}

/// Everybody reaches everybody once, so that what stays is there; answers what they hold then.
pub fn warm_up(arena: &Arena) -> Result<Held, String> {
    let seats = arena.seats.len();
    // A guest is slow, and one block makes every connection.
    let is_slow = arena.way() == Way::Rdma;
    let counters = if is_slow { 1 } else { PLAYERS };
    let pairs = (0..seats).flat_map(|from| (0..seats).map(move |to| (from, to)));
    for (from, to) in pairs.filter(|(from, to)| (from == to) == arena.is_local()) {
        for (region, write) in (0..REGIONS).flat_map(|region| [(region, true), (region, false)]) {
            let calm = Plan::calm(from, to, region, write);
            let plan = Plan { count: if is_slow { 1 } else { calm.count }, ..calm };
            for counter in 0..counters {
                round(arena, &plan, counter).map_err(|silence| words(silence, "warming up"))?;
            }
        }
    }
    if let Some(astray) = arena.tally().astray(arena.way().word()) {
        return Err(format!("in times of peace, {astray}"));
    }
    let mut before = Held::default();
    for seat in &arena.seats {
        before = before.max(rest(arena, seat, None)?);
    }
    Ok(before)
}

/// Everything comes to rest: the counters add up, and nothing more is held than `before`.
pub fn settle(arena: &Arena, before: &Held) -> Result<String, String> {
    let mut after = Held::default();
    for (number, seat) in arena.seats.iter().enumerate() {
        seat.signal(Signal::SIGCONT);
        let (agent, incarnation) = seat.agent();
        // Blocks of which nobody knows whether they are quiet are quiet behind this.
        for region in 0..REGIONS {
            ask(&agent, json!({ "do": "renew", "region": region }))?;
        }
        let counters = ask(&agent, json!({ "do": "usage" }))?["counters"].take();
        if let Some(wrong) = arena.ledger().check(number, incarnation, &counters) {
            return Err(format!("{}: {wrong}", seat.name));
        }
    }
    for seat in &arena.seats {
        ask(&seat.agent().0, json!({ "do": "forget" }))?;
    }
    for seat in &arena.seats {
        let held = rest(arena, seat, Some(before))?;
        if !held.fits(before) {
            return Err(format!("{} holds {held:?}; before, {before:?}", seat.name));
        }
        after = after.max(held);
    }
    Ok(format!("at rest: {}, before: {}", shown(&after), shown(before)))
}

/// What an agent holds once its connections are closed and it has come to rest.
fn rest(arena: &Arena, seat: &Seat, before: Option<&Held>) -> Result<Held, String> {
    let (agent, _) = seat.agent();
    ask(&agent, json!({ "do": "forget" }))?;
    ask(&agent, json!({ "do": "check" }))?;
    let start = Instant::now();
    let mut last = None;
    loop {
        let held = Held::of(&ask(&agent, json!({ "do": "usage" }))?, verbs(arena, agent.pid())?);
        let is_steady = last.replace(held) == Some(held);
        let is_settled = before.map_or(is_steady, |before| held.fits(before));
        if is_settled || start.elapsed() > SETTLE {
            return Ok(held);
        }
        std::thread::sleep(PAUSE);
    }
}

/// Queue pairs and memory regions of a process.
fn verbs(arena: &Arena, pid: u32) -> Result<(u64, u64), String> {
    match arena.way() {
        Way::Rdma => Ok((guest::kept("qp", pid)?, guest::kept("mr", pid)?)),
        Way::Local | Way::Host | Way::Tcp => Ok((0, 0)),
    }
}

fn ask(agent: &Agent, order: Value) -> Result<Value, String> {
    agent.ask(order).map_err(|silence| words(silence, "at the end"))
}

fn words(silence: Silence, when: &str) -> String {
    match silence {
        Silence::Killed => format!("an agent is gone {when}"),
        Silence::Wrong(what) => what,
    }
}

fn shown(held: &Held) -> String {
    let verbs = match (held.queue_pairs, held.memory_regions) {
        (0, 0) => String::new(),
        (pairs, regions) => format!(", {pairs} queue pairs, {regions} memory regions"),
    };
    format!(
        "{} descriptors, {} threads, {} mappings, {:.1} MiB of heap{verbs}",
        held.descriptors,
        held.threads,
        held.mappings,
        held.anonymous_kib as f64 / 1024.0
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_before_does_not_fit_and_a_heap_has_slack() {
        let before = Held {
            descriptors: 9,
            threads: 4,
            mappings: 3,
            anonymous_kib: 100,
            queue_pairs: 2,
            memory_regions: 5,
            leases: 0,
            blocks: 0,
        };
        assert!(before.fits(&before));
        assert!(Held { anonymous_kib: 101 + HEAP_SLACK_KIB / 2, ..before }.fits(&before));
        for more in [
            Held { descriptors: 10, ..before },
            Held { threads: 5, ..before },
            Held { mappings: 4, ..before },
            Held { anonymous_kib: 101 + HEAP_SLACK_KIB, ..before },
            Held { queue_pairs: 3, ..before },
            Held { memory_regions: 6, ..before },
            Held { leases: 1, ..before },
            Held { blocks: 1, ..before },
        ] {
            assert!(!more.fits(&before), "{more:?}");
        }
        assert!(!Held::of(&Value::Null, (0, 0)).fits(&before));
    }
}
