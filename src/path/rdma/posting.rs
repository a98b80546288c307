//! What waits goes to the rail that would be done with it first: which endpoint, which queue, and
//! the work request itself.

use kvrail_reactors::region::Slice;
use kvrail_reactors::ticket::Ticket;
use kvrail_reactors::verbs::{Operation, RemoteKey, WorkRequest};

use super::action::Action;
use super::endpoint::{Endpoint, Keyhole, Posted, State};
use super::events::Events;
use super::initiator::{Initiator, Peer};
use super::message::{EndpointName, Incarnation, Message, Strike};
use super::notice::{NOTICE_BYTES, Notice, queue_bytes};
use super::queue::ID_STEP;
use super::rail::{BANDWIDTH_FIRST, Rail};
use super::sweep::Cause;
use super::transfer::{Keys, Stage, Transfer, What};
use crate::ErrorKind;

/// Where an item goes now.
enum Place {
    At(Ticket<Endpoint>, usize),
    /// Nowhere yet; what waits behind it may have a place.
    Later,
    /// No rail has room for anything.
    Full,
    /// Nowhere, ever.
    Never(ErrorKind),
}

impl Initiator {
    /// Posts what waits for a peer, as far as there is room.
    pub(super) fn dispatch(&mut self, key: u64, now_ns: u64) {
        self.number_events(key, now_ns);
        self.open_rails(key, now_ns);
        let mut later = Vec::new();
        while let Some((ticket, item)) = self.peers.get_mut(&key).and_then(Peer::next) {
            let waits = |transfer: &Transfer| transfer.items[item].stage == Stage::Waiting;
            if !self.transfers.get(ticket).is_some_and(waits) {
                continue;
            }
            match self.place(ticket, item, now_ns) {
                Place::At(endpoint, queue) => self.post((endpoint, queue), ticket, item, now_ns),
                Place::Later => later.push((ticket, item)),
                Place::Never(kind) => self.fail_item(ticket, item, kind, now_ns),
                Place::Full => {
                    later.push((ticket, item));
                    break;
                }
            }
        }
        if let Some(peer) = self.peers.get_mut(&key) {
            later.into_iter().rev().for_each(|waiting| peer.waiting.push_front(waiting));
        }
        self.ring(key);
    }

