//! What befalls a cluster: processes that are killed, or stopped for a while, connections that
//! break, and memory that its owner takes away. Drawn from the seed, one after the other.

use std::time::{Duration, Instant};

use fastrand::Rng;
use nix::sys::signal::Signal;
use serde_json::json;

use super::agent::Silence;
use super::guest::{self, NICS};
use super::relay::Fate;
use super::{Arena, Way};

/// The time between two events of one stream.
const CALM_MAX_MS: u64 = 400;
/// Longer than the agents' progress deadline now and then, mostly shorter.
const STOP_MAX_MS: u64 = 2_000;
/// A NIC sends again by itself for a second or two: some cuts are longer.
const CUT_TO_STOP: u64 = 4;

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Event {
    /// SIGSTOP, and SIGCONT after so many milliseconds.
    Stop { ms: u64 },
    /// SIGKILL; another process takes the name after so many milliseconds.
    Kill { ms: u64 },
    /// Unregisters a region under whatever is under way.
    Renew { region: usize },
    /// Resets connections: one, or all.
    Reset { which: Option<usize> },
    /// Holds connections up.
    Stall { which: Option<usize>, ms: u64 },
    /// Resets a connection for its client; the server gets what was sent after so long.
    Orphan { which: Option<usize>, ms: u64 },
    /// Takes a NIC's wire off the switch for so many milliseconds.
    Cut { nic: usize, ms: u64 },
}

impl Event {
    pub fn draw(rng: &mut Rng, way: Way) -> Self {
        let which = (rng.u32(..4) > 0).then(|| rng.usize(..64));
        let ms = millis(rng);
        match rng.u32(..if way.is_network() { 100 } else { 50 }) {
            50.. if way == Way::Rdma => Self::Cut { nic: rng.usize(..NICS), ms: ms * CUT_TO_STOP },
            0..32 => Self::Stop { ms },
            32..38 => Self::Kill { ms: ms / 10 },
            38..50 => Self::Renew { region: rng.usize(..4) },
            50..68 => Self::Reset { which },
            68..80 => Self::Stall { which, ms },
            _ => Self::Orphan { which, ms: ms / 4 },
        }
    }

    pub fn word(self) -> &'static str {
        match self {
            Self::Stop { .. } => "stops",
            Self::Kill { .. } => "kills",
            Self::Renew { .. } => "regions unregistered in use",
            Self::Reset { .. } => "connections reset",
            Self::Stall { .. } => "connections held up",
            Self::Orphan { .. } => "connections broken on one side",
            Self::Cut { .. } => "wires cut",
        }
    }
}

/// Mostly short.
fn millis(rng: &mut Rng) -> u64 {
    let part = rng.f64();
    1 + (part.powi(6) * STOP_MAX_MS as f64) as u64
}

/// Makes trouble until the time is over.
pub fn make(arena: &Arena, number: u64) {
    let mut rng = Rng::with_seed(arena.seed.wrapping_mul(1_000).wrapping_add(500 + number));
    while arena.is_on() {
        let calm = Duration::from_millis(rng.u64(..CALM_MAX_MS));
        let (seat, event) = (rng.usize(..arena.seats.len()), Event::draw(&mut rng, arena.way()));
        std::thread::sleep(calm);
        match befall(arena, seat, event) {
            Ok(times) => arena.tally().event(event.word(), times),
            Err(what) => arena.accuse(what),
        }
    }
}

/// Lets an event happen; answers how often it did.
fn befall(arena: &Arena, seat: usize, event: Event) -> Result<usize, String> {
    let seat = &arena.seats[seat];
    let late = |ms| Instant::now() + Duration::from_millis(ms);
    match event {
        Event::Stop { ms } => {
            let stopped = seat.agent().0;
            if !stopped.signal(Signal::SIGSTOP) {
                return Ok(0);
            }
            std::thread::sleep(Duration::from_millis(ms));
            // It may have been killed meanwhile.
            stopped.signal(Signal::SIGCONT);
            Ok(1)
        }
        Event::Kill { ms } => {
            let _one_at_a_time = super::lock(&arena.killing);
            seat.agent().0.kill();
            std::thread::sleep(Duration::from_millis(ms));
            seat.replace(&arena.field, &arena.wrongs).map(|()| 1)
        }
        Event::Renew { region } => {
            match seat.agent().0.ask(json!({ "do": "renew", "region": region })) {
                Ok(_) => Ok(1),
                Err(Silence::Killed) => Ok(0),
                Err(Silence::Wrong(what)) => Err(what),
            }
        }
        Event::Reset { which } => Ok(seat.decide(Fate::Reset, which)),
        Event::Stall { which, ms } => Ok(seat.decide(Fate::Hold(late(ms)), which)),
        Event::Orphan { which, ms } => Ok(seat.decide(Fate::Orphan(late(ms)), which)),
        Event::Cut { nic, ms } => guest::cut(nic, Duration::from_millis(ms)).map(|()| 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_draws_the_same_trouble_and_every_kind() {
        let events = |seed, way| {
            let mut rng = Rng::with_seed(seed);
            (0..300).map(|_| Event::draw(&mut rng, way)).collect::<Vec<_>>()
        };
        assert_eq!(events(3, Way::Tcp), events(3, Way::Tcp));
        let words = |way| {
            let mut words: Vec<_> = events(3, way).into_iter().map(Event::word).collect();
            words.sort_unstable();
            words.dedup();
            words
        };
        let anywhere = ["kills", "regions unregistered in use", "stops"];
        assert_eq!(words(Way::Host), anywhere);
        assert_eq!(words(Way::Rdma), [&anywhere[..], &["wires cut"]].concat());
        assert_eq!(words(Way::Tcp).len(), 6);
    }
}
