//! Mooncake's peers on a shard: their handshakes and ours, and the queue pairs that these are
//! about. One shard has all that concerns one peer, since Mooncake uses an endpoint both ways.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use kvrail_reactors::verbs::QpNumber;

use super::endpoints::Endpoints;
use super::hub::Rdma;
use super::letter::Port;
use super::reach::Reach;
use crate::Result;
use crate::control::Handshake;
use crate::control::handshake::{PortAddress, nic_path};
use crate::limits::MOONCAKE_ACCEPTED_MAX;
use crate::path::rdma::mooncake::{Action, Ask, EndpointId, Held, Nic, Opening, Step, Target};
use crate::path::rdma::{EndpointName, Ends};

/// Whoever waits for the answer to a handshake.
pub(super) type Reply = flume::Sender<Handshake>;

/// What has to be found out or done elsewhere.
pub(super) enum Errand {
    /// Queue pairs are there, in this number; the endpoint's machine makes them its own.
    Made { name: EndpointName, nic: u8, queues: Vec<QpNumber> },
    /// No queue pairs.
    Unmade { name: EndpointName },
    /// It may be used.
    Ready { name: EndpointName },
    /// It came to nothing, or has ended.
    Over { name: EndpointName },
    /// Put this to the peer; answered by [`Mooncake::answered`].
    Ask { name: EndpointName, peer: Arc<str>, request: Handshake },
    /// Find a NIC's port; answered by [`Mooncake::located`].
    Locate { id: EndpointId, nic_path: String },
}

/// Mooncake's peers of one shard.
pub(super) struct Mooncake {
    target: Target,
    nics: Vec<Nic>,
    openings: BTreeMap<EndpointName, Open>,
    /// Openings that wait for what the peer is opening itself.
    waiting: Vec<(EndpointName, Ends, usize, Arc<Reach>)>,
    replies: HashMap<u64, Reply>,
    next_ask: u64,
    errands: Vec<Errand>,
}

/// An endpoint of ours at a Mooncake peer.
struct Open {
    opening: Opening,
    nic: u8,
    reach: Arc<Reach>,
    /// The peer's NIC, by its place in what it has published, and by its path.
    theirs: u8,
    path: String,
}

impl Mooncake {
    /// For an engine of this name.
    ///
    /// # Errors
    /// Refused: a peer could not write the path of one of the NICs.
    pub(super) fn new(server: &str, rdma: &Rdma) -> Result<Self> {
        let nic = |(index, nic): (usize, &super::devices::LocalNic)| {
            let Port { gid, lid, .. } = nic.port;
            Nic::new(index as u8, server, nic.name(), PortAddress { gid, lid })
        };
        let nics: Vec<_> = rdma.nics.iter().enumerate().map(nic).collect::<Result<_>>()?;
        let mut target = Target::new(MOONCAKE_ACCEPTED_MAX);
        nics.iter().for_each(|nic| target.add_nic(nic.clone()));
        Ok(Self {
            target,
            nics,
            openings: BTreeMap::new(),
            waiting: Vec::new(),
            replies: HashMap::new(),
            next_ask: 0,
            errands: Vec::new(),
        })
    }

    pub(super) fn take_errands(&mut self) -> Vec<Errand> {
        std::mem::take(&mut self.errands)
    }

    /// Opens an endpoint at a peer's NIC, or takes over the one that the peer has opened here.
    pub(super) fn open(
        &mut self,
        name: EndpointName,
        ends: Ends,
        queues: usize,
        reach: Arc<Reach>,
        now_ns: u64,
    ) {
        let device = reach.nics.get(usize::from(ends.theirs)).map(|nic| nic.name.as_str());
        let path = device.and_then(|device| nic_path(&reach.server, device));
        let own = self.nics.get(usize::from(ends.nic)).cloned();
        let (Some(path), Some(own)) = (path, own) else {
            return self.errands.push(Errand::Unmade { name });
        };
        let opening = match self.target.hand_over(ends.nic, &path) {
            Held::Nothing => Opening::new(own, path.clone(), queues, now_ns),
            Held::Here(accepted) => {
                let queues = accepted.queues().to_vec();
                self.errands.push(Errand::Made { name, nic: ends.nic, queues });
                Ok(Opening::adopt(own, path.clone(), accepted, now_ns))
            }
            Held::Soon => return self.waiting.push((name, ends, queues, reach)),
        };
        match opening {
            Ok(opening) => {
                let (nic, theirs) = (ends.nic, ends.theirs);
                self.openings.insert(name, Open { opening, nic, reach, theirs, path });
            }
            Err(error) => {
                tracing::warn!(%error, "no endpoint");
                self.errands.push(Errand::Unmade { name });
            }
        }
    }

    /// The endpoint's machine is done with it.
    pub(super) fn closed(&mut self, name: EndpointName) {
        self.waiting.retain(|(waiting, ..)| *waiting != name);
        if let Some(mut open) = self.openings.remove(&name) {
            open.opening.close();
            for step in open.opening.take_steps() {
                if let Step::Reply { ask, reply } = step {
                    self.reply(ask, reply);
                }
            }
        }
    }

