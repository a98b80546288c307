//! Which peer may reach which regions. Pure: names in, what is permitted out.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::PeerId;
use crate::memory::Operation;
use crate::{Access, Error, Result};

/// Which peers may read and write which regions. A peer's rules add up, and none reaches beyond
/// what a region itself permits; what a grant opens, a rule has to permit too.
///
/// ```
/// use kvrail::{Access, Peers, Policy, Rule};
///
/// let policy = Policy::Rules(vec![
///     Rule::new(Peers::Named("prefill".into()), Access::WRITE).of(["cache"]),
///     Rule::new(Peers::All, Access::READ).of(["weights"]),
/// ]);
/// # let _ = policy;
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// Whoever has proven who it is may do what the regions permit, and Mooncake's engines, where
    /// they are admitted beside such peers, nothing.
    #[default]
    Open,
    /// Nothing, but for what these permit.
    Rules(Vec<Rule>),
}

/// What some peers may do with some regions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    peers: Peers,
    /// By label; all of them where there is none.
    #[serde(default)]
    regions: Option<BTreeSet<String>>,
    #[serde(default)]
    read: bool,
    #[serde(default)]
    write: bool,
}

/// Whom a rule is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Peers {
    /// Everyone who has proven who it is.
    All,
    /// Whoever has proven this name: that of its key, or one in its certificate.
    Named(String),
    /// Mooncake's, where they are admitted.
    Mooncake,
}

impl Rule {
    /// Permits these peers this, with all regions.
    pub fn new(peers: Peers, access: Access) -> Self {
        Self { peers, regions: None, read: access.read, write: access.write }
    }

    /// The same with the regions of these labels only ([`crate::Region::set_label`]).
    pub fn of<L: Into<String>>(self, labels: impl IntoIterator<Item = L>) -> Self {
        Self { regions: Some(labels.into_iter().map(Into::into).collect()), ..self }
    }

    fn is_for(&self, peer: &PeerId) -> bool {
        match &self.peers {
            Peers::All => matches!(peer, PeerId::Named(_)),
            Peers::Named(name) => peer.names().contains(name),
            Peers::Mooncake => *peer == PeerId::Mooncake,
        }
    }

    fn permits(&self, label: Option<&str>, operation: Operation) -> bool {
        let permitted = match operation {
            Operation::Read => self.read,
            Operation::Write => self.write,
        };
        let is_its = |labels: &BTreeSet<String>| label.is_some_and(|label| labels.contains(label));
        permitted && self.regions.as_ref().is_none_or(is_its)
    }
}

impl Policy {
    /// # Errors
    /// Refused: there are rules where nobody proves who it is.
    pub(crate) fn check(&self, is_authenticated: bool) -> Result<()> {
        match self {
            Self::Rules(_) if !is_authenticated => Err(Error::refused(
                "a policy without authentication: peers would only say who they are",
            )),
            _ => Ok(()),
        }
    }

    /// What it says of one peer.
    pub(crate) fn for_peer(&self, peer: &PeerId) -> Permit {
        match self {
            Self::Open if *peer == PeerId::Mooncake => Permit::Rules(Vec::new()),
            Self::Open => Permit::All,
            Self::Rules(rules) => {
                Permit::Rules(rules.iter().filter(|rule| rule.is_for(peer)).cloned().collect())
            }
        }
    }
}

/// What a policy says of one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Permit {
    All,
    /// What its rules permit; none permit nothing.
    Rules(Vec<Rule>),
}

impl Permit {
    /// Whether there is anything that it may do.
    pub(crate) fn is_something(&self) -> bool {
        match self {
            Self::All => true,
            Self::Rules(rules) => rules.iter().any(|rule| rule.read || rule.write),
        }
    }

