//! Passes for data connections: words that nobody guesses, each good for one connection of one
//! peer's, once and soon. A pure table; time is an argument.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::str::FromStr;

use super::{Admission, PeerId, Seal, hex};
use crate::limits::{PASS_NS, PASSES_MAX, PASSES_PEER_MAX};
use crate::path::tcp::LaneName;
use crate::{Error, Result};

/// Bytes of a pass: as many random bits as a key has.
pub(crate) const PASS_BYTES: usize = 32;

/// What a data connection shows to be let in.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Pass(pub(crate) [u8; PASS_BYTES]);

impl Pass {
    /// One of the system's randomness.
    ///
    /// # Errors
    /// Busy: the system has none.
    fn draw() -> Result<Self> {
        let mut bytes = [0; PASS_BYTES];
        random(&mut bytes)?;
        Ok(Self(bytes))
    }
}

/// Fills this with the system's randomness.
///
/// # Errors
/// Busy: the system has none.
pub(super) fn random(bytes: &mut [u8]) -> Result<()> {
    getrandom::fill(bytes)
        .map_err(|error| Error::busy("no random numbers: try again").with_source(error))
}

/// Logs are no place for it.
impl fmt::Debug for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pass")
    }
}

impl fmt::Display for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex::Shown(&self.0).fmt(f)
    }
}

/// Text that is no pass.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NoPass;

impl FromStr for Pass {
    type Err = NoPass;

    fn from_str(text: &str) -> Result<Self, NoPass> {
        hex::read(text).map(Self).ok_or(NoPass)
    }
}

/// Passes that were given and not shown yet.
#[derive(Debug, Default)]
pub(crate) struct Passes {
    given: HashMap<Pass, Given>,
    /// In the order in which they were given, which is that of their ends.
    order: BTreeMap<u64, Pass>,
    next: u64,
    of_peer: HashMap<PeerId, usize>,
}

#[derive(Debug)]
struct Given {
    number: u64,
    peer: PeerId,
    lane: LaneName,
    seal: Option<Seal>,
    until_ns: u64,
}

impl Passes {
    /// A pass for the connection that this peer calls so, which is encrypted or is not.
    ///
    /// # Errors
    /// Busy: it has too many that it doesn't use, or all peers together have.
    pub(crate) fn give(
        &mut self,
        peer: &PeerId,
        lane: LaneName,
        is_sealed: bool,
        now_ns: u64,
    ) -> Result<Admission> {
        self.forget_expired(now_ns);
        let held = self.of_peer.get(peer).copied().unwrap_or(0);
        if held >= PASSES_PEER_MAX || self.given.len() >= PASSES_MAX {
            return Err(Error::busy("too many connections are being opened: try again later"));
        }
        let pass = Pass::draw()?;
        let seal = is_sealed.then(Seal::draw).transpose()?;
        let number = self.next;
        self.next += 1;
        let until_ns = now_ns.saturating_add(PASS_NS);
        let given = Given { number, peer: peer.clone(), lane, seal: seal.clone(), until_ns };
        self.given.insert(pass, given);
        self.order.insert(number, pass);
        *self.of_peer.entry(peer.clone()).or_default() += 1;
        Ok(Admission { pass, seal })
    }

    /// Who shows this pass for the connection that it calls so, and what the connection is to be
    /// encrypted by, if it is; none where it was never given, has been shown before, is too old, or
    /// was given for another one. Shown wrongly, it is used up.
    pub(crate) fn take(
        &mut self,
        pass: &Pass,
        lane: LaneName,
        now_ns: u64,
    ) -> Option<(PeerId, Option<Seal>)> {
        let given = self.remove(pass)?;
        (given.lane == lane && now_ns < given.until_ns).then_some((given.peer, given.seal))
    }

