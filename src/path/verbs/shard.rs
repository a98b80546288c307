//! One shard's RDMA: its queues on every NIC, the two machines that decide, and the parts of
//! transfers that they carry. It carries out what the machines ask, and decides nothing.

mod acting;
mod letters;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use kvrail_reactors::verbs::{AsyncEvent, Completed, Completion, Post};

use super::endpoints::Endpoints;
use super::hub::{Rdma, Stranger, Struck};
use super::letter::Body;
use super::mooncake::{Mooncake, Reply};
use super::parts::{Carry, Part};
use super::reach::{Reach, pair};
use super::watch;
use super::windows::Windows;
use crate::control::handshake::PortAddress;
use crate::control::{Control, Handshake};
use crate::limits::{
    ENDING_MAX_NS, OUTSTANDING_MAX, RDMA_COMPLETIONS_TURN, RDMA_GOODBYE_NS, RDMA_MARKER_NS,
    RDMA_VISIT_NS, SHARDS_MAX, TICK_NS,
};
use crate::path::rdma::mooncake::EndpointId;
use crate::path::rdma::{EndpointName, Incarnation, Initiator, InitiatorId, RdmaLimits, Target};
use crate::path::tcp::Guard;
use crate::{Error, ErrorKind, PathKind, Result};

/// What a shard's RDMA actor is told.
pub(crate) enum Message {
    /// Carry a part of a transfer.
    Carry(Box<Carry>),
    /// A peer wrote.
    Told { stranger: Stranger, body: Box<Body> },
    /// A NIC reports something.
    Event { nic: u8, event: AsyncEvent },
    /// A Mooncake peer's handshake, and who waits for the answer.
    Handshake { request: Box<Handshake>, reply: Reply },
    /// The answer to one of ours.
    Answered { name: EndpointName, answer: Result<Box<Handshake>> },
    /// The port of a Mooncake peer's NIC.
    Located { id: EndpointId, port: Option<PortAddress> },
    /// Nobody answers any more in the name of this peer, which has endpoints here.
    Absent { peer: u64 },
    /// Nobody of ours holds the peer with this number any more.
    Forget { peer: u64 },
    /// Let go of registrations that were taken back, then drop the guard.
    Refresh { guard: Guard },
    /// Take nothing more from our own side and end what is under way; then drop the guard.
    Leave { guard: Guard },
}

/// One shard's RDMA. Fields are dropped in their order: the NICs first, behind which nothing
/// touches memory any more; then what waits for that.
pub(crate) struct RdmaShard {
    endpoints: Endpoints,
    windows: Windows,
    mooncake: Mooncake,
    parts: HashMap<u64, Part>,
    initiator: Initiator,
    target: Target,
    rdma: Arc<Rdma>,
    control: Arc<Control>,
    struck: Arc<Struck>,
    index: usize,
    /// The node that this shard runs on.
    node: Option<u32>,
    peers: HashMap<u64, Arc<Reach>>,
    /// Peers that nobody holds, until they have fenced what they had from us.
    forgotten: Vec<u64>,
    strangers: HashMap<u64, Stranger>,
    random: RandomState,
    done: Vec<Completion>,
    /// Lists that a queue pair had no room for.
    late: Vec<(u8, Post)>,
    next_order: u64,
    slices: usize,
    /// Never goes back: messages are handled behind the time at which their turn began.
    now_ns: u64,
    next_tick_ns: u64,
    next_visit_ns: u64,
    next_expiry_ns: u64,
    is_leaving: bool,
    leaving: Vec<Guard>,
    stop_asked_ns: Option<u64>,
}

impl RdmaShard {
    pub(super) fn new(
        endpoints: Endpoints,
        mooncake: Mooncake,
        rdma: Arc<Rdma>,
        control: Arc<Control>,
        struck: Arc<Struck>,
        (index, node): (usize, Option<u32>),
    ) -> Self {
        let target = Target::new(Incarnation(rdma.incarnation), rdma.nics.len());
        let is_software = endpoints.has_software();
        let limits = if is_software { RdmaLimits::of_software() } else { RdmaLimits::default() };
        Self {
            endpoints,
            windows: Windows::default(),
            mooncake,
            parts: HashMap::new(),
            initiator: Initiator::new(limits),
            target,
            rdma,
            control,
            struck,
            index,
            node,
            peers: HashMap::new(),
            forgotten: Vec::new(),
            strangers: HashMap::new(),
            random: RandomState::new(),
            done: Vec::new(),
            late: Vec::new(),
            next_order: 1,
            slices: 0,
            now_ns: 0,
            next_tick_ns: 0,
            next_visit_ns: 0,
            next_expiry_ns: 0,
            is_leaving: false,
            leaving: Vec::new(),
            stop_asked_ns: None,
        }
    }

