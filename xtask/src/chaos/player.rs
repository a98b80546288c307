//! One stream of transfers: an owner offers blocks, a requester reaches into them and is
//! interrupted, and the owner is told what is known then.

use std::time::Duration;

use fastrand::Rng;
use serde_json::{Value, json};

use super::Arena;
use super::agent::{Agent, Silence};
use super::seat::Seat;

/// Blocks of one transfer: few where they are large.
const BLOCKS_MAX: [usize; 4] = [8, 8, 3, 3];
/// The longest time until a transfer is interrupted; most are short.
const INTERRUPT_MAX_US: u64 = 30_000;
/// Regions alternate: published ones, and granted ones.
fn is_granted(region: usize) -> bool {
    region % 2 == 1
}

/// What is tried, drawn before anything is known of how it goes.
#[derive(Debug, Clone)]
pub struct Plan {
    pub requester: usize,
    pub owner: usize,
    pub region: usize,
    pub count: usize,
    pub write: bool,
    pub ending: Value,
    /// After how many microseconds the owner takes a grant back while it may be in use.
    pub early_us: Option<u64>,
    /// How it does: `await` the end of the revocation, or `drop` the block.
    pub revoke: &'static str,
    pub pause: Duration,
}

impl Plan {
    pub fn draw(rng: &mut Rng, seats: usize, is_local: bool) -> Self {
        let requester = rng.usize(..seats);
        let other = (requester + rng.usize(1..seats.max(2))) % seats;
        let region = rng.usize(..BLOCKS_MAX.len());
        let after_us = interrupt_us(rng);
        let ending = match rng.u32(..100) {
            0..50 => json!({ "how": "wait" }),
            50..70 => json!({ "how": "cancel", "after_us": after_us }),
            70..85 => json!({ "how": "deadline", "after_us": after_us + 1 }),
            _ => json!({ "how": "drop", "after_us": after_us }),
        };
        let early_us = interrupt_us(rng);
        Self {
            requester,
            owner: if is_local { requester } else { other },
            region,
            count: rng.usize(1..=BLOCKS_MAX[region]),
            write: rng.u32(..5) < 3,
            ending,
            early_us: (rng.bool() && is_granted(region)).then_some(early_us),
            revoke: if rng.bool() { "await" } else { "drop" },
            pause: Duration::from_micros(rng.u64(..3_000)),
        }
    }

    /// Undisturbed, as in times of peace.
    pub fn calm(requester: usize, owner: usize, region: usize, write: bool) -> Self {
        let (ending, early_us, pause) = (json!({ "how": "wait" }), None, Duration::ZERO);
        let (count, revoke) = (BLOCKS_MAX[region], "await");
        Self { requester, owner, region, count, write, ending, early_us, revoke, pause }
    }
}

/// As many within 0.1 ms as between 3 and 30.
fn interrupt_us(rng: &mut Rng) -> u64 {
    let exponent = rng.f64() * (INTERRUPT_MAX_US as f64).log10();
    10f64.powf(exponent) as u64
}

/// Plays until the time is over or a promise is broken.
pub fn play(arena: &Arena, number: u64) {
    let mut rng = Rng::with_seed(arena.seed.wrapping_mul(1_000).wrapping_add(number));
    while arena.is_on() {
        let plan = Plan::draw(&mut rng, arena.seats.len(), arena.is_local());
        let pause = plan.pause;
        if let Err(Silence::Wrong(what)) = round(arena, &plan, number) {
            arena.accuse(format!("{what} ({plan:?})"));
        }
        std::thread::sleep(pause);
    }
}

/// One transfer, from the offer to the blocks' return.
pub fn round(arena: &Arena, plan: &Plan, counter: u64) -> Result<(), Silence> {
    let (owner, owner_seat) = (&arena.seats[plan.owner], plan.owner);
    let ((owner_agent, incarnation), (requester, _)) =
        (owner.agent(), arena.seats[plan.requester].agent());
    let Plan { region, count, write, .. } = *plan;
    let offer = json!({ "do": "offer", "region": region, "count": count, "write": write });
    let offer = owner_agent.ask(offer)?;
    let blocks = offer["blocks"].as_array().cloned().unwrap_or_default();
    if blocks.is_empty() {
        return renew(arena, &owner_agent, region);
    }
    let order = transfer(plan, owner, incarnation, counter, &blocks);
    let pending = requester.send(order);
    if let Some(early_us) = plan.early_us {
        std::thread::sleep(Duration::from_micros(early_us));
        let unknown = if write { "either" } else { "old" };
        let settled = blocks.iter().map(|block| settled(block, unknown, false)).collect();
        settle(arena, &owner_agent, plan, &offer, settled)?;
    }
    let answer = match pending.wait() {
        Ok(answer) => answer,
        Err(Silence::Killed) => Value::Null,
        wrong => return wrong.map(drop),
    };
    arena.tally().transfer(plan, &blocks, &answer);
    if write {
        arena.ledger().count((owner_seat, incarnation, counter), &answer);
    }
    if plan.early_us.is_none() {
        let ends = answer["ends"].as_array().cloned().unwrap_or_default();
        let ends = ends.into_iter().chain(std::iter::repeat(Value::Null));
        let settled = blocks.iter().zip(ends).map(|(block, end)| known(block, &end, write));
        settle(arena, &owner_agent, plan, &offer, settled.collect())?;
    }
    Ok(())
}