    /// Numbers the events that had to wait for one, once others are over.
    fn number_events(&mut self, key: u64, now_ns: u64) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let are_many = peer.events.are_many();
        let endpoints: Vec<_> = peer.rails.iter().filter_map(|rail| rail.endpoint).collect();
        for ticket in std::mem::take(&mut peer.numberless) {
            if let Some(transfer) = self.transfers.get_mut(ticket) {
                transfer.is_numberless = false;
                self.progress(ticket, now_ns);
            }
        }
        for ticket in endpoints.into_iter().filter(|_| are_many) {
            (0..self.limits.queues).for_each(|queue| self.ask_consumed(ticket, queue, now_ns));
        }
    }

    /// Makes an endpoint on every rail that may be used and has none, as soon as anything waits.
    fn open_rails(&mut self, key: u64, now_ns: u64) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        if peer.waiting.is_empty() || peer.is_closed {
            return;
        }
        for (index, rail) in peer.rails.iter_mut().enumerate() {
            if rail.endpoint.is_some() || !rail.is_usable(now_ns) {
                continue;
            }
            let (initiator, generation) = (peer.id, self.next_generation);
            let name = EndpointName { initiator, rail: index as u8, generation };
            self.next_generation += 1;
            let endpoint = Endpoint::new(name, rail.ends, key, now_ns);
            let ticket = self.endpoints.insert(endpoint);
            rail.endpoint = Some(ticket);
            self.by_name.insert(name, ticket);
            let (ends, queues) = (rail.ends, self.limits.queues);
            self.actions.push(Action::Create { name, peer: key, ends, queues });
        }
        if peer.rails.iter().all(|rail| rail.endpoint.is_none()) {
            peer.failing_since_ns.get_or_insert(now_ns);
        }
    }

    fn place(&mut self, ticket: Ticket<Transfer>, item: usize, now_ns: u64) -> Place {
        let Some(transfer) = self.transfers.get(ticket) else { return Place::Later };
        if let Some(kind) = transfer.early(now_ns) {
            return Place::Never(kind);
        }
        if transfer.items[item].what != What::Notice {
            return self.choose(ticket, item, now_ns);
        }
        match transfer.notice_at(item) {
            Err(()) => Place::Later,
            Ok(None) => self.choose(ticket, item, now_ns),
            Ok(Some((endpoint, queue))) => {
                let has_slot = self.has_slot(endpoint, queue, now_ns);
                if has_slot { Place::At(endpoint, queue) } else { Place::Later }
            }
        }
    }

    /// The rail that would be done first, of those with room and the right window.
    fn choose(&mut self, ticket: Ticket<Transfer>, item: usize, now_ns: u64) -> Place {
        let Some(transfer) = self.transfers.get(ticket) else { return Place::Later };
        let (bytes, what) = (transfer.bytes(item), transfer.items[item].what);
        let grant = match transfer.keys(item) {
            Some(Keys::Grant(grant)) => Some((*grant, transfer.writes(item))),
            _ => None,
        };
        let (target, (node, near)) = (transfer.target, transfer.place(item));
        let Some(peer) = self.peers.get(&transfer.order.peer) else { return Place::Full };
        let best = peer.bytes_per_us(now_ns);
        let ready = |rail: &Rail| {
            let endpoint = rail.endpoint.filter(|_| rail.is_usable(now_ns))?;
            let known = self.endpoints.get(endpoint).filter(|known| known.is_ready())?;
            let on_nic = self.on_nic.get(&rail.ends.nic).copied().unwrap_or(0);
            let has_nic = on_nic < self.limits.nic_requests;
            let queue = known.roomiest(self.limits.window_requests).filter(|_| has_nic)?;
            let has_room = known.has_room(bytes, self.limits.window_bytes);
            has_room.then(|| {
                let (loads, penalty) = ((known.bytes, bytes), rail.penalty(node, near));
                let finish_ns = rail.finish_ns(loads, penalty, best, now_ns);
                (finish_ns, endpoint, queue, known.target)
            })
        };
        let mut rails: Vec<_> = peer.rails.iter().filter_map(ready).collect();
        rails.sort_by_key(|(finish_ns, ..)| *finish_ns);
        if rails.is_empty() {
            return Place::Full;
        }
        // All that are ready have the same process at their end.
        if target.is_some() && rails.iter().any(|(.., process)| *process != target) {
            return self.doubt(ticket, &rails, now_ns);
        }
        for (_, endpoint, queue, _) in rails {
            let has_slot = match what {
                What::Slice => true,
                What::Word => {
                    self.endpoints.get(endpoint).is_some_and(|e| !e.queues[queue].reads_word)
                }
                What::Notice => self.has_slot(endpoint, queue, now_ns),
            };
            match grant.map(|grant| self.has_window(endpoint, grant, now_ns)) {
                None | Some(Ok(true)) if has_slot => return Place::At(endpoint, queue),
                Some(Err(kind)) => return Place::Never(kind),
                _ => {}
            }
        }
        Place::Later
    }

    /// Another process than the wanted one is at the end of these: the next one, where it answered
    /// after the order came. Where that was before, it is asked again.
    fn doubt(
        &mut self,
        ticket: Ticket<Transfer>,
        rails: &[(u64, Ticket<Endpoint>, usize, Option<Incarnation>)],
        now_ns: u64,
    ) -> Place {
        let posted_ns = self.transfers.get(ticket).map_or(0, |transfer| transfer.posted_ns);
        let is_older = |endpoint: &Ticket<Endpoint>| {
            self.endpoints.get(*endpoint).is_some_and(|known| known.since_ns < posted_ns)
        };
        let older: Vec<_> = rails.iter().map(|(_, endpoint, ..)| *endpoint).collect();
        if !older.iter().all(is_older) {
            return Place::Never(ErrorKind::Lost);
        }
        older.into_iter().for_each(|endpoint| self.end_endpoint(endpoint, Cause::GivenUp, now_ns));
        Place::Later
    }

    /// Whether an endpoint has a window to a grant that lets this in; asks for one where it has
    /// none.
    fn has_window(
        &mut self,
        endpoint: Ticket<Endpoint>,
        (grant, writes): (u128, bool),
        now_ns: u64,
    ) -> Result<bool, ErrorKind> {
        let Some(endpoint) = self.endpoints.get_mut(endpoint) else { return Ok(false) };
        let known = endpoint.windows.get(&grant).map(|keyhole| match keyhole {
            Keyhole::Open(_, access) if writes && !access.write => Err(ErrorKind::Refused),
            Keyhole::Open(_, access) if !writes && !access.read => Err(ErrorKind::Refused),
            Keyhole::Open(..) => Ok(true),
            Keyhole::Asked { .. } => Ok(false),
            Keyhole::Struck(Strike::Gone) => Err(ErrorKind::Stale),
            Keyhole::Struck(Strike::Full) => Err(ErrorKind::Busy),
            Keyhole::Struck(Strike::Refused) => Err(ErrorKind::Refused),
        });
        if known == Some(Err(ErrorKind::Busy)) {
            endpoint.windows.remove(&grant);
        }
        if let Some(known) = known {
            return known;
        }
        if !endpoint.has_room_for_window() {
            return Err(ErrorKind::Busy);
        }
        endpoint.windows.insert(grant, Keyhole::Asked { since_ns: now_ns, at_ns: now_ns });
        let message = Message::Bind { name: endpoint.name, grant };
        self.actions.push(Action::Tell { peer: endpoint.peer, message });
        Ok(false)
    }

    /// Whether a queue can send a notice; asks the peer how many it has read where it can't.
    fn has_slot(&mut self, ticket: Ticket<Endpoint>, queue: usize, now_ns: u64) -> bool {
        let Some(endpoint) = self.endpoints.get_mut(ticket) else { return false };
        let Some(mailbox) = endpoint.mailbox.filter(|_| endpoint.is_ready()) else { return false };
        let slots = mailbox.slots.min(self.limits.notices as u32);
        let known = &mut endpoint.queues[queue];
        if known.notice_slot(slots).is_some() {
            return known.send.len() < self.limits.window_requests;
        }
        self.ask_consumed(ticket, queue, now_ns);
        false
    }

    /// Reads how many notices of a queue the peer has read, unless that is being read.
    fn ask_consumed(&mut self, ticket: Ticket<Endpoint>, queue: usize, now_ns: u64) {
        let Some(endpoint) = self.endpoints.get_mut(ticket).filter(|e| e.is_ready()) else {
            return;
        };
        let Some(mailbox) = endpoint.mailbox else { return };
        let Some(known) = endpoint.queues.get_mut(queue) else { return };
        let is_full = known.send.len() >= self.limits.window_requests;
        let is_early = known.asks_consumed || now_ns < known.asks_after_ns;
        if is_early || known.unread.is_empty() || is_full {
            return;
        }
        known.asks_consumed = true;
        let request = WorkRequest {
            id: self.next_id,
            operation: Operation::Read,
            local: known.consumed_word(),
            remote_addr: mailbox.queue_addr(queue),
            key: mailbox.key,
            is_signalled: false,
        };
        self.next_id += ID_STEP;
        *self.on_nic.entry(endpoint.ends.nic).or_default() += 1;
        endpoint.push(queue, request, Posted::Consumed, now_ns);
    }

    fn post(
        &mut self,
        (ticket, queue): (Ticket<Endpoint>, usize),
        transfer: Ticket<Transfer>,
        item: usize,
        now_ns: u64,
    ) {
        let id = self.next_id;
        let Some(request) = self.request((ticket, queue), transfer, item, id) else {
            return self.fail_item(transfer, item, ErrorKind::Refused, now_ns);
        };
        self.next_id += ID_STEP;
        let (Some(known), Some(endpoint)) =
            (self.transfers.get_mut(transfer), self.endpoints.get_mut(ticket))
        else {
            return;
        };
        known.items[item].stage = Stage::Posted(ticket, queue);
        known.target = endpoint.target;
        known.items[item].attempts += 1;
        let bytes = known.bytes(item);
        let ahead = endpoint.bytes + bytes;
        let posted = Posted::Item { transfer, item, bytes, ahead, posted_ns: now_ns };
        *self.on_nic.entry(endpoint.ends.nic).or_default() += 1;
        endpoint.push(queue, request, posted, now_ns);
        let known = &mut endpoint.queues[queue];
        if known.send.building() >= self.limits.list_max
            && let Some(requests) = known.send.take_list()
        {
            let (nic, qp) = (endpoint.ends.nic, known.own.number);
            self.actions.push(Action::Post { nic, qp, requests });
        }
        self.progress(transfer, now_ns);
    }

    /// The work request for an item on this queue; none where the peer gave no key for the NIC.
    fn request(
        &mut self,
        (ticket, queue): (Ticket<Endpoint>, usize),
        transfer: Ticket<Transfer>,
        item: usize,
        id: u64,
    ) -> Option<WorkRequest> {
        let transfer = self.transfers.get(transfer)?;
        let endpoint = self.endpoints.get_mut(ticket)?;
        let key = transfer.keys(item).map(|keys| key_for(keys, endpoint, queue));
        let (operation, local, remote_addr, key) = match transfer.items[item].what {
            What::Slice => {
                let slice = &transfer.order.slices[item];
                let operation = if slice.is_write { Operation::Write } else { Operation::Read };
                (operation, slice.local.clone(), slice.addr, key??)
            }
            What::Word => {
                endpoint.queues[queue].reads_word = true;
                let word = endpoint.queues[queue].guard_word()?;
                (Operation::Read, word, transfer.order.guard.as_ref()?.addr, key??)
            }
            What::Notice => {
                let events = &mut self.peers.get_mut(&transfer.order.peer)?.events;
                let slots = self.limits.notices;
                let (immediate, local, addr) =
                    notice((endpoint, queue), (transfer, item), events, slots)?;
                (Operation::WriteWithImmediate(immediate), local, addr, endpoint.mailbox?.key)
            }
        };
        Some(WorkRequest {
            id,
            operation,
            local: Some(local),
            remote_addr,
            key,
            is_signalled: false,
        })
    }

    /// Hands over the lists of a peer's endpoints.
    pub(super) fn ring(&mut self, key: u64) {
        let Some(peer) = self.peers.get(&key) else { return };
        for ticket in peer.rails.iter().filter_map(|rail| rail.endpoint) {
            if let Some(endpoint) = self.endpoints.get_mut(ticket) {
                endpoint.ring(&mut self.actions);
            }
        }
    }

    pub(super) fn fail_item(
        &mut self,
        ticket: Ticket<Transfer>,
        item: usize,
        kind: ErrorKind,
        now_ns: u64,
    ) {
        if let Some(transfer) = self.transfers.get_mut(ticket) {
            transfer.items[item].stage = Stage::Failed(kind);
            self.progress(ticket, now_ns);
        }
    }
}