    pub(super) fn handle(&mut self, message: Message, now_ns: u64) {
        self.now_ns = self.now_ns.max(now_ns);
        match message {
            Message::Carry(carry) => self.carry(*carry),
            Message::Told { stranger, body } => self.told(stranger, *body),
            Message::Event { nic, event } => self.event(nic, event),
            Message::Handshake { request, reply } => {
                self.mooncake.asked(&request, reply, self.now_ns);
            }
            Message::Answered { name, answer } => {
                self.mooncake.answered(name, answer.map(|answer| *answer));
            }
            Message::Located { id, port } => self.mooncake.located(id, port),
            Message::Absent { peer } => self.absent(peer),
            Message::Forget { peer } => self.forget(peer),
            Message::Refresh { guard } => {
                self.endpoints.refresh();
                drop(guard);
            }
            Message::Leave { guard } => self.leave(guard),
        }
        self.act();
    }

    /// Moves everything forward; returns how much there was to do.
    pub(super) fn poll(&mut self, now_ns: u64) -> usize {
        self.now_ns = self.now_ns.max(now_ns);
        let mut moved = 0;
        for nic in 0..self.rdma.nics.len() as u8 {
            moved += self.poll_nic(nic);
        }
        for key in self.struck.take() {
            self.target.revoke(key.to_raw());
            // That may store a packet behind a window that was closed.
            if self.endpoints.has_software() {
                self.target.hurry(key.to_raw());
            }
            moved += 1;
        }
        if !self.late.is_empty() {
            let late = std::mem::take(&mut self.late);
            moved += late.len();
            late.into_iter().for_each(|(nic, post)| self.post(nic, post));
        }
        if now_ns >= self.next_tick_ns {
            self.tick();
        }
        if moved > 0 {
            self.act();
        }
        moved
    }

    /// Before parking: `false` where something is ready already.
    pub(super) fn arm(&mut self) -> bool {
        let is_quiet = self.struck.is_empty() && self.late.is_empty() && !self.hear_reports();
        is_quiet && self.endpoints.arm()
    }

    /// When to look again though nothing rings.
    pub(super) fn wake_at_ns(&self) -> Option<u64> {
        let has_clocks = self.initiator.wake_at_ns(self.now_ns).is_some()
            || self.target.is_ending()
            || self.mooncake.has_clocks()
            || !self.late.is_empty();
        let visit = (!self.target.is_idle()).then_some(self.next_visit_ns);
        has_clocks.then_some(self.next_tick_ns).into_iter().chain(visit).min()
    }

    /// Ends everything; `true` when nothing is left under way.
    pub(super) fn stopping(&mut self, now_ns: u64) -> bool {
        self.now_ns = self.now_ns.max(now_ns);
        let since_ns = *self.stop_asked_ns.get_or_insert(now_ns);
        if since_ns == now_ns {
            self.close_all();
            self.mooncake.stop();
            for (_, initiator) in self.target.initiators() {
                self.target.leave(initiator);
            }
            self.act();
        }
        let waited_ns = now_ns.saturating_sub(since_ns);
        let is_quiet = self.parts.is_empty() && self.target.is_idle();
        // Peers that are stopping too answer no more; endpoints that carry nothing need no answer.
        let is_over = self.initiator.is_idle() || waited_ns > RDMA_GOODBYE_NS;
        (is_quiet && is_over) || waited_ns > ENDING_MAX_NS
    }

    fn poll_nic(&mut self, nic: u8) -> usize {
        let mut done = std::mem::take(&mut self.done);
        self.endpoints.poll(nic, RDMA_COMPLETIONS_TURN, &mut done);
        let found = done.len();
        for completion in done.drain(..) {
            self.completed(nic, completion);
        }
        self.done = done;
        found
    }

    fn completed(&mut self, nic: u8, Completion { qp, id, what }: Completion) {
        tracing::trace!(shard = self.index, nic, ?qp, id, ?what, "completed");
        match what {
            Completed::Sent(status) => {
                self.initiator.completed(nic, (qp, id, status), self.now_ns);
                self.target.completed(nic, (qp, id, status));
            }
            Completed::Received(word) => self.target.received(nic, qp, word),
        }
    }

    fn carry(&mut self, carry: Carry) {
        let id = self.next_order;
        self.next_order += 1;
        let (peer, reach) = (carry.peer, carry.reach.clone());
        let (part, order) = Part::new(carry, id);
        if self.is_leaving || self.stop_asked_ns.is_some() {
            return part.refused(ErrorKind::Closed);
        }
        if self.slices + part.slices() > OUTSTANDING_MAX {
            return part.refused(ErrorKind::Busy);
        }
        self.meet(peer, reach);
        match self.initiator.carry(order, self.now_ns) {
            Ok(()) => {
                self.slices += part.slices();
                self.parts.insert(id, part);
            }
            Err(kind) => part.refused(kind),
        }
    }

