//! Where data connections are let in, whichever path they come by: who they are of, by the pass
//! that they show, and what that peer may reach.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::{Admission, Entrance, Pass, Passes, PeerId, Permit, Policy, Seal};
use crate::memory::{Operation, Region};
use crate::path::tcp::LaneName;
use crate::{Access, Error, Result};

/// An engine's gate; its shards and its control thread share it.
#[derive(Debug)]
pub(crate) struct Gate {
    /// Whether connections have to show a pass.
    is_closed: bool,
    /// Whether those are let in, too, that have none.
    admits_plain: bool,
    /// Whether TCP connections have to be encrypted.
    encrypts_tcp: bool,
    policy: Policy,
    passes: Mutex<Passes>,
    start: Instant,
}

impl Gate {
    /// One that lets everyone in, or none without a pass but those who need none.
    pub(crate) fn new(is_closed: bool, admits_plain: bool, policy: Policy) -> Self {
        let (passes, start) = (Mutex::default(), Instant::now());
        Self { is_closed, admits_plain, encrypts_tcp: false, policy, passes, start }
    }

    /// The same, where TCP connections are encrypted or are not let in.
    pub(crate) fn encrypting_tcp(self, yes: bool) -> Self {
        Self { encrypts_tcp: yes, ..self }
    }

    /// Whether TCP connections are encrypted, those of this engine's own too.
    pub(crate) fn encrypts_tcp(&self) -> bool {
        self.encrypts_tcp
    }

    /// What is stored where others read it is for those alone who need no proof.
    pub(crate) fn public(&self) -> Option<PeerId> {
        match (self.is_closed, self.admits_plain) {
            (false, _) => Some(PeerId::Anyone),
            (true, true) => Some(PeerId::Mooncake),
            (true, false) => None,
        }
    }

    /// Whoever connects, before it has said anything.
    pub(crate) fn newcomer(&self) -> Visitor {
        match self.public() {
            Some(peer) => self.visitor(&peer),
            None => Visitor::stranger(),
        }
    }

    /// Whoever connects by TCP: nobody is let in in clear text where it is to be encrypted.
    pub(crate) fn tcp_newcomer(&self) -> Visitor {
        if self.encrypts_tcp { Visitor::stranger() } else { self.newcomer() }
    }

    /// This peer as a visitor.
    pub(crate) fn visitor(&self, peer: &PeerId) -> Visitor {
        let names = peer.names().iter().map(|name| name.as_str().into()).collect();
        let permit = Arc::new(self.policy.for_peer(peer));
        Visitor { peer: Some(peer.clone()), names, permit }
    }

    /// A pass for the connection that this peer calls so, of this kind.
    ///
    /// # Errors
    /// Refused: it needs none, or gets none. Busy: it has too many.
    pub(crate) fn pass(
        &self,
        peer: &PeerId,
        lane: LaneName,
        entrance: Entrance,
    ) -> Result<Admission> {
        let is_sealed = entrance == Entrance::SealedTcp;
        match (peer, entrance) {
            (_, Entrance::Tcp | Entrance::SealedTcp) if is_sealed != self.encrypts_tcp => {
                let how = if self.encrypts_tcp { "encrypted" } else { "plain" };
                Err(Error::refused(format!("TCP connections to this engine are {how}")))
            }
            (PeerId::Named(_), _) if self.is_closed => {
                self.passes().give(peer, lane, is_sealed, self.now_ns())
            }
            _ => Err(Error::refused("only who has proven who it is gets a pass")),
        }
    }

    /// Who shows this pass for the connection that it calls so, if it is good.
    pub(crate) fn admit(&self, pass: &Pass, lane: LaneName) -> Option<Visitor> {
        self.take(pass, lane).map(|(visitor, _)| visitor)
    }

    /// The same for a TCP connection, and what encrypts it from here on.
    pub(crate) fn admit_tcp(&self, pass: &Pass, lane: LaneName) -> Option<(Visitor, Option<Seal>)> {
        // One that was given for a session of this host encrypts nothing.
        self.take(pass, lane).filter(|(_, seal)| seal.is_some() == self.encrypts_tcp)
    }

