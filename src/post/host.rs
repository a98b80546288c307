//! Posting to a peer of this host: what it can read it is asked to copy, what we can read we copy,
//! and the rest goes by TCP.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use kvrail_reactors::copy::{CopyWork, Source};

use super::callers_share;
use super::gpu::{self, Again, Kept};
use crate::engine::Inner;
use crate::flight::{Announce, EVENT, Flight, Portion};
use crate::limits::{COPY_GROUP_BYTES, HOST_EVENT_MAX_BYTES, HOST_QUESTIONS_MAX};
use crate::memory::Operation;
use crate::memory::grant::Denied;
use crate::path::host::{Ask, Asked, Asks, Known, Neighbour, Offer, Proof};
use crate::path::local::{Copies, Job};
use crate::path::tcp::Event;
use crate::plan::{PlannedSlice, share_out};
use crate::prepared::Plan;
use crate::{Error, ErrorKind, PathKind, Result, route};

/// A plan's slices by the way they go.
#[derive(Default)]
struct Sorted {
    /// The peer copies.
    asks: Vec<PlannedSlice>,
    sources: Vec<u64>,
    /// We copy.
    pulls: Vec<PlannedSlice>,
    jobs: Vec<Job>,
    /// Neither can read the other's memory.
    rest: Vec<PlannedSlice>,
    /// What the peer's ledger says no to.
    denied: Vec<(usize, Error)>,
    /// What must be asked before all of it can be sorted, if anything.
    question: Option<Asked>,
}

impl Sorted {
    /// Whether GPUs of this process make all the copies.
    fn is_our_gpus(&self) -> bool {
        self.asks.is_empty() && self.rest.is_empty() && self.jobs.iter().all(Job::is_on_gpu)
    }
}

impl Inner {
    /// Posts a plan to a peer of this host. Where it is not known yet how some of its memory can
    /// be read, the peer is asked first.
    pub(super) fn post_host(
        self: &Arc<Self>,
        plan: &Arc<Plan>,
        neighbour: &Arc<Neighbour>,
        started: quanta::Instant,
    ) -> Arc<Flight> {
        let announce = plan.event.clone().map(|event| self.announce_host(event));
        if let Some(kept) = plan.kept() {
            match kept.at(neighbour) {
                // What the peer copies stands behind an event on the host.
                Some(Again::Ask(..)) if plan.events.after.is_some() => {}
                Some(again) => return self.post_again(plan, again, announce, started),
                None => plan.keep(None),
            }
        }
        let flight = self.flight(plan, 1, announce, Vec::new(), started);
        let gate = Portion::gate(&flight);
        let mut sorted = sort(plan, neighbour, self.control().own_names());
        match sorted.question.take() {
            None => self.post_sorted(neighbour, gate, sorted),
            Some(first) => self.post_when_known(neighbour, gate, first),
        }
        flight
    }

    fn post_again(
        self: &Arc<Self>,
        plan: &Arc<Plan>,
        again: Again,
        announce: Option<Announce>,
        started: quanta::Instant,
    ) -> Arc<Flight> {
        let parts = match &again {
            Again::Pull(copies) => copies.len(),
            Again::Ask(_, parts) => parts.len(),
        };
        let flight = self.flight(plan, parts, announce, Vec::new(), started);
        match again {
            Again::Pull(copies) => self.post_to_gpus(&flight, PathKind::Host, copies),
            Again::Ask(lane, parts) => {
                flight.comes_by(vec![lane.clone()]);
                for part in parts {
                    lane.post(Portion::new(flight.clone(), part.requests()), part);
                }
            }
        }
        flight
    }

    fn post_when_known(self: &Arc<Self>, neighbour: &Arc<Neighbour>, gate: Portion, first: Asked) {
        let (engine, neighbour) = (Arc::downgrade(self), neighbour.clone());
        self.control().detach(async move {
            let mut next = Some(first);
            for _ in 0..HOST_QUESTIONS_MAX {
                let Some(asked) = next else { break };
                // A peer that says nothing is not asked again: the rest goes by TCP.
                if !neighbour.ask(asked).await {
                    break;
                }
                let Some(engine) = engine.upgrade() else { break };
                next = sort(&gate.flight().plan, &neighbour, engine.control().own_names()).question;
            }
            // Without the engine the gate fails the flight as Closed.
            if let Some(engine) = engine.upgrade() {
                let sorted = sort(&gate.flight().plan, &neighbour, engine.control().own_names());
                engine.post_sorted(&neighbour, gate, sorted);
                // The caller has looked for the end in vain already.
                neighbour.lanes.iter().for_each(|lane| lane.entrust());
            }
        });
    }