impl Peer {
    /// What the best of its rails carries.
    fn bytes_per_us(&self, now_ns: u64) -> f64 {
        let known = self.rails.iter().filter_map(|rail| rail.bytes_per_us(now_ns));
        known.max_by(f64::total_cmp).unwrap_or(BANDWIDTH_FIRST)
    }

    fn next(&mut self) -> Option<(Ticket<Transfer>, usize)> {
        self.waiting.pop_front()
    }
}

impl Endpoint {
    /// Hands over its lists.
    pub(super) fn ring(&mut self, actions: &mut Vec<Action>) {
        debug_assert!(self.state != State::Mute || self.is_drained(), "posted to a silent NIC");
        let nic = self.ends.nic;
        for queue in &mut self.queues {
            if let Some(requests) = queue.send.take_list() {
                actions.push(Action::Post { nic, qp: queue.own.number, requests });
            }
        }
    }
}

impl Transfer {
    /// The node of the bytes here, and the peer's NICs that are near to those there.
    fn place(&self, item: usize) -> (Option<u32>, u64) {
        match self.items[item].what {
            What::Slice => {
                let slice = &self.order.slices[item];
                (slice.local.region().node(), slice.near)
            }
            What::Word | What::Notice => (None, 0),
        }
    }

    /// Whether an item writes into the peer's memory.
    fn writes(&self, item: usize) -> bool {
        match self.items[item].what {
            What::Slice => self.order.slices[item].is_write,
            What::Word => false,
            What::Notice => true,
        }
    }