fn transfer(plan: &Plan, owner: &Seat, incarnation: u8, counter: u64, blocks: &[Value]) -> Value {
    json!({
        "do": "transfer",
        "write": plan.write,
        "peer": owner.name,
        "incarnation": incarnation,
        "targets": blocks,
        "ending": plan.ending,
        "counter": counter,
    })
}

/// What a request's end says of its block; nothing is known of one without an end.
fn known(block: &Value, end: &Value, write: bool) -> Value {
    let quiet = !write || end["quiet"] == true;
    let content = match (end["landed"].as_str(), write) {
        (_, false) => "old",
        (Some("yes"), true) => "new",
        (Some("no"), true) if quiet => "old",
        _ => "either",
    };
    settled(block, content, quiet)
}

fn settled(block: &Value, content: &str, quiet: bool) -> Value {
    json!({ "block": block["block"], "content": content, "quiet": quiet })
}

fn settle(
    arena: &Arena,
    owner: &Agent,
    plan: &Plan,
    offer: &Value,
    blocks: Vec<Value>,
) -> Result<(), Silence> {
    let answer = owner.ask(json!({
        "do": "settle",
        "region": plan.region,
        "epoch": offer["epoch"],
        "blocks": blocks,
        "revoke": plan.revoke,
    }))?;
    arena.tally().settled(&answer);
    Ok(())
}

/// A region whose blocks are all out of use is unregistered: then nothing reaches them.
fn renew(arena: &Arena, owner: &Agent, region: usize) -> Result<(), Silence> {
    if is_granted(region) {
        return Ok(());
    }
    owner.ask(json!({ "do": "renew", "region": region }))?;
    arena.tally().renewed += 1;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_draws_the_same_plans() {
        let plans = |seed| {
            let mut rng = Rng::with_seed(seed);
            (0..50).map(|_| format!("{:?}", Plan::draw(&mut rng, 3, false))).collect::<Vec<_>>()
        };
        assert_eq!(plans(7), plans(7));
        assert_ne!(plans(7), plans(8));
    }

    #[test]
    fn plans_reach_everywhere_but_home_unless_they_are_local() {
        let mut rng = Rng::with_seed(1);
        let plans: Vec<_> = (0..500).map(|_| Plan::draw(&mut rng, 3, false)).collect();
        assert!(plans.iter().all(|plan| plan.requester != plan.owner && plan.count > 0));
        assert!(plans.iter().all(|plan| plan.early_us.is_none() || is_granted(plan.region)));
        for how in ["wait", "cancel", "deadline", "drop"] {
            assert!(plans.iter().any(|plan| plan.ending["how"] == how), "{how}");
        }
        let local = Plan::draw(&mut rng, 1, true);
        assert_eq!((local.requester, local.owner), (0, 0));
    }

    #[test]
    fn a_block_is_old_or_new_only_where_that_is_proven() {
        let block = json!({ "block": 3 });
        let content = |end: Value, write| known(&block, &end, write);
        let end = |landed: &str, quiet| json!({ "landed": landed, "quiet": quiet });
        let is = |known: &Value, content: &str, quiet: bool| {
            known["block"] == 3 && known["content"] == content && known["quiet"] == quiet
        };
        assert!(is(&content(end("yes", true), true), "new", true));
        assert!(is(&content(end("no", true), true), "old", true));
        assert!(is(&content(end("no", false), true), "either", false));
        assert!(is(&content(end("maybe", true), true), "either", true));
        assert!(is(&content(Value::Null, true), "either", false));
        assert!(is(&content(Value::Null, false), "old", true));
    }
}
