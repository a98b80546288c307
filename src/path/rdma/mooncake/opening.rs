//! The side that asks: one endpoint of ours at a Mooncake target, from its queue pairs to its
//! readiness, and the requests of the peer that concern it.
//!
//! Two conversations may bring it about. Ours: a request, its answer, and, if the peer knows the
//! step, the word that we are ready and its answer. And the peer's, which may open the same
//! endpoint at the same time: its request connects our queue pairs, and our own answer must then
//! name the same ones of the peer's. Newer Mooncakes refuse one of two such requests; then the
//! endpoint stands on the other alone, once the peer says that it is ready.

use kvrail_reactors::verbs::QpNumber;

use super::{Accepted, Ask, Nic, Remote, Waiting, introduction};
use crate::control::Handshake;
use crate::control::handshake::PortAddress;
use crate::error::{Error, ErrorKind};
use crate::limits::{MOONCAKE_ACK_NS, MOONCAKE_OPEN_MAX_NS, MOONCAKE_WAITING_MAX, RDMA_QUEUES_MAX};

/// Something to be done, in this order.
#[derive(Debug)]
pub(crate) enum Step {
    /// Make so many queue pairs; answered by [`Opening::created`].
    Create { queues: usize },
    /// Send this to the peer's control daemon; answered by [`Opening::answered`].
    Ask(Handshake),
    /// Find the peer NIC's port in its descriptor; answered by [`Opening::located`].
    Locate,
    /// Connect ours to the peer's, one by one; answered by [`Opening::connected`].
    Connect { pairs: Vec<(QpNumber, QpNumber)>, port: PortAddress },
    /// Answer a request that was taken; every one is, once.
    Reply { ask: Ask, reply: Handshake },
    /// Work may be posted.
    Ready,
    /// End these; nothing more will be said of them.
    Destroy { queues: Vec<QpNumber> },
    /// It came to nothing, or has ended: why.
    Over(Error),
}

/// One endpoint at a Mooncake target.
#[derive(Debug)]
pub(crate) struct Opening {
    nic: Nic,
    /// The peer's NIC.
    peer: String,
    count: usize,
    /// None while they are being made.
    queues: Option<Vec<QpNumber>>,
    remote: Option<Remote>,
    link: Link,
    ours: Ours,
    theirs: Theirs,
    waiting: Vec<Waiting>,
    stage: Stage,
    deadline_ns: u64,
    steps: Vec<Step>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Opening,
    Ready,
    Over,
}

/// The queue pairs' connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    Down,
    Locating,
    Connecting,
    Up,
}

/// The conversation that we began.
#[derive(Debug)]
enum Ours {
    /// Nothing: our queue pairs are not there, or the peer has opened it.
    Unsaid,
    Asked,
    /// The peer wants to hear when we are ready.
    Expected,
    Acking,
    Done,
    Failed(Error),
}

/// The conversation that the peer began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Theirs {
    None,
    /// It has yet to say that it is ready.
    Asked,
    Done,
}

impl Opening {
    /// Begins to open one between a device of ours and the NIC of that path, with so many queue
    /// pairs, [`RDMA_QUEUES`] by default: the peer must have as many. Refused: it has none or more
    /// than [`RDMA_QUEUES_MAX`].
    ///
    /// [`RDMA_QUEUES`]: crate::limits::RDMA_QUEUES
    pub(crate) fn new(nic: Nic, peer: String, count: usize, now_ns: u64) -> Result<Self, Error> {
        if !(1..=RDMA_QUEUES_MAX).contains(&count) {
            let what = format!("an endpoint has 1 to {RDMA_QUEUES_MAX} queue pairs, not {count}");
            return Err(Error::refused(what));
        }
        Ok(Self {
            nic,
            peer,
            count,
            queues: None,
            remote: None,
            link: Link::Down,
            ours: Ours::Unsaid,
            theirs: Theirs::None,
            waiting: Vec::new(),
            stage: Stage::Opening,
            deadline_ns: now_ns.saturating_add(MOONCAKE_OPEN_MAX_NS),
            steps: vec![Step::Create { queues: count }],
        })
    }

    /// Takes over what the peer opened: ready at once, or when the peer says that it is.
    pub(crate) fn adopt(nic: Nic, peer: String, accepted: Accepted, now_ns: u64) -> Self {
        let Accepted { queues, remote, awaits_ack } = accepted;
        let mut opening = Self {
            nic,
            peer,
            count: queues.len(),
            queues: Some(queues),
            remote: Some(remote),
            link: Link::Up,
            ours: Ours::Unsaid,
            theirs: if awaits_ack { Theirs::Asked } else { Theirs::Done },
            waiting: Vec::new(),
            stage: Stage::Opening,
            deadline_ns: now_ns.saturating_add(MOONCAKE_ACK_NS),
            steps: Vec::new(),
        };
        opening.settle();
        opening
    }

