//! Posting to a peer that RDMA reaches: each slice under the keys that the peer has published, or
//! under its grant. What nobody knows a key for is asked for once; what the peer has no key for
//! goes by TCP.

use std::sync::Arc;

use kvrail_reactors::region::{Region, Slice};

use super::Event;
use crate::engine::Inner;
use crate::flight::{Announce, EVENT, Flight, Portion};
use crate::limits::RDMA_GROUP_BYTES;
use crate::memory::Operation;
use crate::path::rdma::{self, Keys, RdmaSlice};
use crate::path::verbs::{Carry, Message, Piece, Reach, not_taken};
use crate::plan::{PlannedSlice, share_out};
use crate::prepared::Plan;
use crate::{Error, ErrorKind, PathKind, engine, route};

/// A plan's slices by the way they go.
struct Sorted {
    rails: Vec<(PlannedSlice, RdmaSlice)>,
    /// The peer has published no key.
    rest: Vec<PlannedSlice>,
}

impl Inner {
    pub(crate) fn post_rdma(
        self: &Arc<Self>,
        plan: &Arc<Plan>,
        reach: &Arc<Reach>,
        started: quanta::Instant,
    ) -> Arc<Flight> {
        let sorted = self.sort(plan, reach);
        let is_one = sorted.rest.is_empty() && bytes(&sorted.rails) <= RDMA_GROUP_BYTES;
        let event = plan.event.clone();
        // A step of a counter that is known to be open follows the data on its own rails.
        let counted = event.as_ref().filter(|_| is_one).and_then(|event| self.notice(plan, event));
        let announce = match &counted {
            Some(_) => None,
            None => event.map(|event| self.announce_rdma(event)),
        };
        let flight = self.flight(plan, 1, announce, Vec::new(), started);
        let reach = reach.clone();
        self.behind(Portion::gate(&flight), move |engine, gate| match sorted.rest.is_empty() {
            true => engine.post_sorted_rdma(&reach, gate, sorted, counted),
            false => engine.post_when_asked(gate),
        });
        flight
    }

    /// Asks the peer for what it has now, since some of this was not known.
    fn post_when_asked(self: &Arc<Self>, gate: Portion) {
        let engine = Arc::downgrade(self);
        self.control().detach(async move {
            let Some(found) = engine.upgrade() else { return };
            let link = gate.flight().plan.peer.inner.link.clone();
            if let Err(error) = found.links().refresh(&link, found.control()).await {
                tracing::debug!(peer = %link.route.name, %error, "what it has now is not known");
            }
            let Some(reach) = link.reach() else { return };
            let sorted = found.sort(&gate.flight().plan, &reach);
            found.post_sorted_rdma(&reach, gate, sorted, None);
        });
    }

    fn post_sorted_rdma(
        self: &Arc<Self>,
        reach: &Arc<Reach>,
        gate: Portion,
        sorted: Sorted,
        event: Option<rdma::Event>,
    ) {
        let flight = gate.flight().clone();
        let Sorted { rails, rest } = sorted;
        let mut failures = Vec::new();
        if reach.is_kvrail() {
            self.carry_rest(&flight, &rest);
        } else {
            failures.extend(rest.iter().map(|slice| (slice.request, unpublished(&flight, slice))));
        }
        if !rails.is_empty() || event.is_some() {
            self.post_rails(reach, &flight, rails, event);
        }
        gate.back(failures);
    }

    fn post_rails(
        self: &Arc<Self>,
        reach: &Arc<Reach>,
        flight: &Arc<Flight>,
        rails: Vec<(PlannedSlice, RdmaSlice)>,
        event: Option<rdma::Event>,
    ) {
        let planned: Vec<_> = rails.iter().map(|(planned, _)| *planned).collect();
        let groups = match planned.is_empty() {
            // The event alone.
            true => std::iter::once(0..0).collect(),
            false => share_out(&planned, self.shards().len(), RDMA_GROUP_BYTES),
        };
        let home = |group: &std::ops::Range<usize>| {
            let pieces = rails[group.clone()].iter();
            route::home(pieces.map(|(_, slice)| (slice.local.region().node(), slice.local.len())))
        };
        let homes: Vec<_> = groups.iter().map(home).collect();
        let shards = match reach.only_shard(self.nodes().len()) {
            Some(shard) => vec![shard; groups.len()],
            None => route::near(self.nodes(), &homes, self.next_shard()),
        };
        flight.more_parts(groups.len());
        let mut rails = rails.into_iter();
        for (group, shard) in groups.into_iter().zip(shards) {
            let slices: Vec<_> = rails.by_ref().take(group.len()).collect();
            let first = slices.first().map_or(EVENT, |(planned, _)| planned.request);
            let last = slices.last().map_or(EVENT, |(planned, _)| planned.request);
            let carry = Carry {
                portion: Portion::new(flight.clone(), first..=last),
                peer: flight.plan.link().route.key,
                reach: reach.clone(),
                slices: slices
                    .into_iter()
                    .map(|(planned, slice)| (planned.request, slice))
                    .collect(),
                event,
            };
            self.carry_by_rails(shard, carry);
        }
    }

    fn carry_by_rails(&self, shard: usize, carry: Carry) {
        let Some(address) = self.rdma().and_then(|rdma| rdma.shards().nth(shard)) else {
            return not_taken(carry, &Error::closed("the engine was stopped"));
        };
        if let Err(error) = address.send(Message::Carry(Box::new(carry))) {
            let what = engine::not_taken(&error);
            if let Message::Carry(carry) = error.into_inner() {
                not_taken(*carry, &what);
            }
        }
    }

