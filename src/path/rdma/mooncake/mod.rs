//! Endpoints shared with Mooncake's peers, as state machines without a device: [`Target`] has those
//! that peers opened here, an [`Opening`] is one that we open there.
//!
//! Mooncake knows one endpoint for each pair of NICs and uses it both ways, whoever asked for it; a
//! second one ends the first, and what is under way on it. So who wants to open one has the target
//! [`Target::hand_over`] what it may have for the pair already. A peer's request goes first to the
//! opening of the same pair, if there is one, and to the target if that does not take it. And when
//! an opening is ready, the target [`Target::forget`]s what it got meanwhile.
//!
//! The number of the first packet is 0 in both directions, as with Mooncake, which has no word for
//! it. A peer sees no disconnection: it finds out by errors, or by our next request.

#[cfg(any(fuzzing, test))]
pub(crate) mod fuzzing;
mod opening;
mod target;
#[cfg(test)]
mod tests;

use kvrail_reactors::verbs::QpNumber;

pub(crate) use self::opening::{Opening, Step};
pub(crate) use self::target::{Action, EndpointId, Held, Target};
use crate::control::Handshake;
use crate::control::handshake::{PortAddress, nic_path};
use crate::error::{Error, Result};

/// A device of ours, as peers know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Nic {
    /// Its number here.
    pub(crate) rail: u8,
    path: String,
    port: PortAddress,
}

impl Nic {
    /// The device of that name, of the server of that name. Refused: no peer could write its path.
    pub(crate) fn new(rail: u8, server: &str, device: &str, port: PortAddress) -> Result<Self> {
        let path = nic_path(server, device).ok_or_else(|| {
            Error::refused(format!(
                "{server:.80}@{device:.80} is no path of a NIC: neither name may be empty or very \
                 long, and the server's not contain an @"
            ))
        })?;
        Ok(Self { rail, path, port })
    }

    /// `server@device`.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }
}

/// The request that an answer belongs to; drawn by whoever hands it in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Ask(pub(crate) u64);

/// A request that waits for queue pairs.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    ask: Ask,
    /// It had the key `ready_ack`, so the answer has it too.
    knows_ack: bool,
}

impl Waiting {
    fn new(ask: Ask, request: &Handshake) -> Self {
        Self { ask, knows_ack: request.ready_ack.is_some() }
    }

    fn refusal(self, why: &str) -> (Ask, Handshake) {
        (self.ask, Handshake::refusal(self.knows_ack, why))
    }

    fn welcome(self, nic: &Nic, peer: &str, queues: &[QpNumber]) -> (Ask, Handshake) {
        let ready_ack = self.knows_ack.then_some(false);
        (self.ask, Handshake { ready_ack, ..introduction(nic, peer, queues) })
    }
}

/// What we say of our end.
fn introduction(nic: &Nic, peer: &str, queues: &[QpNumber]) -> Handshake {
    Handshake {
        port: Some(nic.port),
        local_nic_path: nic.path.clone(),
        peer_nic_path: peer.to_owned(),
        qp_num: queues.iter().map(|queue| queue.0).collect(),
        ..Handshake::default()
    }
}

/// An endpoint that a peer opened, with connected queue pairs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Accepted {
    queues: Vec<QpNumber>,
    remote: Remote,
    /// The peer has yet to say that its own queue pairs are ready.
    awaits_ack: bool,
}

impl Accepted {
    /// Its queue pairs here.
    pub(crate) fn queues(&self) -> &[QpNumber] {
        &self.queues
    }
}

/// The peer's end of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Remote {
    /// Its queue pairs: the first is for our first, and so on.
    pub(crate) queues: Vec<QpNumber>,
    /// None until it is found out, where the peer does not say it.
    pub(crate) port: Option<PortAddress>,
}

impl Remote {
    fn of(message: &Handshake) -> Self {
        let queues = message.qp_num.iter().map(|number| QpNumber(*number)).collect();
        Self { queues, port: message.port }
    }

    /// Whether a message speaks of this end. Numbers alone don't tell: a restarted peer may get
    /// the same ones again, though hardly at another port.
    fn is_of(&self, message: &Handshake) -> bool {
        let numbers = self.queues.iter().map(|queue| queue.0);
        let is_there = message.port.is_none() || message.port == self.port;
        is_there && numbers.eq(message.qp_num.iter().copied())
    }
}
