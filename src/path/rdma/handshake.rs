//! How an endpoint of ours comes to be: its queue pairs are made, the peer is asked, they are
//! connected. And what peers say about endpoints and windows afterwards.

use kvrail_reactors::region::Slice;
use kvrail_reactors::ticket::Ticket;
use kvrail_reactors::verbs::QpAddress;

use super::action::Action;
use super::endpoint::{Endpoint, Keyhole, Queue, State, scratch_bytes};
use super::initiator::Initiator;
use super::message::{EndpointName, Incarnation, Message};
use super::sweep::Cause;

impl Initiator {
    /// The answer to [`Action::Create`]: queue pairs and scratch memory for them.
    pub(crate) fn created(
        &mut self,
        name: EndpointName,
        nic: u8,
        made: Option<(Vec<QpAddress>, Slice)>,
        now_ns: u64,
    ) {
        let Some(&ticket) = self.by_name.get(&name) else {
            let unwanted = made.into_iter().flat_map(|(queues, _)| queues);
            let destroy = |own: QpAddress| Action::Destroy { nic, qp: own.number };
            return self.actions.extend(unwanted.map(destroy));
        };
        let Some((owns, scratch)) = made else {
            return self.end_endpoint(ticket, Cause::Failed, now_ns);
        };
        let Some(endpoint) = self.endpoints.get_mut(ticket) else { return };
        let bytes = scratch_bytes(self.limits.notices);
        let parts = (0..).map(|index| scratch.part(index * bytes, bytes));
        for (own, part) in owns.iter().zip(parts) {
            let Ok(part) = part else { break };
            self.by_qp.insert((nic, own.number), (ticket, endpoint.queues.len()));
            endpoint.queues.push(Queue::new(*own, part, self.limits.signals));
        }
        endpoint.becomes(State::Opening, now_ns);
        let message = Message::Open { name, theirs: endpoint.ends.theirs, queues: owns };
        self.actions.push(Action::Tell { peer: endpoint.peer, message });
    }

    /// The answer to [`Action::Connect`].
    pub(crate) fn connected(&mut self, name: EndpointName, is_connected: bool, now_ns: u64) {
        let Some(&ticket) = self.by_name.get(&name) else { return };
        let Some(endpoint) = self.endpoints.get_mut(ticket) else { return };
        if endpoint.state != State::Connecting {
            return;
        }
        if !is_connected {
            return self.end_endpoint(ticket, Cause::Failed, now_ns);
        }
        endpoint.becomes(State::Ready, now_ns);
        let peer = endpoint.peer;
        self.dispatch(peer, now_ns);
    }

    /// A peer said something about an endpoint of ours.
    pub(crate) fn told(&mut self, message: Message, now_ns: u64) {
        match message {
            Message::Opened { .. } => self.opened(message, now_ns),
            Message::Refused { name, .. } => {
                // It is fenced all the same: an earlier or later try may have been accepted.
                if let Some((ticket, _)) = self.named(name, &[State::Opening]) {
                    self.end_endpoint(ticket, Cause::Failed, now_ns);
                }
            }
            Message::Broken { name, is_rail_well } => {
                let states = [State::Opening, State::Connecting, State::Ready];
                let cause = if is_rail_well { Cause::GivenUp } else { Cause::Failed };
                if let Some((ticket, _)) = self.named(name, &states) {
                    self.end_endpoint(ticket, cause, now_ns);
                }
            }
            Message::Fenced { name, target, arrived } => {
                self.fenced(name, target, &arrived.into_iter().collect(), now_ns);
            }
            Message::Bound { name, grant, keys, access } => {
                self.window(name, grant, Keyhole::Open(keys, access), now_ns);
            }
            Message::Struck { name, grant, why } => {
                self.window(name, grant, Keyhole::Struck(why), now_ns);
            }
            // What a target is told.
            Message::Open { .. } | Message::Fence { .. } | Message::Bind { .. } => {}
        }
    }

    fn opened(&mut self, message: Message, now_ns: u64) {
        let Message::Opened { name, target, queues, mailbox } = message else { return };
        let Some((ticket, endpoint)) = self.named(name, &[State::Opening]) else { return };
        let has_slots = mailbox.is_none_or(|mailbox| mailbox.slots.is_power_of_two());
        if queues.len() != endpoint.queues.len() || !has_slots {
            return self.end_endpoint(ticket, Cause::Failed, now_ns);
        }
        endpoint.target = Some(target);
        endpoint.mailbox = mailbox;
        endpoint.becomes(State::Connecting, now_ns);
        let owns = endpoint.queues.iter().map(|queue| queue.own.number);
        let (peer, nic, pairs) = (endpoint.peer, endpoint.ends.nic, owns.zip(queues).collect());
        self.actions.push(Action::Connect { name, peer, nic, pairs });
        self.leave_predecessors(peer, target, now_ns);
    }

    /// A process of this peer has answered: those with any other have nobody at their end.
    pub(super) fn leave_predecessors(&mut self, peer: u64, living: Incarnation, now_ns: u64) {
        let is_dead = |(ticket, endpoint): (_, &Endpoint)| {
            let is_other = endpoint.target.is_some_and(|target| target != living);
            (endpoint.peer == peer && is_other).then_some(ticket)
        };
        let dead: Vec<_> = self.endpoints.iter().filter_map(is_dead).collect();
        dead.into_iter().for_each(|ticket| self.end_endpoint(ticket, Cause::GivenUp, now_ns));
    }

    fn window(&mut self, name: EndpointName, grant: u128, keyhole: Keyhole, now_ns: u64) {
        let Some((_, endpoint)) = self.named(name, &[State::Ready]) else { return };
        let peer = endpoint.peer;
        let queues = endpoint.queues.len();
        let fits = !matches!(&keyhole, Keyhole::Open(keys, _) if keys.len() != queues);
        match endpoint.windows.get_mut(&grant) {
            // An answer that comes late says nothing new.
            Some(known @ Keyhole::Asked { .. }) if fits => *known = keyhole,
            Some(known @ Keyhole::Open(..)) if matches!(keyhole, Keyhole::Struck(_)) => {
                *known = keyhole;
            }
            _ => return,
        }
        self.dispatch(peer, now_ns);
    }

    fn named(
        &mut self,
        name: EndpointName,
        states: &[State],
    ) -> Option<(Ticket<Endpoint>, &mut Endpoint)> {
        let ticket = *self.by_name.get(&name)?;
        let endpoint = self.endpoints.get_mut(ticket)?;
        states.contains(&endpoint.state).then_some((ticket, endpoint))
    }
}