    /// Whether it may do that with a region of this label.
    pub(crate) fn permits(&self, label: Option<&str>, operation: Operation) -> bool {
        match self {
            Self::All => true,
            Self::Rules(rules) => rules.iter().any(|rule| rule.permits(label, operation)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> PeerId {
        PeerId::named(["host".to_owned(), name.to_owned()])
    }

    #[test]
    fn who_proves_nothing_among_those_who_do_gets_nothing_without_a_rule() {
        assert!(!Policy::Open.for_peer(&PeerId::Mooncake).is_something());
        assert!(Policy::Open.for_peer(&PeerId::Anyone).is_something());
        assert!(Policy::Open.for_peer(&named("a")).is_something());
        let rules = vec![Rule::new(Peers::Mooncake, Access::READ)];
        assert!(Policy::Rules(rules).for_peer(&PeerId::Mooncake).is_something());
    }

    fn policy() -> Policy {
        Policy::Rules(vec![
            Rule::new(Peers::Named("prefill".into()), Access::WRITE).of(["cache", "scratch"]),
            Rule::new(Peers::Named("prefill".into()), Access::READ).of(["weights"]),
            Rule::new(Peers::Named("operator".into()), Access::READ_WRITE),
            Rule::new(Peers::All, Access::READ).of(["public"]),
            Rule::new(Peers::Mooncake, Access::READ).of(["old"]),
        ])
    }

    #[test]
    fn rules_add_up_and_nothing_else_is_permitted() {
        use Operation::{Read, Write};
        let permits =
            |peer: &PeerId, label, operation| policy().for_peer(peer).permits(label, operation);
        let (prefill, operator) = (named("prefill"), named("operator"));
        let decode = named("decode");
        assert!(
            permits(&prefill, Some("cache"), Write) && permits(&prefill, Some("scratch"), Write)
        );
        assert!(
            permits(&prefill, Some("weights"), Read) && permits(&prefill, Some("public"), Read)
        );
        for (label, operation) in [
            (Some("cache"), Read),
            (Some("weights"), Write),
            (None, Write),
            (Some(""), Read),
            (Some("public"), Write),
            (Some("old"), Read),
        ] {
            assert!(!permits(&prefill, label, operation), "{label:?} {operation:?}");
        }
        assert!(permits(&operator, None, Write) && permits(&operator, Some("cache"), Read));
        assert!(permits(&decode, Some("public"), Read) && !permits(&decode, Some("cache"), Write));
        assert!(permits(&PeerId::Mooncake, Some("old"), Read));
        for label in [None, Some("public"), Some("cache")] {
            assert!(!permits(&PeerId::Mooncake, label, Read), "{label:?}");
            assert!(!permits(&PeerId::Anyone, label, Read), "{label:?}");
        }
    }

    #[test]
    fn an_open_policy_permits_all_and_no_rules_nothing() {
        let peer = named("prefill");
        assert!(Policy::Open.for_peer(&peer).permits(None, Operation::Write));
        assert!(!Policy::Rules(Vec::new()).for_peer(&peer).permits(None, Operation::Read));
    }

    #[test]
    fn rules_without_authentication_would_be_for_show() {
        assert!(policy().check(false).unwrap_err().to_string().contains("only say who they are"));
        assert!(policy().check(true).is_ok() && Policy::Open.check(false).is_ok());
    }

    #[test]
    fn rules_are_read_from_a_configuration() {
        let text = r#"{"rules":[{"peers":{"named":"a"},"regions":["x"],"read":true},
            {"peers":"mooncake","write":true}]}"#;
        let read: Policy = serde_json::from_str(text).unwrap();
        let expected = Policy::Rules(vec![
            Rule::new(Peers::Named("a".into()), Access::READ).of(["x"]),
            Rule::new(Peers::Mooncake, Access::WRITE),
        ]);
        assert_eq!(read, expected);
        // A misspelt bound must not read as none.
        assert!(serde_json::from_str::<Rule>(r#"{"peers":"all","region":["x"]}"#).is_err());
    }
}