    fn take(&self, pass: &Pass, lane: LaneName) -> Option<(Visitor, Option<Seal>)> {
        let taken = self.passes().take(pass, lane, self.now_ns());
        if taken.is_none() {
            tracing::debug!("a data connection shows a pass that is not good (any more)");
        }
        taken.map(|(peer, seal)| (self.visitor(&peer), seal))
    }

    fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    fn passes(&self) -> MutexGuard<'_, Passes> {
        self.passes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Gate {
    /// Lets everyone in.
    fn default() -> Self {
        Self::new(false, false, Policy::Open)
    }
}

/// Whoever asks for something by a data connection.
#[derive(Debug, Clone)]
pub(crate) struct Visitor {
    /// None until it has shown a pass where it has to.
    peer: Option<PeerId>,
    /// Under which something may be granted to it.
    names: Arc<[Box<str>]>,
    permit: Arc<Permit>,
}

impl Visitor {
    /// One that has shown no pass, and gets nothing.
    pub(crate) fn stranger() -> Self {
        let permit = Arc::new(Permit::Rules(Vec::new()));
        Self { peer: None, names: Arc::default(), permit }
    }

    /// One that is let in as anyone is, and says its name.
    #[cfg(any(fuzzing, test))]
    pub(crate) fn anyone(name: &str) -> Self {
        let names = [Box::from(name)].into();
        Self { peer: Some(PeerId::Anyone), names, permit: Arc::new(Permit::All) }
    }

    /// It says its name: that counts only where nobody has to prove it. False where it has to
    /// show a pass instead.
    pub(crate) fn says(&mut self, name: &str) -> bool {
        match self.peer {
            None | Some(PeerId::Named(_)) => return false,
            Some(PeerId::Anyone) => self.names = [Box::from(name)].into(),
            Some(PeerId::Mooncake) => {}
        }
        true
    }

    /// Whether it is this one.
    pub(crate) fn is(&self, other: &PeerId) -> bool {
        self.peer.as_ref().is_some_and(|peer| peer.is(other))
    }

    /// Whether it is let in.
    pub(crate) fn is_in(&self) -> bool {
        self.peer.is_some()
    }

    /// Whether there is anything that it may reach.
    pub(crate) fn may_something(&self) -> bool {
        self.permit.is_something()
    }

    /// Whether it may reach all that regions and grants permit.
    pub(crate) fn is_unbound(&self) -> bool {
        *self.permit == Permit::All
    }

    /// Whether the policy lets it do that with a region.
    pub(crate) fn may(&self, region: &Region, operation: Operation) -> bool {
        self.permit.permits(region.label(), operation)
    }

    /// What it may do with a region by its own access.
    pub(crate) fn access(&self, region: &Region) -> Access {
        self.bound(region, region.access())
    }

    /// What the policy leaves it of an access to a region.
    pub(crate) fn bound(&self, region: &Region, access: Access) -> Access {
        Access {
            read: access.read && self.may(region, Operation::Read),
            write: access.write && self.may(region, Operation::Write),
        }
    }

    /// What `look` finds for it under one of its names; it looks under each until one is not
    /// refused.
    pub(crate) fn under_a_name<T, E>(
        &self,
        refused: E,
        look: impl FnMut(&str) -> Result<T, E>,
    ) -> Result<T, E>
    where
        E: PartialEq,
    {
        let nameless = self.names.is_empty().then_some("");
        let names = self.names.iter().map(|name| &**name).chain(nameless);
        let mut found = names.map(look).filter(|found| match found {
            Ok(_) => true,
            Err(error) => *error != refused,
        });
        found.next().unwrap_or(Err(refused))
    }
}

impl fmt::Display for Visitor {
    /// By the name that it proved or, where nobody has to, says; that one on one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.peer, &*self.names) {
            (None, _) => f.write_str("a connection without a pass"),
            (Some(PeerId::Anyone), [name]) => name.escape_debug().fmt(f),
            (Some(peer), _) => peer.fmt(f),
        }
    }
}
