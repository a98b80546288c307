//! The side that is asked: endpoints that peers opened here, their fences, and the notices that
//! arrive. It posts no data of its own on them.
//!
//! A fence rests on the order of one completion queue: behind the flush of the last marker, nothing
//! of an endpoint is stored, and no notice of it is unread. Where receives are shared, a device
//! says by an event that it has handed out the last one; whoever owns it holds the marker's
//! completion back until then.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use kvrail_reactors::region::Slice;
use kvrail_reactors::verbs::{Operation, QpAddress, QpNumber, RemoteKey, Status, WorkRequest};

use super::action::Action;
use super::ledger::Ledger;
use super::message::{EndpointName, Incarnation, InitiatorId, Mailbox, Message, Refusal};
use super::notice::{CONSUMED_BYTES, NOTICE_BYTES, Notice, queue_bytes, read_word};
use super::windows::Window;
use crate::canary::{Canary, is_on};
use crate::limits::{RDMA_ACCEPTED_MAX, RDMA_INITIATORS_MAX, RDMA_QUEUES_MAX, RDMA_RAILS_MAX};

/// The endpoints that one shard has accepted.
#[derive(Debug)]
pub(crate) struct Target {
    incarnation: Incarnation,
    /// NICs that there are here.
    nics: usize,
    pub(super) accepted: BTreeMap<EndpointName, Accepted>,
    /// Of each initiator's rail: the generation up to which nothing exists or will exist, and a
    /// number that grows by use.
    fenced: BTreeMap<(InitiatorId, u8), (u64, u64)>,
    /// Who waits for a fence: on each rail the last one counts, since it covers those before.
    asking: BTreeMap<(u64, InitiatorId, u8), u64>,
    by_qp: HashMap<(u8, QpNumber), (EndpointName, usize)>,
    /// Grants on their way out: when the last window to one is closed, it is revoked.
    pub(super) revoking: BTreeSet<u128>,
    /// Initiators that are gone, and whose endpoints are ending.
    evicting: BTreeSet<InitiatorId>,
    ledger: Ledger,
    pub(super) next_id: u64,
    uses: u64,
    pub(super) actions: Vec<Action>,
}

/// An endpoint of somebody else's.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) peer: u64,
    pub(super) nic: u8,
    /// What it was opened for.
    theirs: Vec<QpAddress>,
    pub(super) state: State,
    pub(super) queues: Vec<QpAddress>,
    mailbox: Option<(Slice, Mailbox)>,
    pub(super) windows: BTreeMap<u128, Window>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Its queue pairs are being made.
    Making,
    Open,
    /// In error; so many queues have not flushed their marker yet.
    Ending {
        markers: usize,
    },
}

impl Target {
    pub(crate) fn new(incarnation: Incarnation, nics: usize) -> Self {
        Self {
            incarnation,
            nics,
            accepted: BTreeMap::new(),
            fenced: BTreeMap::new(),
            asking: BTreeMap::new(),
            by_qp: HashMap::new(),
            revoking: BTreeSet::new(),
            evicting: BTreeSet::new(),
            ledger: Ledger::default(),
            next_id: 1,
            uses: 0,
            actions: Vec::new(),
        }
    }

    /// What is to be done, in this order.
    pub(crate) fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// Whether no endpoint is left.
    pub(crate) fn is_idle(&self) -> bool {
        self.accepted.is_empty()
    }

    /// Whether queue pairs in error have not all been drained.
    #[cfg(any(test, feature = "rdma"))]
    pub(crate) fn is_ending(&self) -> bool {
        self.accepted.values().any(|known| matches!(known.state, State::Ending { .. }))
    }

    /// A peer said something about an endpoint of its own.
    pub(crate) fn told(&mut self, peer: u64, message: Message) {
        match message {
            Message::Open { name, theirs, queues } => self.open(peer, name, theirs, queues),
            Message::Fence { name } => self.fence(peer, name),
            Message::Bind { name, grant } => self.bind(peer, name, grant),
            // What an initiator is told.
            _ => {}
        }
    }

