//! How endpoints end: error first, then drained here and fenced at the target; only then does what
//! they carried go elsewhere.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use kvrail_reactors::ticket::Ticket;

use super::action::Action;
use super::ending::Fenced;
use super::endpoint::{Endpoint, Posted, State};
use super::initiator::{Initiator, Unheard};
use super::message::{EndpointName, Incarnation, Message};
use super::transfer::{Stage, Transfer, What};
use crate::ErrorKind;
use crate::canary::{Canary, is_on};
use crate::limits::RDMA_ATTEMPTS_MAX;

/// Why an endpoint ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The rail does not work: it rests.
    Failed,
    /// A work request asked for what is not permitted; the rail is fine.
    Guilty,
    /// What it carries has been given up; the rail is fine.
    GivenUp,
}

impl Initiator {
    /// Ends a transfer early, if it hasn't ended: what waits fails now, what is posted gets its
    /// grace.
    pub(super) fn end_early(&mut self, ticket: Ticket<Transfer>, kind: ErrorKind, now_ns: u64) {
        let Some(transfer) = self.transfers.get_mut(ticket) else { return };
        if transfer.is_over || transfer.ended_early.is_some() {
            return;
        }
        transfer.ended_early = Some((kind, now_ns));
        let waiting = transfer.items.iter_mut().filter(|item| item.stage == Stage::Waiting);
        waiting.for_each(|item| item.stage = Stage::Failed(kind));
        self.progress(ticket, now_ns);
    }

    /// Begins the end of an endpoint.
    pub(super) fn end_endpoint(&mut self, ticket: Ticket<Endpoint>, cause: Cause, now_ns: u64) {
        let Some(endpoint) = self.endpoints.get_mut(ticket) else { return };
        if matches!(endpoint.state, State::Ending | State::Mute) {
            return;
        }
        let was_creating = endpoint.state == State::Creating;
        // What is in a list must come back as a completion too.
        endpoint.ring(&mut self.actions);
        endpoint.becomes(State::Ending, now_ns);
        endpoint.has_failed = cause == Cause::Failed;
        let (name, key) = (endpoint.name, endpoint.peer);
        for queue in &endpoint.queues {
            self.actions.push(Action::Error { nic: endpoint.ends.nic, qp: queue.own.number });
        }
        if let Some(peer) = self.peers.get_mut(&key) {
            let rail = &mut peer.rails[usize::from(name.rail)];
            rail.endpoint = None;
            if cause == Cause::Failed {
                rail.failed(now_ns, &self.limits);
                peer.failing_since_ns.get_or_insert(now_ns);
            }
        }
        if was_creating || is_on(Canary::LocalFence) {
            endpoint.remote = Some(Fenced::Target);
        } else if self.peers.get(&key).is_some_and(|peer| !peer.fences) {
            endpoint.remote = Some(Fenced::Nobody);
        }
        if endpoint.remote.is_none() {
            self.actions.push(Action::Tell { peer: key, message: Message::Fence { name } });
        }
        if is_on(Canary::ResetInsteadOfError) {
            self.reset(ticket);
        }
        self.settle(ticket, now_ns);
    }

    /// The mistake of the field: the queue pairs forget what is posted, and so do we.
    fn reset(&mut self, ticket: Ticket<Endpoint>) {
        let Some(endpoint) = self.endpoints.get_mut(ticket) else { return };
        for queue in &mut endpoint.queues {
            let (nic, qp) = (endpoint.ends.nic, queue.own.number);
            self.actions.push(Action::Reset { nic, qp });
            let forgotten = queue.send.forget();
            let gone = forgotten.len();
            self.on_nic.entry(nic).and_modify(|count| *count = count.saturating_sub(gone));
            for posted in forgotten {
                let Posted::Item { transfer, item, .. } = posted else { continue };
                if let Some(known) = self.transfers.get_mut(transfer) {
                    known.items[item].stage = Stage::Held(None);
                    endpoint.held.push((transfer, item));
                }
            }
        }
    }

