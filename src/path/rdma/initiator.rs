//! The side that asks: what comes in from callers and devices, and where it leads. How endpoints
//! come to be is in `handshake`, how they are used in `posting`, how they end in `sweep`, and what
//! time asks in `clocks`.

use std::collections::{BTreeMap, HashMap, VecDeque};

use kvrail_reactors::region::Slice;
use kvrail_reactors::ticket::{Table, Ticket};
use kvrail_reactors::verbs::{QpNumber, Status};

use super::action::{Action, RdmaLimits};
use super::ending::{Culprit, Fenced};
use super::endpoint::{Endpoint, Posted};
use super::events::Events;
use super::message::{EndpointName, InitiatorId};
use super::notice::read_word;
use super::rail::{Ends, Rail};
use super::sweep::Cause;
use super::transfer::{Keys, Order, Stage, Transfer, What};
use crate::ErrorKind;
use crate::canary::{Canary, is_on};
use crate::limits::RDMA_RAILS_MAX;

/// One shard's endpoints to its peers, and the transfers that they carry.
#[derive(Debug)]
pub(crate) struct Initiator {
    pub(super) limits: RdmaLimits,
    pub(super) peers: BTreeMap<u64, Peer>,
    pub(super) endpoints: Table<Endpoint>,
    pub(super) transfers: Table<Transfer>,
    pub(super) by_name: HashMap<EndpointName, Ticket<Endpoint>>,
    pub(super) by_qp: HashMap<(u8, QpNumber), (Ticket<Endpoint>, usize)>,
    by_order: HashMap<u64, Ticket<Transfer>>,
    /// Work requests under way on each NIC.
    pub(super) on_nic: BTreeMap<u8, usize>,
    pub(super) next_generation: u64,
    pub(super) next_id: u64,
    pub(super) actions: Vec<Action>,
}

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) id: InitiatorId,
    pub(super) fences: bool,
    pub(super) rails: Vec<Rail>,
    /// Items to be posted.
    pub(super) waiting: VecDeque<(Ticket<Transfer>, usize)>,
    /// Transfers whose event has no number yet.
    pub(super) numberless: VecDeque<Ticket<Transfer>>,
    pub(super) events: Events,
    /// By rail: what the peer may have unread on endpoints that it was never heard to fence.
    pub(super) unheard: BTreeMap<u8, Unheard>,
    /// Since when no rail has done anything but fail.
    pub(super) failing_since_ns: Option<u64>,
    pub(super) is_closed: bool,
}

/// Notices that may be read yet, so that their events stay open.
#[derive(Debug)]
pub(super) struct Unheard {
    /// The last endpoint that had some: its fence covers the earlier.
    pub(super) generation: u64,
    pub(super) events: Vec<u64>,
    pub(super) asked_ns: u64,
}

impl Initiator {
    pub(crate) fn new(limits: RdmaLimits) -> Self {
        Self {
            limits,
            peers: BTreeMap::new(),
            endpoints: Table::default(),
            transfers: Table::default(),
            by_name: HashMap::new(),
            by_qp: HashMap::new(),
            by_order: HashMap::new(),
            on_nic: BTreeMap::new(),
            next_generation: 1,
            next_id: 1,
            actions: Vec::new(),
        }
    }

    /// Makes a peer known that is reached over these rails, and that knows us as `id`. One that
    /// `fences` says when nothing of an endpoint is stored any more; Mooncake's don't.
    pub(crate) fn add_peer(&mut self, peer: u64, id: InitiatorId, rails: &[Ends], fences: bool) {
        let rails = rails.iter().take(RDMA_RAILS_MAX);
        let rails = rails.map(|ends| Rail::new(*ends, &self.limits)).collect();
        self.peers.entry(peer).or_insert(Peer {
            id,
            fences,
            rails,
            waiting: VecDeque::new(),
            numberless: VecDeque::new(),
            events: Events::default(),
            unheard: BTreeMap::new(),
            failing_since_ns: None,
            is_closed: false,
        });
    }

    /// Whether anything of a peer is left: a closed one stays until nothing is.
    #[cfg(feature = "rdma")]
    pub(crate) fn knows(&self, peer: u64) -> bool {
        self.peers.contains_key(&peer)
    }