    fn open(&mut self, peer: u64, name: EndpointName, nic: u8, queues: Vec<QpAddress>) {
        let refused = |why| Action::Tell { peer, message: Message::Refused { name, why } };
        if name.generation <= self.fenced_through(name) {
            return self.actions.push(refused(Refusal::Stale));
        }
        if let Some(known) = self.accepted.get(&name) {
            match known.state {
                State::Open if known.theirs == queues => self.tell_opened(name),
                State::Making if known.theirs == queues => {}
                _ => self.actions.push(refused(Refusal::Stale)),
            }
            return;
        }
        let is_there = usize::from(nic) < self.nics && usize::from(name.rail) < RDMA_RAILS_MAX;
        if !is_there || queues.is_empty() || queues.len() > RDMA_QUEUES_MAX {
            return self.actions.push(refused(Refusal::Shape));
        }
        // A later generation on the same rail means that its initiator is done with the earlier.
        let last = EndpointName { generation: u64::MAX, ..name };
        if self.accepted.range(name..=last).next().is_some() {
            return self.actions.push(refused(Refusal::Stale));
        }
        let earlier = self.up_to(name);
        earlier.into_iter().for_each(|name| self.end(name));
        self.make_room();
        if self.accepted.len() >= RDMA_ACCEPTED_MAX {
            return self.actions.push(refused(Refusal::Full));
        }
        let theirs = queues.clone();
        self.accepted.insert(name, Accepted::new(peer, nic, theirs));
        self.actions.push(Action::Accept { name, peer, nic, queues });
    }

    /// The answer to [`Action::Accept`]: queue pairs that are connected, and a mailbox.
    pub(crate) fn accepted(
        &mut self,
        name: EndpointName,
        made: Option<(Vec<QpAddress>, Slice, Mailbox)>,
    ) {
        let Some(known) = self.accepted.get_mut(&name) else { return };
        let Some((queues, memory, mailbox)) = made else {
            let (peer, why) = (known.peer, Refusal::Device);
            self.actions.push(Action::Tell { peer, message: Message::Refused { name, why } });
            self.accepted.remove(&name);
            return self.answer_fences();
        };
        let was_making = known.state == State::Making;
        for (index, queue) in queues.iter().enumerate() {
            self.by_qp.insert((known.nic, queue.number), (name, index));
        }
        known.queues = queues;
        known.mailbox = Some((memory, mailbox));
        known.state = State::Open;
        if was_making {
            self.tell_opened(name);
        } else {
            // Somebody fenced it meanwhile.
            self.end(name);
        }
    }

    fn tell_opened(&mut self, name: EndpointName) {
        let Some(known) = self.accepted.get(&name) else { return };
        let Some((_, mailbox)) = known.mailbox else { return };
        let mailbox = Some(mailbox);
        let (target, queues) = (self.incarnation, known.queues.clone());
        let message = Message::Opened { name, target, queues, mailbox };
        self.actions.push(Action::Tell { peer: known.peer, message });
    }

    fn fence(&mut self, peer: u64, name: EndpointName) {
        self.uses += 1;
        self.make_room();
        let uses = self.uses;
        let fenced = self.fenced.entry((name.initiator, name.rail)).or_default();
        *fenced = (fenced.0.max(name.generation), uses);
        let covered = self.up_to(name);
        covered.into_iter().for_each(|name| self.end(name));
        let asked = self.asking.entry((peer, name.initiator, name.rail)).or_default();
        *asked = name.generation.max(*asked);
        self.answer_fences();
    }