    fn forget_expired(&mut self, now_ns: u64) {
        while let Some((_, pass)) = self.order.first_key_value() {
            let pass = *pass;
            if self.given.get(&pass).is_some_and(|given| now_ns < given.until_ns) {
                return;
            }
            self.remove(&pass);
        }
    }

    fn remove(&mut self, pass: &Pass) -> Option<Given> {
        let given = self.given.remove(pass)?;
        self.order.remove(&given.number);
        if let Some(held) = self.of_peer.get_mut(&given.peer) {
            *held -= 1;
            if *held == 0 {
                self.of_peer.remove(&given.peer);
            }
        }
        Some(given)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(name: &str) -> PeerId {
        PeerId::named([name.to_owned()])
    }

    const LANE: LaneName = LaneName(7);

    /// A pass for an open connection.
    fn give(passes: &mut Passes, to: &str, now_ns: u64) -> Result<Pass> {
        passes.give(&peer(to), LANE, false, now_ns).map(|given| given.pass)
    }

    #[test]
    fn a_pass_is_good_once() {
        let mut passes = Passes::default();
        let pass = give(&mut passes, "a", 0).unwrap();
        assert_eq!(passes.take(&pass, LANE, 1), Some((peer("a"), None)));
        assert_eq!(passes.take(&pass, LANE, 2), None, "it was replayed");
        assert!(passes.given.is_empty() && passes.order.is_empty() && passes.of_peer.is_empty());
    }

    #[test]
    fn another_connection_s_pass_is_no_good_to_anyone_afterwards() {
        let mut passes = Passes::default();
        let pass = give(&mut passes, "a", 0).unwrap();
        assert_eq!(passes.take(&pass, LaneName(8), 1), None);
        assert_eq!(passes.take(&pass, LANE, 2), None);
    }

    #[test]
    fn a_pass_is_good_soon_or_never() {
        let mut passes = Passes::default();
        let pass = give(&mut passes, "a", 5).unwrap();
        let late = give(&mut passes, "a", 6).unwrap();
        assert_eq!(passes.take(&late, LANE, 6 + PASS_NS), None);
        give(&mut passes, "b", 5 + PASS_NS).unwrap();
        assert!(!passes.given.contains_key(&pass), "it is forgotten, too");
        assert_eq!(passes.take(&Pass([0; PASS_BYTES]), LANE, 0), None);
    }

    #[test]
    fn one_peer_s_unused_passes_keep_no_other_out() {
        let mut passes = Passes::default();
        (0..PASSES_PEER_MAX).for_each(|_| assert!(give(&mut passes, "a", 0).is_ok()));
        assert_eq!(give(&mut passes, "a", 0).unwrap_err().kind(), crate::ErrorKind::Busy);
        assert!(give(&mut passes, "b", 0).is_ok());
        assert!(give(&mut passes, "a", PASS_NS).is_ok());
        assert_eq!(passes.given.len(), 1);
    }

    #[test]
    fn what_encrypts_a_connection_is_told_to_both_and_kept_no_longer() {
        let mut passes = Passes::default();
        let given = passes.give(&peer("a"), LANE, true, 0).unwrap();
        let (_, seal) = passes.take(&given.pass, LANE, 1).unwrap();
        assert!(seal.is_some() && seal == given.seal);
        assert!(passes.given.is_empty());
        let other = passes.give(&peer("a"), LANE, true, 0).unwrap();
        assert_ne!(other.seal, given.seal);
    }

    #[test]
    fn text_and_back() {
        let pass = Pass::draw().unwrap();
        assert_eq!(pass.to_string().parse(), Ok(pass));
        let text = pass.to_string();
        for bad in ["", &text[1..], &format!("+{}", &text[1..]), &format!("{text}0")] {
            assert_eq!(bad.parse::<Pass>(), Err(NoPass), "{bad}");
        }
        assert_ne!(Pass::draw().unwrap(), Pass::draw().unwrap());
        assert!(!format!("{pass:?}").contains(&text[..8]));
    }
}