    /// Sends every slice its way, behind the event if there is one: that of what our GPUs make
    /// alone is their streams' to wait for.
    fn post_sorted(self: &Arc<Self>, neighbour: &Arc<Neighbour>, gate: Portion, sorted: Sorted) {
        if gate.flight().plan.events.after.is_none() || sorted.is_our_gpus() {
            return self.post_ways(neighbour, gate, sorted);
        }
        let neighbour = neighbour.clone();
        self.behind(gate, move |engine, gate| engine.post_ways(&neighbour, gate, sorted));
    }

    /// What nobody knows how to read goes by TCP.
    fn post_ways(self: &Arc<Self>, neighbour: &Arc<Neighbour>, gate: Portion, sorted: Sorted) {
        let flight = gate.flight().clone();
        let Sorted { asks, sources, pulls, mut jobs, rest, denied, .. } = sorted;
        let mut pulls = Cow::Owned(pulls);
        let on_gpus = gpu::split_off(&mut pulls, &mut jobs);
        let counts = [asks.len(), on_gpus.len(), rest.len(), pulls.len(), denied.len()];
        let pulled = Kept::pulled(&on_gpus, neighbour);
        flight.more_parts(on_gpus.len());
        self.post_to_gpus(&flight, PathKind::Host, on_gpus);
        let asked = self.post_asks(&flight, neighbour, &asks, &sources);
        match counts {
            [0, _, 0, 0, 0] => flight.plan.keep(pulled),
            [_, 0, 0, 0, 0] => flight.plan.keep(asked),
            _ => {}
        }
        self.carry_rest(&flight, &rest);
        self.post_pulls(&flight, &pulls, jobs);
        gate.back(denied);
    }

    /// Returns what a next posting may send once more: what GPUs make.
    fn post_asks(
        &self,
        flight: &Arc<Flight>,
        neighbour: &Arc<Neighbour>,
        slices: &[PlannedSlice],
        sources: &[u64],
    ) -> Option<Kept> {
        let first = slices.first()?;
        let plan = &flight.plan;
        // What a GPU of the peer's copies is one lane's, whose launches keep to one budget.
        let by_gpu =
            plan.memory(first).region().device().is_some() || plan.peer.is_on_gpu(first.addr);
        let lanes = if by_gpu { 1 } else { neighbour.lanes.len() };
        let groups = share_out(slices, lanes, COPY_GROUP_BYTES);
        // The peer's shard copies near the destination, whose node its descriptor tells.
        let home = |group: &Range<usize>| plan.peer.node_of(slices[group.start].addr);
        let homes: Vec<_> = groups.iter().map(home).collect();
        let lanes = route::near(&neighbour.nodes, &homes, neighbour.next_lane());
        let lanes: Vec<_> = lanes.into_iter().map(|lane| neighbour.lanes[lane].clone()).collect();
        flight.comes_by(lanes.clone());
        let ask = |(slice, source): (&PlannedSlice, &u64)| {
            let near = plan.memory(slice);
            let offset = near.addr() - near.region().addr();
            let (addr, len) = (slice.addr, slice.len as u64);
            let key = plan.key(slice);
            Ask { request: slice.request, source: *source, offset, addr, len, key }
        };
        let mut kept = None;
        for (group, lane) in groups.into_iter().zip(lanes) {
            let asks: Vec<Ask> =
                slices[group.clone()].iter().zip(&sources[group]).map(ask).collect();
            let parts = Asks::parts(&asks, by_gpu);
            flight.more_parts(parts.len());
            for part in &parts {
                lane.post(Portion::new(flight.clone(), part.requests()), part.clone());
            }
            kept = by_gpu.then(|| Kept::Asked(lane, parts, Arc::downgrade(neighbour)));
        }
        kept
    }