    /// A target said that nothing of the endpoints up to this one is stored any more.
    pub(super) fn fenced(
        &mut self,
        name: EndpointName,
        target: Incarnation,
        arrived: &BTreeMap<u64, u64>,
        now_ns: u64,
    ) {
        let covers = |endpoint: &Endpoint| {
            let EndpointName { initiator, rail, generation } = endpoint.name;
            (initiator, rail) == (name.initiator, name.rail) && generation <= name.generation
        };
        self.heard(name);
        let mut covered = Vec::new();
        for (ticket, endpoint) in self.endpoints.iter_mut() {
            let waits = endpoint.state == State::Ending && endpoint.remote.is_none();
            if waits && covers(endpoint) {
                let is_same = endpoint.target.is_none_or(|known| known == target);
                endpoint.remote = Some(if is_same { Fenced::Target } else { Fenced::Gone });
                if is_same && !is_on(Canary::CountedTwice) {
                    endpoint.arrived = arrived.clone();
                }
                covered.push((ticket, endpoint.peer));
            }
        }
        for (ticket, peer) in covered {
            self.leave_predecessors(peer, target, now_ns);
            self.settle(ticket, now_ns);
            self.dispatch(peer, now_ns);
        }
    }

    /// Goes on with the end of an endpoint as far as is proven.
    pub(super) fn settle(&mut self, ticket: Ticket<Endpoint>, now_ns: u64) {
        let Some(endpoint) = self.endpoints.get_mut(ticket) else { return };
        match (endpoint.state, endpoint.is_drained()) {
            (State::Mute, true) => self.speaks(ticket, now_ns),
            (State::Ending, true) => {
                let proof = endpoint.remote;
                let mut held = std::mem::take(&mut endpoint.held);
                held.retain(|&(transfer, item)| {
                    !self.resolve(ticket, transfer, item, proof, now_ns)
                });
                if proof.is_some() {
                    self.destroy(ticket, now_ns);
                } else if let Some(endpoint) = self.endpoints.get_mut(ticket) {
                    endpoint.held = held;
                }
            }
            (State::Ending, false) => {
                let is_late = now_ns.saturating_sub(endpoint.since_ns) >= self.limits.drain_max_ns;
                if is_late && endpoint.remote.is_some() {
                    self.falls_mute(ticket, now_ns);
                }
            }
            _ => {}
        }
    }

    /// Decides on an item that its endpoint ended under, if enough is proven for it.
    fn resolve(
        &mut self,
        endpoint: Ticket<Endpoint>,
        ticket: Ticket<Transfer>,
        item: usize,
        proof: Option<Fenced>,
        now_ns: u64,
    ) -> bool {
        let Some(transfer) = self.transfers.get_mut(ticket) else { return true };
        let Stage::Held(verdict) = transfer.items[item].stage else { return true };
        let fenced = match proof {
            _ if !transfer.is_write(item) => Fenced::Answered,
            Some(fenced) => fenced,
            None => return false,
        };
        transfer.proven(fenced);
        let Some(endpoint) = self.endpoints.get(endpoint) else { return true };
        if verdict.is_none() && transfer.has_arrived(item, &endpoint.arrived) {
            transfer.items[item].stage = Stage::Done;
            self.progress(ticket, now_ns);
            return true;
        }
        transfer.items[item].losses += u32::from(endpoint.has_failed);
        let is_hopeless =
            fenced == Fenced::Nobody || transfer.items[item].losses >= RDMA_ATTEMPTS_MAX;
        let early = transfer.early(now_ns);
        let why = verdict.or(early).or(is_hopeless.then_some(ErrorKind::Lost));
        transfer.items[item].stage = why.map_or(Stage::Waiting, Stage::Failed);
        let key = transfer.order.peer;
        if why.is_none()
            && let Some(peer) = self.peers.get_mut(&key)
        {
            peer.waiting.push_back((ticket, item));
        }
        self.progress(ticket, now_ns);
        true
    }

    /// Its NIC doesn't say what became of what is posted. Reads are lost: their memory may change
    /// as long as it is silent. Writes depend on the target alone. Either way the memory stays with
    /// us until the endpoint speaks.
    fn falls_mute(&mut self, ticket: Ticket<Endpoint>, now_ns: u64) {
        let Some(endpoint) = self.endpoints.get_mut(ticket) else { return };
        endpoint.becomes(State::Mute, now_ns);
        self.leave_unread(ticket, now_ns);
        let Some(endpoint) = self.endpoints.get_mut(ticket) else { return };
        let proof = endpoint.remote;
        let mut held = std::mem::take(&mut endpoint.held);
        let posted = endpoint.queues.iter().flat_map(|queue| queue.send.iter());
        let items: Vec<_> = posted
            .filter_map(|posted| match *posted {
                Posted::Item { transfer, item, .. } => Some((transfer, item)),
                Posted::Consumed => None,
            })
            .collect();
        let mut haunted: Vec<_> = items.iter().map(|(transfer, _)| *transfer).collect();
        haunted.sort_by_key(|transfer| transfer.to_raw());
        haunted.dedup();
        for &transfer in &haunted {
            self.transfers.get_mut(transfer).into_iter().for_each(|known| known.mute += 1);
        }
        endpoint.haunted = haunted;
        let (key, rail) = (endpoint.peer, usize::from(endpoint.name.rail));
        self.peers.get_mut(&key).into_iter().for_each(|peer| peer.rails[rail].mute += 1);
        for (transfer, item) in items {
            let Some(known) = self.transfers.get_mut(transfer) else { continue };
            let is_write = known.is_write(item);
            known.items[item].stage = Stage::Held((!is_write).then_some(ErrorKind::Lost));
            held.push((transfer, item));
        }
        for (transfer, item) in held {
            self.resolve(ticket, transfer, item, proof, now_ns);
        }
    }