    /// Ends all endpoints of an initiator that is gone, and takes no more from it;
    /// [`Action::Evicted`] follows when nothing of it is stored any more.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn evict(&mut self, initiator: InitiatorId) {
        self.uses += 1;
        let uses = self.uses;
        for rail in 0..RDMA_RAILS_MAX as u8 {
            self.make_room();
            self.fenced.insert((initiator, rail), (u64::MAX, uses));
        }
        let of_it = |name: &&EndpointName| name.initiator == initiator;
        let names: Vec<_> = self.accepted.keys().filter(of_it).copied().collect();
        names.into_iter().for_each(|name| self.end(name));
        self.evicting.insert(initiator);
        self.check_evicted();
    }

    /// Ends the endpoints of an initiator that nobody hears of any more. Where it is alive after
    /// all it opens others.
    pub(crate) fn leave(&mut self, initiator: InitiatorId) {
        let names: Vec<_> =
            self.accepted.keys().filter(|n| n.initiator == initiator).copied().collect();
        names.into_iter().for_each(|name| self.broke(name, true));
    }

    /// The endpoint that this queue pair is of.
    #[cfg(feature = "rdma")]
    pub(crate) fn endpoint_of(&self, nic: u8, qp: QpNumber) -> Option<EndpointName> {
        self.by_qp.get(&(nic, qp)).map(|(name, _)| *name)
    }

    /// Whose endpoint it is.
    pub(crate) fn peer_of(&self, name: EndpointName) -> Option<u64> {
        self.accepted.get(&name).map(|known| known.peer)
    }

    /// The initiators that have endpoints here, each with its peer.
    pub(crate) fn initiators(&self) -> BTreeSet<(u64, InitiatorId)> {
        self.accepted.iter().map(|(name, known)| (known.peer, name.initiator)).collect()
    }

    fn check_evicted(&mut self) {
        let is_gone = |id: &InitiatorId| !has_endpoint(&self.accepted, *id);
        let gone: Vec<_> = self.evicting.iter().copied().filter(is_gone).collect();
        for initiator in gone {
            self.evicting.remove(&initiator);
            self.actions.push(Action::Evicted { initiator });
        }
    }

    /// Remembers a bounded number of initiators; the longest unused one without endpoints goes.
    /// Should an old message of it come after all, the endpoint it opens has nobody to use it.
    fn make_room(&mut self) {
        let is_open = |id: InitiatorId| has_endpoint(&self.accepted, id);
        self.ledger.make_room(is_open);
        if self.fenced.len() >= RDMA_INITIATORS_MAX {
            let closed = self.fenced.iter().filter(|((id, _), _)| !is_open(*id));
            let oldest = closed.min_by_key(|(_, (_, used))| *used).map(|(key, _)| *key);
            if let Some(oldest) = oldest {
                self.fenced.remove(&oldest);
            }
        }
    }

    fn fenced_through(&self, name: EndpointName) -> u64 {
        self.fenced.get(&(name.initiator, name.rail)).map_or(0, |(through, _)| *through)
    }

    /// The endpoints of the same rail up to this one.
    fn up_to(&self, name: EndpointName) -> Vec<EndpointName> {
        let first = EndpointName { generation: 0, ..name };
        self.accepted.range(first..=name).map(|(name, _)| *name).collect()
    }

    /// Ends an endpoint: in error at once, gone when it is drained.
    fn end(&mut self, name: EndpointName) {
        let Some(known) = self.accepted.get_mut(&name) else { return };
        let markers = known.queues.len();
        match known.state {
            State::Ending { .. } => return,
            // It ends when its queue pairs are there.
            State::Making => return known.state = State::Ending { markers: 0 },
            State::Open => known.state = State::Ending { markers },
        }
        let nic = known.nic;
        for queue in &known.queues {
            let qp = queue.number;
            if is_on(Canary::ResetInsteadOfError) {
                self.actions.push(Action::Reset { nic, qp });
                known.state = State::Ending { markers: 0 };
                continue;
            }
            self.actions.push(Action::Error { nic, qp });
            let requests = vec![marker(self.next_id)];
            self.next_id += 1;
            self.actions.push(Action::Post { nic, qp, requests });
        }
        self.remove_if_drained(name);
    }

    fn remove_if_drained(&mut self, name: EndpointName) {
        let Some(known) = self.accepted.get(&name) else { return };
        let is_made = !known.queues.is_empty();
        if known.state != (State::Ending { markers: 0 }) || !is_made {
            return;
        }
        let Some(known) = self.accepted.remove(&name) else { return };
        for queue in known.queues {
            self.by_qp.remove(&(known.nic, queue.number));
            self.actions.push(Action::Destroy { nic: known.nic, qp: queue.number });
        }
        self.answer_fences();
        self.check_revoked();
        self.check_evicted();
    }

    /// Answers those fences behind which nothing is left.
    fn answer_fences(&mut self) {
        for ((peer, initiator, rail), generation) in std::mem::take(&mut self.asking) {
            let name = EndpointName { initiator, rail, generation };
            if self.up_to(name).is_empty() {
                let (target, arrived) = (self.incarnation, self.ledger.arrived_of(initiator));
                let message = Message::Fenced { name, target, arrived };
                self.actions.push(Action::Tell { peer, message });
            } else {
                self.asking.insert((peer, initiator, rail), generation);
            }
        }
    }

    /// A completion of a work request of ours: a marker's flush, or a window's.
    pub(crate) fn completed(&mut self, nic: u8, (qp, id, status): (QpNumber, u64, Status)) {
        let Some(&(name, _)) = self.by_qp.get(&(nic, qp)) else { return };
        let Some(known) = self.accepted.get_mut(&name) else { return };
        if status == Status::Success {
            return self.window_moved(name, id);
        }
        match &mut known.state {
            State::Ending { markers }
                if !known.windows.values().any(|window| window.awaits(id)) =>
            {
                *markers = markers.saturating_sub(1);
                self.remove_if_drained(name);
            }
            State::Ending { .. } => {}
            _ => self.broke(name, false),
        }
    }

    /// An endpoint of a peer's is in error on this side, or is to be.
    pub(super) fn broke(&mut self, name: EndpointName, is_rail_well: bool) {
        if let Some(known) = self.accepted.get(&name) {
            let (peer, message) = (known.peer, Message::Broken { name, is_rail_well });
            self.actions.push(Action::Tell { peer, message });
        }
        self.end(name);
    }

    /// The device says that a peer asked for what it may not have: its queue pair is in error, and
    /// the peer is told by the device too.
    pub(crate) fn violated(&mut self, nic: u8, qp: QpNumber) {
        if let Some(&(name, _)) = self.by_qp.get(&(nic, qp)) {
            self.end(name);
        }
    }

    /// A notice has arrived; it counts also where its endpoint ended meanwhile.
    pub(crate) fn received(&mut self, nic: u8, qp: QpNumber, immediate: u32) {
        let Some(&(name, queue)) = self.by_qp.get(&(nic, qp)) else { return };
        let Some(known) = self.accepted.get(&name) else { return };
        let Some((memory, mailbox)) = &known.mailbox else { return };
        let start = queue * queue_bytes(mailbox.slots as usize);
        let slot = (immediate % mailbox.slots.max(1)) as usize * NOTICE_BYTES;
        let (Ok(consumed), Ok(slot)) = (
            memory.part(start, CONSUMED_BYTES),
            memory.part(start + CONSUMED_BYTES + slot, NOTICE_BYTES),
        ) else {
            return;
        };
        let notice = Notice::read_from(&slot);
        let read = read_word(&consumed, 0).wrapping_add(1);
        // It is as long as the word.
        let _ = consumed.write(0, &read.to_le_bytes());
        match self.ledger.arrived(name.initiator, &notice) {
            Ok(counted) => {
                let from = name.initiator;
                let counted = counted.map(|counted| Action::Counted { from, counted });
                self.actions.extend(counted);
            }
            Err(_) => self.broke(name, false),
        }
    }
}

impl Accepted {
    fn new(peer: u64, nic: u8, theirs: Vec<QpAddress>) -> Self {
        Self {
            peer,
            nic,
            theirs,
            state: State::Making,
            queues: Vec::new(),
            mailbox: None,
            windows: BTreeMap::new(),
        }
    }
}

fn has_endpoint(accepted: &BTreeMap<EndpointName, Accepted>, initiator: InitiatorId) -> bool {
    let first = EndpointName { initiator, rail: 0, generation: 0 };
    let next = accepted.range(first..).next();
    next.is_some_and(|(name, _)| name.initiator == initiator)
}

/// Completes when everything before it has: in error, when the queue pair is drained.
pub(super) fn marker(id: u64) -> WorkRequest {
    let (operation, key) = (Operation::Nothing, RemoteKey(0));
    WorkRequest { id, operation, local: None, remote_addr: 0, key, is_signalled: true }
}