    /// A peer's handshake.
    pub(super) fn asked(&mut self, request: &Handshake, reply: Reply, now_ns: u64) {
        let ask = Ask(self.next_ask);
        self.next_ask += 1;
        self.replies.insert(ask.0, reply);
        let is_its = |open: &&mut Open| {
            let own = self.nics.get(usize::from(open.nic)).map(Nic::path);
            open.path == request.local_nic_path && own == Some(&request.peer_nic_path)
        };
        let mut openings = self.openings.values_mut().filter(is_its);
        if !openings.any(|open| open.opening.asked(ask, request)) {
            self.target.asked(ask, request, now_ns);
        }
    }

    /// What the peer says to a handshake of ours, or why it says nothing.
    pub(super) fn answered(&mut self, name: EndpointName, answer: Result<Handshake>) {
        if let Some(open) = self.openings.get_mut(&name) {
            open.opening.answered(answer);
        }
    }

    /// The port of a NIC of a peer that does not say it in its handshake.
    pub(super) fn located(&mut self, id: EndpointId, port: Option<PortAddress>) {
        self.target.located(id, port);
    }

    pub(super) fn tick(&mut self, now_ns: u64) {
        self.target.expire(now_ns);
        self.openings.values_mut().for_each(|open| open.opening.expire(now_ns));
        for (name, ends, queues, reach) in std::mem::take(&mut self.waiting) {
            self.open(name, ends, queues, reach, now_ns);
        }
    }

    /// Whether time matters.
    pub(super) fn has_clocks(&self) -> bool {
        let opens = || self.openings.values().any(|open| open.opening.wake_at_ns().is_some());
        !self.waiting.is_empty() || self.target.wake_at_ns().is_some() || opens()
    }

    /// Ends all that peers have opened.
    pub(super) fn stop(&mut self) {
        (0..self.nics.len()).for_each(|nic| self.target.remove_nic(nic as u8));
    }

    /// Carries out what the machines ask of the NICs; whether there was anything.
    pub(super) fn act(&mut self, endpoints: &mut Endpoints, rdma: &Rdma, now_ns: u64) -> bool {
        let names: Vec<EndpointName> = self.openings.keys().copied().collect();
        let mut has_acted = false;
        for name in names {
            let steps = self.openings.get_mut(&name).map(|open| open.opening.take_steps());
            for step in steps.into_iter().flatten() {
                has_acted = true;
                self.step(name, step, endpoints, rdma);
            }
        }
        for action in self.target.take_actions() {
            has_acted = true;
            self.carry_out(action, endpoints, rdma, now_ns);
        }
        has_acted
    }

    fn step(&mut self, name: EndpointName, step: Step, endpoints: &mut Endpoints, rdma: &Rdma) {
        let Some(open) = self.openings.get_mut(&name) else { return };
        match step {
            Step::Create { queues } => {
                let made = endpoints.create_plain(open.nic, queues);
                let queues = made.unwrap_or_default();
                self.errands.push(match queues.is_empty() {
                    true => Errand::Unmade { name },
                    false => Errand::Made { name, nic: open.nic, queues: queues.clone() },
                });
                open.opening.created((!queues.is_empty()).then_some(queues));
            }
            Step::Ask(request) => {
                let peer = open.reach.name.clone();
                self.errands.push(Errand::Ask { name, peer, request });
            }
            Step::Locate => {
                let port = open.reach.nics.get(usize::from(open.theirs)).map(|nic| nic.port);
                open.opening.located(port.map(address));
            }
            Step::Connect { pairs, port } => {
                let is_connected = endpoints.connect_plain(open.nic, &pairs, &port, rdma);
                open.opening.connected(is_connected);
            }
            Step::Reply { ask, reply } => self.reply(ask, reply),
            Step::Ready => {
                self.target.forget(open.nic, &open.path);
                self.errands.push(Errand::Ready { name });
            }
            // They are the endpoint's machine's, which drains them first.
            Step::Destroy { queues } => tracing::trace!(?queues, "are left to their endpoint"),
            Step::Over(error) => {
                tracing::debug!(%error, nic = open.path, "an endpoint is over");
                self.errands.push(Errand::Over { name });
            }
        }
    }

    fn carry_out(&mut self, action: Action, endpoints: &mut Endpoints, rdma: &Rdma, now_ns: u64) {
        match action {
            Action::Locate { id, nic_path } => self.errands.push(Errand::Locate { id, nic_path }),
            Action::Accept { id, queues, port } => {
                let made = endpoints.accept_plain(id.rail, &queues, &port, rdma);
                self.target.accepted(id, made, now_ns);
            }
            Action::Destroy { id, queues } => {
                // Nothing is posted there.
                for qp in queues {
                    endpoints.set_error(id.rail, qp);
                    endpoints.destroy(id.rail, qp);
                }
            }
            Action::Reply { ask, reply } => self.reply(ask, reply),
        }
    }

    fn reply(&mut self, ask: Ask, reply: Handshake) {
        if let Some(waiting) = self.replies.remove(&ask.0) {
            // Who asked may have lost patience.
            let _ = waiting.send(reply);
        }
    }
}

fn address(Port { gid, lid, .. }: Port) -> PortAddress {
    PortAddress { gid, lid }
}