    /// What is to be done, in this order.
    pub(crate) fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// Takes a transfer on.
    ///
    /// # Errors
    /// Refused: no such peer, the order's name is in use, or a guard that proves nothing, since
    /// re-reading a generation makes a write no safer. Closed: its peer was closed.
    pub(crate) fn carry(&mut self, order: Order, now_ns: u64) -> Result<(), ErrorKind> {
        let peer = self.peers.get_mut(&order.peer).ok_or(ErrorKind::Refused)?;
        if peer.is_closed {
            return Err(ErrorKind::Closed);
        }
        let is_guarded_write = order.guard.is_some() && order.slices.iter().any(|s| s.is_write);
        if is_guarded_write || self.by_order.contains_key(&order.id) {
            return Err(ErrorKind::Refused);
        }
        let (id, key, slices) = (order.id, order.peer, order.slices.len());
        let ticket = self.transfers.insert(Transfer::new(order, now_ns));
        self.by_order.insert(id, ticket);
        peer.waiting.extend((0..slices).map(|item| (ticket, item)));
        self.progress(ticket, now_ns);
        self.dispatch(key, now_ns);
        Ok(())
    }

    /// Ends a transfer early, as `kind`: nothing more of it is posted, what is posted is fenced.
    pub(crate) fn cancel(&mut self, order: u64, kind: ErrorKind, now_ns: u64) {
        if let Some(&ticket) = self.by_order.get(&order) {
            self.end_early(ticket, kind, now_ns);
        }
    }

    /// Ends everything with a peer and takes nothing more for it.
    pub(crate) fn close(&mut self, peer: u64, now_ns: u64) {
        let Some(known) = self.peers.get_mut(&peer) else { return };
        known.is_closed = true;
        let of_peer = |(ticket, t): (_, &Transfer)| (t.order.peer == peer).then_some(ticket);
        let transfers: Vec<_> = self.transfers.iter().filter_map(of_peer).collect();
        for ticket in transfers {
            self.end_early(ticket, ErrorKind::Closed, now_ns);
        }
        let of_peer = |(ticket, e): (_, &Endpoint)| (e.peer == peer).then_some(ticket);
        let endpoints: Vec<_> = self.endpoints.iter().filter_map(of_peer).collect();
        for ticket in endpoints {
            self.end_endpoint(ticket, Cause::GivenUp, now_ns);
        }
        self.drop_if_closed(peer);
    }

    /// Whether nothing of this side is left anywhere: no transfer, no queue pair, no peer that was
    /// closed.
    pub(crate) fn is_idle(&self) -> bool {
        let is_closed = |peer: &Peer| peer.is_closed;
        self.transfers.is_empty()
            && self.endpoints.is_empty()
            && !self.peers.values().any(is_closed)
    }

    /// Nothing is left of a peer that was closed.
    pub(super) fn drop_if_closed(&mut self, key: u64) {
        let is_closed = self.peers.get(&key).is_some_and(|peer| peer.is_closed);
        let has_endpoint = || self.endpoints.iter().any(|(_, endpoint)| endpoint.peer == key);
        let has_transfer = || self.transfers.iter().any(|(_, known)| known.order.peer == key);
        if is_closed && !has_endpoint() && !has_transfer() {
            self.peers.remove(&key);
        }
    }

    /// A completion of a queue pair; one that belongs to nothing of ours is ignored.
    pub(crate) fn completed(
        &mut self,
        nic: u8,
        (qp, id, status): (QpNumber, u64, Status),
        now_ns: u64,
    ) {
        let Some(&(ticket, queue)) = self.by_qp.get(&(nic, qp)) else { return };
        let Some(endpoint) = self.endpoints.get_mut(ticket) else { return };
        let Some(ended) = endpoint.queues[queue].send.completed(id, status) else { return };
        self.on_nic.entry(nic).and_modify(|count| *count = count.saturating_sub(ended.len()));
        endpoint.progress_ns = now_ns;
        if !matches!(status, Status::Success | Status::Flushed) {
            endpoint.culprit.get_or_insert(status);
        }
        let peer = endpoint.peer;
        for (posted, status) in ended {
            self.retire((ticket, queue), posted, status, now_ns);
        }
        if !status.is_success() {
            let is_guilty = status.is_protection();
            let cause = if is_guilty { Cause::Guilty } else { Cause::Failed };
            self.end_endpoint(ticket, cause, now_ns);
        }
        self.settle(ticket, now_ns);
        self.dispatch(peer, now_ns);
    }