    /// What is to be done, in this order.
    pub(crate) fn take_steps(&mut self) -> Vec<Step> {
        std::mem::take(&mut self.steps)
    }

    /// Whether nothing more will happen, but for what is still being made.
    pub(crate) fn is_over(&self) -> bool {
        self.stage == Stage::Over
    }

    /// The answer to [`Step::Create`].
    pub(crate) fn created(&mut self, made: Option<Vec<QpNumber>>) {
        if self.queues.is_some() {
            return;
        }
        let queues = made.unwrap_or_default();
        let is_complete = queues.len() == self.count;
        self.queues = Some(queues);
        match self.stage {
            Stage::Over => self.destroy(),
            _ if !is_complete => self.end(Error::busy("the device gives no queue pairs")),
            _ if self.nic.path == self.peer => self.loop_back(),
            _ => {
                let ready_ack = Some(false);
                self.steps.push(Step::Ask(Handshake { ready_ack, ..self.introduction() }));
                self.ours = Ours::Asked;
                self.link();
            }
        }
    }

    /// A NIC reaches itself without a word to anybody.
    fn loop_back(&mut self) {
        let queues = self.queues.clone().unwrap_or_default();
        self.remote = Some(Remote { queues, port: Some(self.nic.port) });
        self.ours = Ours::Done;
        self.link();
    }

    /// The answer to [`Step::Ask`], or why there is none.
    pub(crate) fn answered(&mut self, answer: Result<Handshake, Error>) {
        if self.is_over() {
            return;
        }
        let answer = answer.and_then(|reply| match reply.reply_msg.as_str() {
            "" => Ok(reply),
            why => Err(Error::refused(format!("the peer refuses the endpoint: {why}"))),
        });
        match (&self.ours, answer) {
            (Ours::Asked, Ok(reply)) => self.welcomed(&reply),
            (Ours::Acking, Ok(_)) => self.ours = Ours::Done,
            (Ours::Asked | Ours::Acking, Err(error)) => self.ours = Ours::Failed(error),
            _ => {}
        }
        self.settle();
    }

    fn welcomed(&mut self, reply: &Handshake) {
        let is_mirrored = reply.local_nic_path == self.peer && reply.peer_nic_path == self.nic.path;
        if !is_mirrored {
            let what = "the peer answers for another NIC: it has restarted, or serves no RDMA";
            return self.end(Error::refused(what));
        }
        if reply.qp_num.len() != self.count {
            let (ours, theirs) = (self.count, reply.qp_num.len());
            let what =
                format!("the peer has {theirs} queue pairs for our {ours} (MC_NUM_QP_PER_EP)");
            return self.end(Error::refused(what));
        }
        match &self.remote {
            Some(remote) if !remote.is_of(reply) => return self.end(replaced()),
            Some(_) => {}
            None => self.remote = Some(Remote::of(reply)),
        }
        self.ours = match reply.ready_ack {
            Some(_) => Ours::Expected,
            None => Ours::Done,
        };
        self.link();
    }

    /// A request of the peer's. False: it does not concern this endpoint, or no more, and is the
    /// target's to answer.
    pub(crate) fn asked(&mut self, ask: Ask, request: &Handshake) -> bool {
        let is_of_pair =
            request.local_nic_path == self.peer && request.peer_nic_path == self.nic.path;
        if self.is_over() || !is_of_pair || self.nic.path == self.peer {
            return false;
        }
        match &self.remote {
            Some(remote) if remote.is_of(request) => {}
            // What it says of queue pairs that we don't know is for the target to judge.
            _ if request.is_ack() || request.qp_num.len() != self.count => return false,
            Some(_) => {
                self.end(replaced());
                return false;
            }
            None => self.remote = Some(Remote::of(request)),
        }
        self.hear(Waiting::new(ask, request), request);
        true
    }

    fn hear(&mut self, waiting: Waiting, request: &Handshake) {
        if self.waiting.len() == MOONCAKE_WAITING_MAX {
            let why = "as many requests as allowed wait for this endpoint: try again later";
            let (ask, reply) = waiting.refusal(why);
            return self.steps.push(Step::Reply { ask, reply });
        }
        self.waiting.push(waiting);
        // Who doesn't know the step is ready when it has our answer.
        self.theirs = match request.ready_ack {
            Some(false) if self.theirs != Theirs::Done => Theirs::Asked,
            _ => Theirs::Done,
        };
        self.link();
        self.settle();
    }

