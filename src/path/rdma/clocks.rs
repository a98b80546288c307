//! What the passing of time asks of an initiator: questions again, silent rails, deadlines, and
//! peers that nobody reaches.

use kvrail_reactors::ticket::Ticket;

use super::action::Action;
use super::ending::Fenced;
use super::endpoint::{Endpoint, Keyhole, State};
use super::initiator::Initiator;
use super::message::{EndpointName, Message};
use super::sweep::Cause;
use super::transfer::{Stage, Transfer};
use crate::ErrorKind;
use crate::limits::{MOONCAKE_OPEN_MAX_NS, TICK_NS};

impl Initiator {
    /// A port carries traffic, or none. What is posted is left to the device's own retries.
    pub(crate) fn port(&mut self, nic: u8, is_up: bool, now_ns: u64) {
        let rails = self.peers.values_mut().flat_map(|peer| &mut peer.rails);
        for rail in rails.filter(|rail| rail.ends.nic == nic) {
            match is_up {
                true => rail.came_up(),
                false => rail.is_down = true,
            }
        }
        self.dispatch_all(now_ns);
    }

    fn dispatch_all(&mut self, now_ns: u64) {
        let keys: Vec<u64> = self.peers.keys().copied().collect();
        keys.into_iter().for_each(|key| self.dispatch(key, now_ns));
    }

    /// When the clock matters next: within a tick, where it does at all.
    pub(crate) fn wake_at_ns(&self, now_ns: u64) -> Option<u64> {
        let is_calm = |endpoint: &Endpoint| endpoint.is_ready() && endpoint.is_drained();
        let has_clocks = self.transfers.iter().any(|(_, transfer)| !transfer.is_over)
            || self.endpoints.iter().any(|(_, e)| !is_calm(e) && e.state != State::Mute);
        has_clocks.then_some(now_ns + TICK_NS)
    }

    /// Looks at the clocks.
    pub(crate) fn tick(&mut self, now_ns: u64) {
        let endpoints: Vec<_> = self.endpoints.iter().map(|(ticket, _)| ticket).collect();
        endpoints.into_iter().for_each(|ticket| self.tick_endpoint(ticket, now_ns));
        let transfers: Vec<_> = self.transfers.iter().map(|(ticket, _)| ticket).collect();
        transfers.into_iter().for_each(|ticket| self.tick_transfer(ticket, now_ns));
        let keys: Vec<u64> = self.peers.keys().copied().collect();
        for key in keys {
            self.ask_unheard(key, now_ns);
            self.give_up_if_lost(key, now_ns);
        }
        self.dispatch_all(now_ns);
    }

    fn tick_endpoint(&mut self, ticket: Ticket<Endpoint>, now_ns: u64) {
        let Some(endpoint) = self.endpoints.get_mut(ticket) else { return };
        let limits = &self.limits;
        let in_state_ns = now_ns.saturating_sub(endpoint.since_ns);
        let asked_ns = now_ns.saturating_sub(endpoint.asked_ns);
        let silent_ns = now_ns.saturating_sub(endpoint.progress_ns);
        let (peer, name) = (endpoint.peer, endpoint.name);
        let fences = self.peers.get(&peer).is_none_or(|known| known.fences);
        let open_max_ns = if fences { limits.open_max_ns } else { MOONCAKE_OPEN_MAX_NS };
        match endpoint.state {
            State::Creating | State::Opening | State::Connecting if in_state_ns >= open_max_ns => {
                self.end_endpoint(ticket, Cause::Failed, now_ns);
            }
            State::Opening if asked_ns >= limits.open_retry_ns => {
                endpoint.asked_ns = now_ns;
                let queues = endpoint.queues.iter().map(|queue| queue.own).collect();
                let message = Message::Open { name, theirs: endpoint.ends.theirs, queues };
                self.actions.push(Action::Tell { peer, message });
            }
            State::Ready if !endpoint.is_drained() && silent_ns >= limits.silence_ns => {
                self.end_endpoint(ticket, Cause::Failed, now_ns);
            }
            State::Ready if endpoint.waits_for_window(now_ns, limits.open_max_ns) => {
                self.end_endpoint(ticket, Cause::Failed, now_ns);
            }
            State::Ready => {
                let asks = endpoint.overdue_windows(now_ns, limits.open_retry_ns);
                let bind = |grant| Message::Bind { name, grant };
                let tell = |grant| Action::Tell { peer, message: bind(grant) };
                self.actions.extend(asks.into_iter().map(tell));
            }
            State::Ending if endpoint.remote.is_none() && in_state_ns >= limits.fence_max_ns => {
                endpoint.remote = Some(Fenced::Nobody);
                self.settle(ticket, now_ns);
            }
            State::Ending if endpoint.remote.is_none() && asked_ns >= limits.fence_retry_ns => {
                endpoint.asked_ns = now_ns;
                self.actions.push(Action::Tell { peer, message: Message::Fence { name } });
            }
            State::Ending => self.settle(ticket, now_ns),
            _ => {}
        }
    }

