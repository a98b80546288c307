//! The target under any input: every request is answered once, queue pairs that were made are in
//! use or ended, and there are never more endpoints than allowed.

use std::collections::{BTreeMap, BTreeSet};

use kvrail_reactors::verbs::QpNumber;

use super::{Action, Ask, EndpointId, Nic, Target};
use crate::control::Handshake;
use crate::control::handshake::PortAddress;
use crate::limits::MOONCAKE_ACK_NS;

/// Few, so that a short input reaches the bound.
pub(crate) const ENDPOINTS_MAX: usize = 4;

/// Devices of ours, `kv@d0` and `kv@d1`.
pub(crate) const RAILS: u8 = 2;

/// A port like any other.
pub(crate) const PORT: PortAddress = PortAddress { gid: [7; 16], lid: 3 };

/// See [`crate::fuzzing::handshake`].
pub(crate) fn property(input: &[u8]) {
    let mut rig = Rig::new();
    input.split(|byte| *byte == b'\n').for_each(|line| rig.line(line));
    rig.finish();
}

/// A device of ours.
pub(crate) fn nic(rail: u8) -> Nic {
    Nic::new(rail, "kv", &format!("d{rail}"), PORT).expect("it has both names")
}

/// A target, whoever makes its queue pairs, and the requests that wait.
pub(crate) struct Rig {
    pub(crate) target: Target,
    pub(crate) now_ns: u64,
    locating: Vec<EndpointId>,
    making: Vec<(EndpointId, usize)>,
    /// Requests without an answer, and whether they had the key `ready_ack`.
    open: BTreeMap<Ask, bool>,
    pub(crate) replies: Vec<Handshake>,
    pub(crate) alive: BTreeSet<(u8, QpNumber)>,
    asks: u64,
    made: u32,
}

impl Rig {
    pub(crate) fn new() -> Self {
        let mut target = Target::new(ENDPOINTS_MAX);
        (0..RAILS).for_each(|rail| target.add_nic(nic(rail)));
        Self {
            target,
            now_ns: 0,
            locating: Vec::new(),
            making: Vec::new(),
            open: BTreeMap::new(),
            replies: Vec::new(),
            alive: BTreeSet::new(),
            asks: 0,
            made: 0,
        }
    }

    /// A request as text, or a letter for what happens here.
    pub(crate) fn line(&mut self, line: &[u8]) {
        match line {
            b"l" => self.locate(Some(PORT)),
            b"n" => self.locate(None),
            b"m" => self.make(0),
            b"s" => self.make(1),
            b"x" => self.fail(),
            b"t" => self.wait(MOONCAKE_ACK_NS / 4),
            b"f" => self.target.remove_nic(1),
            b"a" => self.target.add_nic(nic(1)),
            b"g" => self.target.remove_peer("peer"),
            b"o" => self.target.forget(0, "peer@d0"),
            text => {
                if let Ok(request) = serde_json::from_slice::<Handshake>(text) {
                    again(&request);
                    self.ask(&request);
                }
            }
        }
        self.check();
    }

    pub(crate) fn ask(&mut self, request: &Handshake) {
        self.asks += 1;
        let ask = Ask(self.asks);
        self.open.insert(ask, request.ready_ack.is_some());
        self.target.asked(ask, request, self.now_ns);
        self.act();
    }

    fn locate(&mut self, port: Option<PortAddress>) {
        if let Some(id) = self.locating.pop() {
            self.target.located(id, port);
        }
    }

    /// Makes what was asked for, less `missing`.
    pub(crate) fn make(&mut self, missing: usize) {
        let Some((id, count)) = self.making.pop() else { return };
        let numbers = (0..count - missing.min(count)).map(|_| {
            self.made += 1;
            QpNumber(self.made)
        });
        let queues: Vec<_> = numbers.collect();
        self.alive.extend(queues.iter().map(|queue| (id.rail, *queue)));
        self.target.accepted(id, Some(queues), self.now_ns);
    }

    fn fail(&mut self) {
        if let Some((id, _)) = self.making.pop() {
            self.target.accepted(id, None, self.now_ns);
        }
    }

    pub(crate) fn wait(&mut self, ns: u64) {
        self.now_ns += ns;
        self.target.expire(self.now_ns);
        self.act();
        assert!(self.target.wake_at_ns().is_none_or(|at| at > self.now_ns));
    }

    pub(crate) fn act(&mut self) {
        for action in self.target.take_actions() {
            match action {
                Action::Locate { id, nic_path } => {
                    assert!(!nic_path.is_empty());
                    self.locating.push(id);
                }
                Action::Accept { id, queues, .. } => self.making.push((id, queues.len())),
                Action::Destroy { id, queues } => {
                    for queue in queues {
                        assert!(self.alive.remove(&(id.rail, queue)), "{queue:?} ended twice");
                    }
                }
                Action::Reply { ask, reply } => self.replied(ask, reply),
            }
        }
    }

    fn replied(&mut self, ask: Ask, reply: Handshake) {
        let knows_ack = self.open.remove(&ask).expect("an answer for each request, and no more");
        assert_eq!(reply.ready_ack, knows_ack.then_some(false));
        assert_eq!(reply.reply_msg.is_empty(), !reply.qp_num.is_empty());
        again(&reply);
        self.replies.push(reply);
    }

    /// What holds whatever happens.
    pub(crate) fn check(&mut self) {
        self.act();
        assert!(self.target.len() <= ENDPOINTS_MAX);
        assert_eq!(self.target.queues().collect::<BTreeSet<_>>(), self.alive);
    }

    /// Whoever makes queue pairs answers; then nobody waits, and all can be taken down.
    pub(crate) fn finish(mut self) {
        while !self.locating.is_empty() || !self.making.is_empty() {
            self.locate(Some(PORT));
            self.act();
            self.make(0);
            self.check();
        }
        assert!(self.open.is_empty(), "{:?} have no answer", self.open);
        (0..RAILS).for_each(|rail| self.target.remove_nic(rail));
        self.check();
        assert_eq!((self.target.len(), self.alive.len()), (0, 0));
    }
}

/// What was read, written and read again is the same.
fn again(message: &Handshake) {
    let text = serde_json::to_vec(message).expect("a handshake is always JSON");
    assert_eq!(&serde_json::from_slice::<Handshake>(&text).expect("we wrote it"), message);
}