    /// As for copies inside this process: the caller makes its share, shards the rest.
    fn post_pulls(&self, flight: &Arc<Flight>, slices: &[PlannedSlice], mut jobs: Vec<Job>) {
        if slices.is_empty() {
            return;
        }
        let own = callers_share(slices);
        let rest = &slices[own..];
        if !rest.is_empty() {
            let groups = share_out(rest, self.copies().len(), COPY_GROUP_BYTES);
            flight.more_parts(groups.len());
            self.spread_copies(flight, PathKind::Host, jobs.split_off(own), &groups);
        }
        if own > 0 {
            flight.more_parts(1);
            Copies::new(flight.clone(), PathKind::Host, jobs).run();
        }
    }

    /// The event follows by a lane, whose data is in place by then; a long one by TCP.
    fn announce_host(self: &Arc<Self>, event: Event) -> Announce {
        let engine = Arc::downgrade(self);
        Box::new(move |portion: Portion| {
            let Some(engine) = engine.upgrade() else {
                let error = Error::new(ErrorKind::Closed, "the engine was dropped");
                return portion.back(vec![(EVENT, error)]);
            };
            let body = event.encode();
            match portion.flight().plan.peer.inner.link.neighbour() {
                Some(neighbour) if body.len() <= HOST_EVENT_MAX_BYTES => {
                    neighbour.lanes[0].announce(portion, &body);
                }
                _ => engine.announce_tcp(event)(portion),
            }
        })
    }
}

fn sort(plan: &Plan, neighbour: &Neighbour, names: &[String]) -> Sorted {
    let mut sorted = Sorted::default();
    let room = plan.slices.len();
    for slice in &plan.slices {
        let near = plan.memory(slice);
        match plan.operation(slice) {
            Operation::Write => match neighbour.offer(near.region().id()) {
                Some(Offer::Taken { .. }) => {
                    push(&mut sorted.asks, room, *slice);
                    push(&mut sorted.sources, room, near.region().id());
                }
                Some(Offer::Refused(_)) => sorted.rest.push(*slice),
                None => {
                    sorted.question.get_or_insert_with(|| Asked::Offer(near.region().clone()));
                    sorted.rest.push(*slice);
                }
            },
            Operation::Read => match source(plan, slice, neighbour, names) {
                Ok(Some((source, proof))) => {
                    let work = CopyWork { tag: 0, source, target: near };
                    let job = Job { request: slice.request, work, proof: Some(proof) };
                    push(&mut sorted.pulls, room, *slice);
                    push(&mut sorted.jobs, room, job);
                }
                Ok(None) => {
                    sorted.question = sorted.question.or_else(|| unknown(plan, slice, neighbour));
                    sorted.rest.push(*slice);
                }
                Err(error) => sorted.denied.push((slice.request, error)),
            },
        }
    }
    sorted
}

/// Batches mostly go one way: what gets one item is given room for all.
fn push<T>(list: &mut Vec<T>, room: usize, item: T) {
    if list.is_empty() {
        list.reserve_exact(room);
    }
    list.push(item);
}

/// What must be asked before the bytes of a read are known to be of no use here.
fn unknown(plan: &Plan, slice: &PlannedSlice, neighbour: &Neighbour) -> Option<Asked> {
    let (addr, len, key) = (slice.addr, slice.len as u64, plan.key(slice));
    let is_known = neighbour.readable.is_known(addr, len, key);
    (!is_known).then_some(Asked::Map { addr, len, key })
}

/// Where a slice is read from, if it can be here.
fn source(
    plan: &Plan,
    slice: &PlannedSlice,
    neighbour: &Neighbour,
    names: &[String],
) -> Result<Option<(Source, Proof)>> {
    let (addr, len) = (slice.addr, slice.len as u64);
    let Some(key) = plan.key(slice) else { return Ok(neighbour.readable.source(addr, len)) };
    let look = |name: &String| neighbour.readable.granted(key, name, addr, len);
    let found = names.iter().map(look).find(|found| !matches!(found, Err(Denied::Refused)));
    let found = found.unwrap_or(Err(Denied::Refused));
    let blame = |denied| plan.denied(slice, denied).with_peer(plan.peer_name());
    found.map_err(|denied| blame(denied).with_path(PathKind::Host))
}

/// Whether a peer's word on these bytes keeps them from the same-host path.
pub(crate) fn refusal(known: Option<Known>) -> Option<Arc<str>> {
    match known {
        Some(Known::Refused(why)) => Some(why),
        _ => None,
    }
}