    /// Asks again for fences that events wait for. Nothing else does, so not often.
    fn ask_unheard(&mut self, key: u64, now_ns: u64) {
        let pause_ns = self.limits.fence_max_ns;
        let Some(peer) = self.peers.get_mut(&key).filter(|peer| !peer.is_closed) else { return };
        for (&rail, unheard) in &mut peer.unheard {
            if now_ns - unheard.asked_ns >= pause_ns {
                unheard.asked_ns = now_ns;
                let (initiator, generation) = (peer.id, unheard.generation);
                let name = EndpointName { initiator, rail, generation };
                let message = Message::Fence { name };
                self.actions.push(Action::Tell { peer: key, message });
            }
        }
    }

    fn tick_transfer(&mut self, ticket: Ticket<Transfer>, now_ns: u64) {
        let Some(transfer) = self.transfers.get(ticket) else { return };
        if let Some(kind) = transfer.early(now_ns) {
            self.end_early(ticket, kind, now_ns);
        }
        let Some(transfer) = self.transfers.get(ticket) else { return };
        let Some((_, since_ns)) = transfer.ended_early else { return };
        if now_ns.saturating_sub(since_ns) < self.limits.grace_ns {
            return;
        }
        let posted = |stage| match stage {
            Stage::Posted(endpoint, _) => Some(endpoint),
            _ => None,
        };
        let endpoints: Vec<_> = transfer.items.iter().filter_map(|i| posted(i.stage)).collect();
        for endpoint in endpoints {
            self.end_endpoint(endpoint, Cause::GivenUp, now_ns);
        }
    }

    /// What waits for an event's number while the peer doesn't say what it has read fails, too.
    fn give_up_numberless(&mut self, key: u64, now_ns: u64) {
        let Some(peer) = self.peers.get(&key).filter(|peer| !peer.unheard.is_empty()) else {
            return;
        };
        let is_late = |ticket: &&Ticket<Transfer>| {
            let posted_ns = self.transfers.get(**ticket).map(|known| known.posted_ns);
            posted_ns.is_some_and(|posted_ns| now_ns - posted_ns >= self.limits.lost_ns)
        };
        let late: Vec<_> = peer.numberless.iter().filter(is_late).copied().collect();
        late.into_iter().for_each(|ticket| self.end_early(ticket, ErrorKind::Lost, now_ns));
    }

    /// What waits for a peer that no rail has reached for too long fails.
    fn give_up_if_lost(&mut self, key: u64, now_ns: u64) {
        self.give_up_numberless(key, now_ns);
        let (transfers, lost_ns) = (&self.transfers, self.limits.lost_ns);
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let Some(since_ns) = peer.failing_since_ns else { return };
        // One that was asked for later has its own time: nobody had tried for it before.
        let is_lost = |&(ticket, item): &(Ticket<Transfer>, usize)| {
            transfers.get(ticket).is_some_and(|known| {
                let tried_ns = now_ns - since_ns.max(known.posted_ns);
                known.items[item].stage == Stage::Waiting && tried_ns >= lost_ns
            })
        };
        let waiting = std::mem::take(&mut peer.waiting);
        let (lost, waiting) = waiting.into_iter().partition::<Vec<_>, _>(is_lost);
        peer.waiting = waiting.into();
        for (ticket, item) in lost {
            self.fail_item(ticket, item, ErrorKind::Lost, now_ns);
        }
    }
}

impl Endpoint {
    /// Whether the peer has not answered for so long.
    fn waits_for_window(&self, now_ns: u64, max_ns: u64) -> bool {
        self.windows.values().any(|keyhole| match keyhole {
            Keyhole::Asked { since_ns, .. } => now_ns - since_ns >= max_ns,
            _ => false,
        })
    }

    /// Windows that were asked for too long ago: to be asked for again.
    fn overdue_windows(&mut self, now_ns: u64, retry_ns: u64) -> Vec<u128> {
        let mut overdue = Vec::new();
        for (grant, keyhole) in &mut self.windows {
            if let Keyhole::Asked { at_ns, .. } = keyhole
                && now_ns - *at_ns >= retry_ns
            {
                *at_ns = now_ns;
                overdue.push(*grant);
            }
        }
        overdue.sort_unstable();
        overdue
    }
}
