//! The side that is asked: endpoints that Mooncake's peers opened here, one for each device of ours
//! and NIC of theirs.
//!
//! A target posts nothing and sees nothing of the traffic, so the endpoint that makes room for
//! another is the one whose last handshake is oldest, which need not be idle. Its peer gets errors
//! and asks again.

use std::collections::BTreeMap;

use kvrail_reactors::verbs::QpNumber;

use super::{Accepted, Ask, Nic, Remote, Waiting};
use crate::control::Handshake;
use crate::control::handshake::PortAddress;
#[cfg(any(test, fuzzing))]
use crate::control::handshake::split_nic_path;
use crate::limits::{MOONCAKE_ACK_NS, MOONCAKE_WAITING_MAX, RDMA_QUEUES_MAX};

// What Mooncake says.
const WRONG_PATH: &str = "Invalid argument: peer nic path inconsistency";
const WRONG_COUNT: &str = "QP count mismatch in peer and local endpoints, check MC_MAX_EP_PER_CTX";
const NOT_FOUND: &str = "Peer nic not found in that server";

// What it has no words for.
const WRONG_ACK: &str = "ready_ack for queue pairs that are not connected here: shake hands again";
const REPLACED: &str = "a later handshake from the same NIC has taken this one's place";
const FULL: &str = "as many endpoints as allowed are being made: try again later";
const CROWDED: &str = "as many requests as allowed wait for this endpoint: try again later";
const NO_QUEUES: &str = "the device gives no queue pairs, or does not connect them";
const ENDED: &str = "the endpoint was ended while it was made";

/// An endpoint, of all there ever were here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct EndpointId {
    /// The device.
    pub(crate) rail: u8,
    number: u64,
}

/// Something to be done, in this order.
#[derive(Debug)]
pub(crate) enum Action {
    /// Find the port of this NIC in its server's descriptor; answered by [`Target::located`].
    Locate { id: EndpointId, nic_path: String },
    /// Make as many queue pairs as there are here, and connect them; answered by
    /// [`Target::accepted`].
    Accept { id: EndpointId, queues: Vec<QpNumber>, port: PortAddress },
    /// End these; nothing more will be said of them.
    Destroy { id: EndpointId, queues: Vec<QpNumber> },
    /// Answer a request; every one is, once.
    Reply { ask: Ask, reply: Handshake },
}

/// What a target has for a pair of NICs.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Held {
    Nothing,
    /// It is being made: ask again when a request was answered.
    Soon,
    /// This, and now it is the caller's.
    Here(Accepted),
}

/// Our device and the peer's NIC.
type Pair = (u8, String);

/// The endpoints accepted from Mooncake's peers.
#[derive(Debug)]
pub(crate) struct Target {
    nics: BTreeMap<u8, Nic>,
    endpoints: BTreeMap<EndpointId, Endpoint>,
    by_pair: BTreeMap<Pair, EndpointId>,
    endpoints_max: usize,
    made: u64,
    actions: Vec<Action>,
}

#[derive(Debug)]
struct Endpoint {
    /// The peer's NIC.
    peer: String,
    remote: Remote,
    state: State,
    waiting: Vec<Waiting>,
    /// When its peer last asked, or was answered for the first time.
    heard_ns: u64,
    /// Its peer has yet to say that its own queue pairs are ready.
    awaits_ack: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Locating,
    Making,
    /// Still being made, for nobody.
    Unwanted,
    Open(Vec<QpNumber>),
}

impl Target {
    /// One that has no devices yet, and at most so many endpoints, [`MOONCAKE_ACCEPTED_MAX`] by
    /// default.
    ///
    /// [`MOONCAKE_ACCEPTED_MAX`]: crate::limits::MOONCAKE_ACCEPTED_MAX
    pub(crate) fn new(endpoints_max: usize) -> Self {
        Self {
            nics: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            by_pair: BTreeMap::new(),
            endpoints_max,
            made: 0,
            actions: Vec::new(),
        }
    }

    /// A device is there. If it was there before with another path or port, its endpoints end:
    /// their peers know it by the old one.
    pub(crate) fn add_nic(&mut self, nic: Nic) {
        if self.nics.get(&nic.rail) != Some(&nic) {
            self.remove_nic(nic.rail);
            self.nics.insert(nic.rail, nic);
        }
    }

    /// A device has failed: its endpoints end.
    pub(crate) fn remove_nic(&mut self, rail: u8) {
        self.retire_all(|id, _| id.rail == rail);
        self.nics.remove(&rail);
    }

