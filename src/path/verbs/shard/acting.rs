//! What the machines ask of a shard, carried out.

use kvrail_reactors::verbs::{Completed, Completion, Post, QpNumber, Status};

use super::super::mooncake::Errand;
use super::super::parts::Part;
use super::super::watch;
use super::RdmaShard;
use crate::auth::Visitor;
use crate::path::asking::RequestName;
use crate::path::rdma::{
    Action, Counted, Ending, EndpointName, Ends, Incarnation, InitiatorId, Message as Told, Refusal,
};
use crate::path::tcp::Event;
use crate::receipt::Proof;

impl RdmaShard {
    /// Carries out what the machines ask, until they ask nothing more.
    pub(super) fn act(&mut self) {
        loop {
            let mut actions = self.initiator.take_actions();
            actions.extend(self.target.take_actions());
            let is_busy = self.mooncake.act(&mut self.endpoints, &self.rdma, self.now_ns);
            let errands = self.mooncake.take_errands();
            if actions.is_empty() && errands.is_empty() && !is_busy {
                break;
            }
            actions.into_iter().for_each(|action| self.carry_out(action));
            errands.into_iter().for_each(|errand| self.run(errand));
        }
        let gone = self.forgotten.extract_if(.., |peer| !self.initiator.knows(*peer));
        gone.for_each(|peer| drop(self.peers.remove(&peer)));
        if self.parts.is_empty() {
            self.leaving.clear();
        }
    }

    fn carry_out(&mut self, action: Action) {
        tracing::trace!(shard = self.index, ?action);
        match action {
            Action::Create { name, peer, ends, queues } => self.create(name, peer, ends, queues),
            // A Mooncake peer's are connected before that is told.
            Action::Connect { name, peer, .. } if !self.is_kvrail(peer) => {
                self.initiator.connected(name, true, self.now_ns);
            }
            Action::Connect { name, nic, pairs, .. } => {
                let is_connected = self.endpoints.connect(name, nic, &pairs, &self.rdma);
                self.initiator.connected(name, is_connected, self.now_ns);
            }
            Action::Accept { name, peer, nic, queues } => {
                let (endpoint, queues_len) = (name, queues.len());
                let peer = self.strangers.get(&peer).map(|stranger| &*stranger.name);
                tracing::debug!(%endpoint, peer, nic, queues = queues_len, "accepts an endpoint");
                let made = self.endpoints.accept(name, nic, &queues, &self.rdma);
                self.target.accepted(name, made);
            }
            Action::Error { nic, qp } | Action::Reset { nic, qp } => {
                self.endpoints.set_error(nic, qp);
            }
            Action::Destroy { nic, qp } => self.destroy(nic, qp),
            Action::Post { nic, qp, requests } => self.post(nic, Post { qp, requests }),
            Action::Tell { peer, message } => self.tell(peer, &message),
            Action::Ended { order, ending } => match ending.local == Proof::Quiet {
                true => self.ended(order, &ending),
                false => {
                    self.parts.get_mut(&order).into_iter().for_each(|p| p.keep(ending.clone()))
                }
            },
            Action::Released { order } => {
                let ending = self.parts.get_mut(&order).and_then(Part::take_ending);
                ending.into_iter().for_each(|ending| self.ended(order, &ending));
            }
            Action::Counted { from, counted } => self.counted(from, counted),
            Action::Granted { name, grant } => self.open_window(name, grant),
            Action::Revoked { grant } => self.windows.closed(grant, &mut self.endpoints),
            Action::Evicted { initiator } => tracing::debug!(?initiator, "is gone"),
        }
    }

    fn is_kvrail(&self, peer: u64) -> bool {
        self.peers.get(&peer).is_none_or(|reach| reach.is_kvrail())
    }

    fn create(&mut self, name: EndpointName, peer: u64, ends: Ends, queues: usize) {
        match self.peers.get(&peer).filter(|reach| !reach.is_kvrail()) {
            Some(reach) => self.mooncake.open(name, ends, queues, reach.clone(), self.now_ns),
            None => {
                let made = self.endpoints.create(name, ends.nic, queues);
                self.initiator.created(name, ends.nic, made, self.now_ns);
            }
        }
    }

    /// What Mooncake's peers have to be asked, and what becomes of endpoints at them.
    fn run(&mut self, errand: Errand) {
        let now_ns = self.now_ns;
        match errand {
            Errand::Made { name, nic, queues } => {
                let made = self.endpoints.take_in(name, nic, &queues);
                self.initiator.created(name, nic, made, now_ns);
            }
            Errand::Unmade { name } => self.initiator.created(name, 0, None, now_ns),
            Errand::Ready { name } => {
                let queues = self.endpoints.addresses(name);
                let target = Incarnation(0);
                let opened = Told::Opened { name, target, queues, mailbox: None };
                self.initiator.told(opened, now_ns);
            }
            Errand::Over { name } => {
                self.initiator.told(Told::Refused { name, why: Refusal::Device }, now_ns);
                self.initiator.told(Told::Broken { name, is_rail_well: false }, now_ns);
            }
            Errand::Ask { name, peer, request } => {
                watch::shake(&self.rdma, &self.control, self.index, (name, peer, request));
            }
            Errand::Locate { id, nic_path } => {
                watch::locate(&self.rdma, &self.control, self.index, (id, nic_path));
            }
        }
    }

    fn ended(&mut self, order: u64, ending: &Ending) {
        if let Some(part) = self.parts.remove(&order) {
            self.slices -= part.slices();
            part.ended(ending, &self.rdma.names());
        }
    }

    fn destroy(&mut self, nic: u8, qp: QpNumber) {
        if let Some(name) = self.endpoints.destroy(nic, qp) {
            self.mooncake.closed(name);
            self.windows.gone(name, &mut self.endpoints);
        }
    }

    /// Posts a list. What a queue pair that has ended doesn't take is flushed, as the device would
    /// have; what finds no room is posted later.
    pub(super) fn post(&mut self, nic: u8, post: Post) {
        let Err(post) = self.endpoints.submit(nic, post) else { return };
        if self.endpoints.has(nic, post.qp) {
            return self.late.push((nic, post));
        }
        for request in &post.requests {
            self.completed(
                nic,
                Completion { qp: post.qp, id: request.id, what: Completed::Sent(Status::Flushed) },
            );
        }
    }

    fn open_window(&mut self, name: EndpointName, grant: u128) {
        let holder = self.target.peer_of(name).and_then(|peer| self.strangers.get(&peer));
        let visitor = holder.map_or_else(Visitor::stranger, |stranger| stranger.visitor.clone());
        let opened = self.windows.open(name, grant, &visitor, &self.rdma, &mut self.endpoints);
        if !self.target.granted(name, grant, opened) {
            self.windows.unopened(name, grant, &mut self.endpoints);
        }
    }

    fn counted(&mut self, from: InitiatorId, counted: Counted) {
        let Counted { counter, amount, event: number } = counted;
        let event = Event { count: Some((counter, amount)), message: None };
        // Refused: nobody has opened the counter (any more), and nobody waits for an answer.
        let status = self.rdma.arrivals.event(event);
        let request = RequestName { lane: from.label(), number };
        tracing::debug!(%request, counter, ?status, "a peer's event");
    }
}