    /// What opens the memory of an item; a notice has its mailbox.
    pub(super) fn keys(&self, item: usize) -> Option<&Keys> {
        match self.items[item].what {
            What::Slice => Some(&self.order.slices[item].keys),
            What::Word => self.order.guard.as_ref().map(|guard| &guard.keys),
            What::Notice => None,
        }
    }
}

fn key_for(keys: &Keys, endpoint: &Endpoint, queue: usize) -> Option<RemoteKey> {
    match keys {
        Keys::Registered(by_nic) => by_nic.get(usize::from(endpoint.ends.theirs)).copied(),
        Keys::Grant(grant) => match endpoint.windows.get(grant) {
            Some(Keyhole::Open(keys, _)) => keys.get(queue).copied(),
            _ => None,
        },
    }
}

/// Writes a notice into a slot of ours: its number, the slot, and where it goes.
fn notice(
    (endpoint, queue): (&mut Endpoint, usize),
    (transfer, item): (&Transfer, usize),
    events: &mut Events,
    slots: usize,
) -> Option<(u32, Slice, u64)> {
    let mailbox = endpoint.mailbox?;
    let known = &mut endpoint.queues[queue];
    let slot = known.notice_slot(mailbox.slots.min(slots as u32))?;
    let event = transfer.order.event?;
    let item = &transfer.items[item];
    let number = transfer.event_number?;
    let notice = Notice {
        event: number,
        part: item.part?,
        parts: transfer.parts(),
        attempt: item.attempts,
        floor: events.floor(),
        counter: event.counter,
        amount: event.amount,
    };
    notice.write_to(&slot);
    events.sent(number);
    known.unread.push_back(number);
    let number = known.notices;
    known.notices += 1;
    let at = (number % u64::from(mailbox.slots)) * NOTICE_BYTES as u64 + queue_bytes(0) as u64;
    Some((number as u32, slot, mailbox.queue_addr(queue).wrapping_add(at)))
}