    /// The server of this name is gone: its endpoints end.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn remove_peer(&mut self, server: &str) {
        let is_its = |path: &str| split_nic_path(path).is_some_and(|(name, _)| name == server);
        self.retire_all(|_, endpoint| is_its(&endpoint.peer));
    }

    /// The peer has another endpoint for this pair, of our own opening.
    pub(crate) fn forget(&mut self, rail: u8, peer: &str) {
        if let Some(id) = self.by_pair.get(&(rail, peer.to_owned())) {
            self.retire(*id, REPLACED);
        }
    }

    /// Gives away what there is for this pair, to be used from this side too.
    pub(crate) fn hand_over(&mut self, rail: u8, peer: &str) -> Held {
        let pair = (rail, peer.to_owned());
        let Some(id) = self.by_pair.get(&pair).copied() else { return Held::Nothing };
        match self.endpoints.remove(&id) {
            Some(Endpoint { state: State::Open(queues), remote, awaits_ack, .. }) => {
                self.by_pair.remove(&pair);
                Held::Here(Accepted { queues, remote, awaits_ack })
            }
            Some(unmade) => {
                self.endpoints.insert(id, unmade);
                Held::Soon
            }
            None => Held::Nothing,
        }
    }

    /// What is to be done, in this order.
    pub(crate) fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// A peer's handshake.
    pub(crate) fn asked(&mut self, ask: Ask, request: &Handshake, now_ns: u64) {
        let waiting = Waiting::new(ask, request);
        let pair = match self.pair(request) {
            Ok(pair) => pair,
            Err(why) => return self.refuse(waiting, why),
        };
        let known = self.by_pair.get(&pair).copied();
        let is_same = |id: &EndpointId| self.endpoints[id].remote.is_of(request);
        match known.filter(is_same) {
            Some(id) => self.again(id, waiting, request.is_ack(), now_ns),
            None if request.is_ack() => self.refuse(waiting, WRONG_ACK),
            None => self.open(pair, waiting, request, now_ns),
        }
    }

    /// Whose handshake it is, if it is one that we can shake.
    fn pair(&self, request: &Handshake) -> Result<Pair, &'static str> {
        let peer = &request.local_nic_path;
        let nic = self.nics.values().find(|nic| nic.path == request.peer_nic_path);
        match nic {
            // A NIC asks itself without a message: whoever has our path is somebody else.
            Some(nic) if !peer.is_empty() && *peer != nic.path => {
                match (1..=RDMA_QUEUES_MAX).contains(&request.qp_num.len()) {
                    true => Ok((nic.rail, peer.clone())),
                    false => Err(WRONG_COUNT),
                }
            }
            _ => Err(WRONG_PATH),
        }
    }

    /// The same queue pairs once more: a repetition, or the word that they are ready.
    fn again(&mut self, id: EndpointId, waiting: Waiting, is_ack: bool, now_ns: u64) {
        let Some(endpoint) = self.endpoints.get_mut(&id) else { return };
        endpoint.heard_ns = now_ns;
        endpoint.awaits_ack &= !is_ack;
        if endpoint.waiting.len() == MOONCAKE_WAITING_MAX {
            return self.refuse(waiting, CROWDED);
        }
        endpoint.waiting.push(waiting);
        self.welcome(id);
    }

    /// Queue pairs that we don't know: the peer's first, or it has restarted.
    fn open(&mut self, pair: Pair, waiting: Waiting, request: &Handshake, now_ns: u64) {
        if let Some(former) = self.by_pair.get(&pair) {
            self.retire(*former, REPLACED);
        }
        if !self.make_room() {
            return self.refuse(waiting, FULL);
        }
        self.made += 1;
        let id = EndpointId { rail: pair.0, number: self.made };
        let endpoint = Endpoint {
            peer: pair.1.clone(),
            remote: Remote::of(request),
            state: State::Locating,
            waiting: vec![waiting],
            heard_ns: now_ns,
            awaits_ack: request.ready_ack.is_some(),
        };
        self.by_pair.insert(pair, id);
        self.endpoints.insert(id, endpoint);
        match request.port {
            Some(port) => self.accept(id, port),
            None => {
                let nic_path = request.local_nic_path.clone();
                self.actions.push(Action::Locate { id, nic_path });
            }
        }
    }

    /// Whether there is room for one more. Those that are being made keep theirs.
    fn make_room(&mut self) -> bool {
        if self.endpoints.len() < self.endpoints_max {
            return true;
        }
        let is_open = |endpoint: &Endpoint| matches!(endpoint.state, State::Open(_));
        let open = self.endpoints.iter().filter(|(_, endpoint)| is_open(endpoint));
        let oldest = open.min_by_key(|(id, endpoint)| (endpoint.heard_ns, id.number));
        let oldest = oldest.map(|(id, _)| *id);
        oldest.map(|id| self.retire(id, REPLACED)).is_some()
    }

    /// The answer to [`Action::Locate`].
    pub(crate) fn located(&mut self, id: EndpointId, port: Option<PortAddress>) {
        let is_asked = |endpoint: &&Endpoint| endpoint.state == State::Locating;
        match self.endpoints.get(&id).filter(is_asked) {
            None => {}
            Some(_) => match port {
                Some(port) => self.accept(id, port),
                None => self.retire(id, NOT_FOUND),
            },
        }
    }

    fn accept(&mut self, id: EndpointId, port: PortAddress) {
        let Some(endpoint) = self.endpoints.get_mut(&id) else { return };
        endpoint.remote.port = Some(port);
        endpoint.state = State::Making;
        let queues = endpoint.remote.queues.clone();
        self.actions.push(Action::Accept { id, queues, port });
    }

    /// The answer to [`Action::Accept`]: queue pairs that are connected.
    pub(crate) fn accepted(&mut self, id: EndpointId, made: Option<Vec<QpNumber>>, now_ns: u64) {
        let Some(endpoint) = self.endpoints.get_mut(&id) else { return };
        let is_wanted = match endpoint.state {
            State::Making => true,
            State::Unwanted => false,
            State::Locating | State::Open(_) => return,
        };
        let count = endpoint.remote.queues.len();
        // What is there is ended with the rest.
        endpoint.state = State::Open(made.unwrap_or_default());
        endpoint.heard_ns = now_ns;
        match &endpoint.state {
            State::Open(queues) if is_wanted && queues.len() == count => self.welcome(id),
            _ => self.retire(id, NO_QUEUES),
        }
    }

    /// Answers whoever waits, if the queue pairs are there.
    fn welcome(&mut self, id: EndpointId) {
        let Some(endpoint) = self.endpoints.get_mut(&id) else { return };
        let (State::Open(queues), Some(nic)) = (&endpoint.state, self.nics.get(&id.rail)) else {
            return;
        };
        for waiting in endpoint.waiting.drain(..) {
            let (ask, reply) = waiting.welcome(nic, &endpoint.peer, queues);
            self.actions.push(Action::Reply { ask, reply });
        }
    }

    /// When [`Self::expire`] has something to do.
    pub(crate) fn wake_at_ns(&self) -> Option<u64> {
        self.endpoints.values().filter_map(Endpoint::expires_at_ns).min()
    }

    /// Ends the endpoints whose peers don't say that they are ready.
    pub(crate) fn expire(&mut self, now_ns: u64) {
        self.retire_all(|_, endpoint| endpoint.expires_at_ns().is_some_and(|at| at <= now_ns));
    }

    fn retire_all(&mut self, which: impl Fn(&EndpointId, &Endpoint) -> bool) {
        let found = self.endpoints.iter().filter(|(id, endpoint)| which(id, endpoint));
        let ids: Vec<_> = found.map(|(id, _)| *id).collect();
        ids.into_iter().for_each(|id| self.retire(id, ENDED));
    }

    /// Ends an endpoint, and refuses whoever waits for it. If its queue pairs are being made, it
    /// stays until they are.
    fn retire(&mut self, id: EndpointId, why: &str) {
        let Some(mut endpoint) = self.endpoints.remove(&id) else { return };
        let pair = (id.rail, std::mem::take(&mut endpoint.peer));
        if self.by_pair.get(&pair) == Some(&id) {
            self.by_pair.remove(&pair);
        }
        endpoint.waiting.drain(..).for_each(|waiting| self.refuse(waiting, why));
        match endpoint.state {
            State::Locating => {}
            State::Open(queues) if queues.is_empty() => {}
            State::Open(queues) => self.actions.push(Action::Destroy { id, queues }),
            State::Making | State::Unwanted => {
                endpoint.state = State::Unwanted;
                self.endpoints.insert(id, endpoint);
            }
        }
    }

    fn refuse(&mut self, waiting: Waiting, why: &str) {
        let (ask, reply) = waiting.refusal(why);
        self.actions.push(Action::Reply { ask, reply });
    }
}

impl Endpoint {
    /// When its peer's time to be ready is over.
    fn expires_at_ns(&self) -> Option<u64> {
        let is_awaited = self.awaits_ack && matches!(self.state, State::Open(_));
        is_awaited.then(|| self.heard_ns.saturating_add(MOONCAKE_ACK_NS))
    }
}

#[cfg(any(fuzzing, test))]
impl Target {
    /// Endpoints that there are, those included whose queue pairs are being made.
    pub(super) fn len(&self) -> usize {
        self.endpoints.len()
    }

    /// The queue pairs that are in use.
    pub(super) fn queues(&self) -> impl Iterator<Item = (u8, QpNumber)> {
        self.endpoints.iter().flat_map(|(id, endpoint)| match &endpoint.state {
            State::Open(queues) => queues.iter().map(|queue| (id.rail, *queue)).collect(),
            _ => Vec::new(),
        })
    }
}