    fn retire(
        &mut self,
        (ticket, queue): (Ticket<Endpoint>, usize),
        posted: Posted,
        status: Status,
        now_ns: u64,
    ) {
        let Some(endpoint) = self.endpoints.get_mut(ticket) else { return };
        let is_done = status == Status::Success;
        let Posted::Item { transfer, item, bytes, ahead, posted_ns } = posted else {
            let queue = &mut endpoint.queues[queue];
            let word = queue.consumed_word().filter(|_| is_done);
            let count = word.map_or(0, |word| read_word(&word, 0));
            if let Some(peer) = self.peers.get_mut(&endpoint.peer) {
                queue.has_consumed(count, now_ns).for_each(|event| peer.events.read(event));
            }
            return;
        };
        endpoint.bytes -= bytes;
        let peer = self.peers.get_mut(&endpoint.peer);
        if let Some(peer) = peer.filter(|_| is_done) {
            peer.failing_since_ns = None;
            let rail = &mut peer.rails[usize::from(endpoint.name.rail)];
            rail.completed(ahead, posted_ns, now_ns, &self.limits);
        }
        let word = endpoint.queues[queue].guard_word();
        let Some(known) = self.transfers.get_mut(transfer) else { return };
        if known.items[item].what == What::Word {
            endpoint.queues[queue].reads_word = false;
        }
        // One that went on elsewhere since its NIC was silent has nothing more to learn here.
        if known.items[item].stage != Stage::Posted(ticket, queue) {
            return;
        }
        if is_done {
            known.proven(Fenced::Answered);
            known.items[item].stage = known.verdict(item, word.as_ref());
        } else {
            let status_of_all = endpoint.culprit.unwrap_or(status);
            let (ends, name) = (endpoint.ends, endpoint.name);
            let culprit = Culprit { ends, status: status_of_all, endpoint: name };
            known.culprit.get_or_insert(culprit);
            known.items[item].stage = Stage::Held(known.blame(item, status));
            endpoint.held.push((transfer, item));
        }
        self.progress(transfer, now_ns);
    }

    /// Follows up what has changed for a transfer: more to post, or its end.
    pub(super) fn progress(&mut self, ticket: Ticket<Transfer>, now_ns: u64) {
        let Some(transfer) = self.transfers.get_mut(ticket) else { return };
        let Some(peer) = self.peers.get_mut(&transfer.order.peer) else { return };
        if transfer.is_over {
            return;
        }
        let mut is_numberless = false;
        let more = transfer.unfold(|| {
            let number = peer.events.number();
            is_numberless = number.is_none();
            number
        });
        if is_numberless && !transfer.is_numberless {
            peer.numberless.push_back(ticket);
        }
        transfer.is_numberless |= is_numberless;
        // They go behind the last data on the same queue, so before what waits.
        more.into_iter().rev().for_each(|item| peer.waiting.push_front((ticket, item)));
        transfer.stop_followers();
        let Some(mut ending) = transfer.ending(now_ns) else { return };
        if let Some(number) = transfer.event_number {
            peer.events.over(number);
            ending.event = Some((peer.id, number));
        }
        transfer.is_over = true;
        let order = transfer.order.id;
        let is_quiet = transfer.mute == 0;
        self.actions.push(Action::Ended { order, ending });
        if is_quiet {
            self.forget(ticket);
        }
    }

    /// Its memory is quiet and its end told.
    pub(super) fn forget(&mut self, ticket: Ticket<Transfer>) {
        if let Some(transfer) = self.transfers.remove(ticket) {
            self.by_order.remove(&transfer.order.id);
            self.drop_if_closed(transfer.order.peer);
        }
    }
}

impl Transfer {
    /// What success means for an item: the generation word has to be the expected one.
    fn verdict(&self, item: usize, word: Option<&Slice>) -> Stage {
        let Some(guard) = self.order.guard.as_ref().filter(|_| self.is_word(item)) else {
            return Stage::Done;
        };
        let is_same = word.is_some_and(|word| read_word(word, 0) == guard.expected);
        let passes = is_same || is_on(Canary::GenerationUnchecked);
        if passes { Stage::Done } else { Stage::Failed(ErrorKind::Stale) }
    }

    fn is_word(&self, item: usize) -> bool {
        self.items[item].what == What::Word
    }

    /// Whether an item itself is what failed: a closed window means that the block moved on.
    fn blame(&self, item: usize, status: Status) -> Option<ErrorKind> {
        let is_granted = matches!(self.keys(item), Some(Keys::Grant(_)));
        let kind = if is_granted { ErrorKind::Stale } else { ErrorKind::Refused };
        status.is_protection().then_some(kind)
    }
}