    /// The step of a counter as a notice, if that is all there is to say and the peer is known to
    /// have opened the counter: a notice is not answered.
    fn notice(&self, plan: &Plan, event: &Event) -> Option<rdma::Event> {
        let (counter, amount) = event.count.filter(|_| event.message.is_none())?;
        plan.link().reach()?.has_counter(counter).then_some(rdma::Event { counter, amount })
    }

    /// The event follows the data by TCP, whose answer says whether the peer has such a counter;
    /// or by notice, where that is known.
    fn announce_rdma(self: &Arc<Self>, event: Event) -> Announce {
        let engine = Arc::downgrade(self);
        Box::new(move |portion: Portion| {
            let Some(engine) = engine.upgrade() else {
                let error = Error::new(ErrorKind::Closed, "the engine was dropped");
                return portion.back(vec![(EVENT, error)]);
            };
            let plan = portion.flight().plan.clone();
            let counted = engine.notice(&plan, &event);
            match (counted, plan.link().reach()) {
                (Some(event), Some(reach)) => {
                    let peer = plan.link().route.key;
                    let slices = Vec::new();
                    let carry = Carry { portion, peer, reach, slices, event: Some(event) };
                    engine.carry_by_rails(engine.next_shard() % engine.shards().len(), carry);
                }
                _ => engine.announce_tcp(event)(portion),
            }
        })
    }
}

impl Inner {
    fn sort(&self, plan: &Plan, reach: &Reach) -> Sorted {
        let has_vram = plan.peer.has_vram();
        let (rdma, mut ours) = (self.rdma(), Ours::default());
        let may_go = |slice: &PlannedSlice, memory: &Slice| {
            // Grants are windows, which a GPU's memory has none of.
            let is_theirs =
                has_vram && plan.key(slice).is_some() && plan.peer.is_on_gpu(slice.addr);
            !is_theirs
                && ours.has(memory.region(), |region| rdma.is_some_and(|rdma| rdma.has(region)))
        };
        sort(plan, reach, may_go)
    }
}

/// Whether NICs have our own memory: a GPU's they may not have, which is asked once for all slices
/// in a row of one region.
#[derive(Default)]
struct Ours {
    last: Option<(u64, bool)>,
}

impl Ours {
    fn has(&mut self, region: &Region, ask: impl FnOnce(&Region) -> bool) -> bool {
        if region.device().is_none() {
            return true;
        }
        let known = self.last.filter(|(id, _)| *id == region.id()).map(|(_, has)| has);
        let has = known.unwrap_or_else(|| ask(region));
        self.last = Some((region.id(), has));
        has
    }
}

fn sort(
    plan: &Plan,
    reach: &Reach,
    mut may_go: impl FnMut(&PlannedSlice, &Slice) -> bool,
) -> Sorted {
    let mut sorted = Sorted { rails: Vec::with_capacity(plan.slices.len()), rest: Vec::new() };
    for slice in &plan.slices {
        let (local, is_write) = (plan.memory(slice), plan.operation(slice) == Operation::Write);
        if !may_go(slice, &local) {
            sorted.rest.push(*slice);
            continue;
        }
        if let Some(key) = plan.key(slice) {
            let keys = Keys::Grant(key.to_raw());
            sorted
                .rails
                .push((*slice, RdmaSlice { is_write, local, addr: slice.addr, keys, near: 0 }));
            continue;
        }
        match reach.find(slice.addr, slice.len as u64) {
            None => sorted.rest.push(*slice),
            Some(pieces) => sorted.rails.extend(pieces.into_iter().map(|piece| {
                let Piece { range, keys, near } = piece;
                let (offset, len) = (range.start - slice.addr, range.end - range.start);
                let part = local.part(offset as usize, len as usize);
                let local = part.expect("the pieces make up the slice");
                let keys = Keys::Registered(keys);
                (*slice, RdmaSlice { is_write, local, addr: range.start, keys, near })
            })),
        }
    }
    sorted
}

fn bytes(rails: &[(PlannedSlice, RdmaSlice)]) -> usize {
    rails.iter().map(|(_, slice)| slice.local.len()).sum()
}

fn unpublished(flight: &Flight, slice: &PlannedSlice) -> Error {
    let what = format!("the peer publishes no memory at {:#x} of {} bytes", slice.addr, slice.len);
    Error::refused(what).with_peer(flight.plan.peer_name()).with_path(PathKind::Rdma)
}

#[cfg(test)]
mod tests {
    use kvrail_reactors::cuda::DeviceMemory;
    use kvrail_reactors::cuda::fake::Fake;

    use super::*;

    #[test]
    fn a_gpus_memory_goes_by_rails_once_nics_have_it_and_is_asked_about_once() {
        let fake = Arc::new(Fake::new(1, 1 << 20));
        let vram = || {
            let memory = DeviceMemory::allocate(fake.clone(), 0, 4096).unwrap();
            Region::on_device(memory, 4096).unwrap()
        };
        let (host, first, second) = (Region::allocate(4096, None).unwrap(), vram(), vram());
        let (mut ours, mut asked) = (Ours::default(), Vec::new());
        let mut has = |region: &Region| {
            ours.has(region, |region| {
                asked.push(region.id());
                region.id() == second.id()
            })
        };
        assert!(has(&host), "host memory is theirs, or no region");
        assert!(!has(&first) && !has(&first));
        assert!(has(&second) && has(&host) && has(&second));
        assert_eq!(asked, [first.id(), second.id()]);
    }
}