    /// Connects our queue pairs to the peer's, as soon as both are known.
    fn link(&mut self) {
        let (Link::Down, Some(queues), Some(remote)) = (self.link, &self.queues, &self.remote)
        else {
            return;
        };
        let step = match remote.port {
            None => Step::Locate,
            Some(port) => {
                let pairs = queues.iter().copied().zip(remote.queues.iter().copied()).collect();
                Step::Connect { pairs, port }
            }
        };
        self.link = if remote.port.is_some() { Link::Connecting } else { Link::Locating };
        self.steps.push(step);
    }

    /// The answer to [`Step::Locate`].
    pub(crate) fn located(&mut self, port: Option<PortAddress>) {
        if self.is_over() || self.link != Link::Locating {
            return;
        }
        let (Some(remote), Some(_)) = (&mut self.remote, port) else {
            return self.end(Error::refused("the peer's descriptor has no such NIC: open it anew"));
        };
        remote.port = port;
        self.link = Link::Down;
        self.link();
    }

    /// The answer to [`Step::Connect`].
    pub(crate) fn connected(&mut self, is_connected: bool) {
        if self.is_over() || self.link != Link::Connecting {
            return;
        }
        if !is_connected {
            return self.end(Error::lost("our queue pairs could not be connected to the peer's"));
        }
        self.link = Link::Up;
        self.settle();
    }

    /// Goes on with what is due.
    fn settle(&mut self) {
        if self.is_over() {
            return;
        }
        if let Ours::Failed(error) = &self.ours
            && self.theirs == Theirs::None
        {
            let error = error.clone();
            return self.end(error);
        }
        if self.link != Link::Up {
            return;
        }
        self.welcome();
        if matches!(self.ours, Ours::Expected) {
            let ready_ack = Some(true);
            self.steps.push(Step::Ask(Handshake { ready_ack, ..self.introduction() }));
            self.ours = Ours::Acking;
        }
        let is_ready = match self.ours {
            Ours::Done => true,
            Ours::Unsaid | Ours::Failed(_) => self.theirs == Theirs::Done,
            _ => false,
        };
        if is_ready && self.stage == Stage::Opening {
            self.stage = Stage::Ready;
            self.steps.push(Step::Ready);
        }
    }

    /// Answers whoever waits for our queue pairs.
    fn welcome(&mut self) {
        let queues = self.queues.as_deref().unwrap_or_default();
        for waiting in self.waiting.drain(..) {
            let (ask, reply) = waiting.welcome(&self.nic, &self.peer, queues);
            self.steps.push(Step::Reply { ask, reply });
        }
    }

    /// When [`Self::expire`] has something to do.
    pub(crate) fn wake_at_ns(&self) -> Option<u64> {
        (self.stage == Stage::Opening).then_some(self.deadline_ns)
    }

    /// Gives up what takes too long.
    pub(crate) fn expire(&mut self, now_ns: u64) {
        if self.stage != Stage::Opening || now_ns < self.deadline_ns {
            return;
        }
        let error = match &self.ours {
            Ours::Failed(error) => error.clone(),
            _ => Error::new(ErrorKind::Expired, "the peer did not open the endpoint in time"),
        };
        self.end(error);
    }

    /// Its user is done with it, or its device has failed.
    pub(crate) fn close(&mut self) {
        if !self.is_over() {
            self.end(Error::closed("the endpoint was given up"));
        }
    }

    fn end(&mut self, error: Error) {
        self.stage = Stage::Over;
        for waiting in std::mem::take(&mut self.waiting) {
            let (ask, reply) = waiting.refusal("the endpoint was ended while it was made");
            self.steps.push(Step::Reply { ask, reply });
        }
        self.destroy();
        self.steps.push(Step::Over(error.with_peer(self.peer.as_str())));
    }

    fn destroy(&mut self) {
        if let Some(queues) = self.queues.as_mut().filter(|queues| !queues.is_empty()) {
            let queues = std::mem::take(queues);
            self.steps.push(Step::Destroy { queues });
        }
    }

    fn introduction(&self) -> Handshake {
        introduction(&self.nic, &self.peer, self.queues.as_deref().unwrap_or_default())
    }
}

fn replaced() -> Error {
    Error::lost("the peer has replaced its queue pairs: open the endpoint again")
}