    /// A silent endpoint has completed everything after all.
    fn speaks(&mut self, ticket: Ticket<Endpoint>, now_ns: u64) {
        let Some(endpoint) = self.endpoints.get_mut(ticket) else { return };
        let (key, rail) = (endpoint.peer, usize::from(endpoint.name.rail));
        self.peers.get_mut(&key).into_iter().for_each(|peer| peer.rails[rail].mute -= 1);
        for transfer in std::mem::take(&mut endpoint.haunted) {
            let Some(known) = self.transfers.get_mut(transfer) else { continue };
            known.mute -= 1;
            if known.mute == 0 && known.is_over {
                self.actions.push(Action::Released { order: known.order.id });
                self.forget(transfer);
            }
        }
        self.destroy(ticket, now_ns);
        self.dispatch(key, now_ns);
    }

    /// Everything about it is known: its queue pairs go.
    fn destroy(&mut self, ticket: Ticket<Endpoint>, now_ns: u64) {
        self.leave_unread(ticket, now_ns);
        let Some(endpoint) = self.endpoints.remove(ticket) else { return };
        let nic = endpoint.ends.nic;
        self.by_name.remove(&endpoint.name);
        for queue in endpoint.queues {
            self.by_qp.remove(&(nic, queue.own.number));
            self.actions.push(Action::Destroy { nic, qp: queue.own.number });
        }
        self.drop_if_closed(endpoint.peer);
    }

    /// A fenced target has read all that arrived, and one that is gone has nobody to count. Who
    /// could not be asked may read it yet.
    fn leave_unread(&mut self, ticket: Ticket<Endpoint>, now_ns: u64) {
        let Some(endpoint) = self.endpoints.get_mut(ticket) else { return };
        let Some(peer) = self.peers.get_mut(&endpoint.peer) else { return };
        let unread = endpoint.queues.iter_mut().flat_map(|queue| queue.unread.drain(..));
        let events: Vec<u64> = unread.collect();
        if endpoint.remote != Some(Fenced::Nobody) {
            return events.into_iter().for_each(|event| peer.events.read(event));
        }
        if !events.is_empty() {
            let EndpointName { rail, generation, .. } = endpoint.name;
            let new = || Unheard { generation, events: Vec::new(), asked_ns: now_ns };
            let unheard = peer.unheard.entry(rail).or_insert_with(new);
            unheard.generation = unheard.generation.max(generation);
            unheard.events.extend(events);
        }
    }

    /// A peer that could not be asked has answered after all.
    fn heard(&mut self, name: EndpointName) {
        let Some(peer) = self.peers.values_mut().find(|peer| peer.id == name.initiator) else {
            return;
        };
        let covers = |unheard: &mut Unheard| unheard.generation <= name.generation;
        if let Entry::Occupied(mut entry) = peer.unheard.entry(name.rail)
            && covers(entry.get_mut())
        {
            entry.remove().events.into_iter().for_each(|event| peer.events.read(event));
        }
    }
}

impl Transfer {
    /// Where a slice has failed, what would follow the data doesn't.
    pub(super) fn stop_followers(&mut self) {
        let failed = self.items.iter().find_map(|item| match item.stage {
            Stage::Failed(kind) | Stage::Held(Some(kind)) => Some(kind),
            _ => None,
        });
        let Some(kind) = failed else { return };
        for item in &mut self.items {
            if item.what != What::Slice && item.stage == Stage::Waiting {
                item.stage = Stage::Failed(kind);
            }
        }
    }
}