    /// Makes a peer known to the machine, under a name that nobody else has had.
    fn meet(&mut self, peer: u64, reach: Arc<Reach>) {
        if self.peers.insert(peer, reach.clone()).is_some() {
            return;
        }
        let drawn = self.random.hash_one((peer, self.next_order)) / SHARDS_MAX as u64;
        let id = InitiatorId(drawn * SHARDS_MAX as u64 + self.index as u64);
        let names: Vec<_> = reach.nics.iter().map(|nic| nic.name.clone()).collect();
        let near = |nic: &super::reach::OwnNic<'_>| self.node.is_none() || nic.node == self.node;
        let nics = self.rdma.nics.iter().enumerate().map(|(index, nic)| nic.as_own(index));
        let all: Vec<_> = nics.collect();
        let here: Vec<_> = all.iter().filter(|nic| near(nic)).cloned().collect();
        let ours = if here.is_empty() { &all } else { &here };
        self.initiator.add_peer(peer, id, &pair(ours, &names), reach.is_kvrail());
    }

    /// Passes on what devices report; whether they did.
    fn hear_reports(&mut self) -> bool {
        let reports = self.endpoints.reports();
        for &(nic, event) in &reports {
            tracing::info!(device = self.rdma.nics[usize::from(nic)].name(), ?event, "reported");
            for (_, shard) in self.rdma.shards().enumerate().filter(|(at, _)| *at != self.index) {
                if shard.send(Message::Event { nic, event }).is_err() {
                    tracing::warn!(?event, "a shard is too busy to be told of a device's report");
                }
            }
            self.event(nic, event);
        }
        !reports.is_empty()
    }

    fn event(&mut self, nic: u8, event: AsyncEvent) {
        self.endpoints.told(nic, event);
        match event {
            AsyncEvent::PortUp => self.initiator.port(nic, true, self.now_ns),
            AsyncEvent::PortDown | AsyncEvent::DeviceFatal => {
                self.initiator.port(nic, false, self.now_ns);
            }
            AsyncEvent::AccessViolated(qp) | AsyncEvent::PairFailed(qp) => {
                if let Some(endpoint) = self.target.endpoint_of(nic, qp) {
                    let peer = self.target.peer_of(endpoint);
                    let peer = peer.and_then(|peer| self.strangers.get(&peer));
                    let peer = peer.map(|stranger| &*stranger.name);
                    tracing::debug!(%endpoint, peer, "a NIC has refused a peer's request");
                }
                self.target.violated(nic, qp);
            }
            // Those that connect from here on find out; the queues' own end comes as flushes.
            AsyncEvent::GidChanged
            | AsyncEvent::LastReceive(_)
            | AsyncEvent::CompletionsFailed(_)
            | AsyncEvent::ReceivesFailed(_) => {}
        }
    }

    fn absent(&mut self, peer: u64) {
        for (_, initiator) in self.target.initiators().into_iter().filter(|(of, _)| *of == peer) {
            self.target.leave(initiator);
        }
    }

    fn forget(&mut self, peer: u64) {
        self.initiator.close(peer, self.now_ns);
        self.forgotten.push(peer);
    }

    fn leave(&mut self, guard: Guard) {
        self.is_leaving = true;
        self.leaving.push(guard);
        self.close_all();
    }

    fn close_all(&mut self) {
        let peers: Vec<u64> = self.peers.keys().copied().collect();
        peers.into_iter().for_each(|peer| self.initiator.close(peer, self.now_ns));
    }

    fn tick(&mut self) {
        self.next_tick_ns = self.now_ns + TICK_NS;
        let now_ns = self.now_ns;
        let ended = |(id, part): (&u64, &Part)| Some((*id, part.ended_early(now_ns)?));
        let ended: Vec<_> = self.parts.iter().filter_map(ended).collect();
        for (id, kind) in ended {
            self.initiator.cancel(id, kind, now_ns);
        }
        self.hear_reports();
        self.endpoints.record();
        self.mooncake.tick(now_ns);
        self.initiator.tick(now_ns);
        if now_ns >= self.next_expiry_ns {
            self.next_expiry_ns = now_ns + RDMA_MARKER_NS;
            self.endpoints.expire_markers();
        }
        if now_ns >= self.next_visit_ns {
            self.next_visit_ns = now_ns + RDMA_VISIT_NS;
            self.visit();
        }
        self.act();
    }

    /// Asks whether those are alive that have endpoints here, of which a NIC hears nothing.
    fn visit(&mut self) {
        let peers: std::collections::BTreeSet<u64> =
            self.target.initiators().into_iter().map(|(peer, _)| peer).collect();
        self.strangers.retain(|number, _| peers.contains(number));
        for stranger in self.strangers.values().cloned() {
            watch::visit(&self.rdma, &self.control, self.index, stranger);
        }
    }
}

/// The error of a part that a shard did not take.
pub(crate) fn not_taken(carry: Carry, error: &Error) {
    let failures = carry.slices.iter().map(|(request, _)| (*request, error.clone()));
    let failures: Vec<_> = failures.collect();
    let Carry { portion, .. } = carry;
    portion.back(failures.into_iter().map(|(r, e)| (r, e.with_path(PathKind::Rdma))).collect());
}
