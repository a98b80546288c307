//! Who peers are and what they prove it by. No socket enters this room; what carries the proof
//! is `control/channel`.

mod gate;
mod hex;
mod keys;
mod passes;
mod policy;
mod seal;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub(crate) use self::gate::{Gate, Visitor};
pub(crate) use self::keys::{Key, Keyring};
pub(crate) use self::passes::{PASS_BYTES, Pass, Passes};
pub(crate) use self::policy::Permit;
pub use self::policy::{Peers, Policy, Rule};
pub(crate) use self::seal::{Admission, Seal};

/// What engines prove to each other on their control channel, which is encrypted then. All of a
/// cluster use the same: what one asks of its peers it offers them, and nothing that a metadata
/// server or a peer says changes it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Authentication {
    /// Nothing: peers are who they say they are, as with Mooncake.
    #[default]
    Off,
    /// That they hold a pre-shared key (Noise, `NNpsk0`). Names this engine's file of keys: a line
    /// for each, `name = 64 hexadecimal digits`. The first one is this engine's own, under whose
    /// name its peers know it; whoever connects has to hold one of them, and whoever holds a key
    /// is its name. The file is read again when it changes.
    Keys(PathBuf),
    /// That an authority vouches for them: mutual TLS 1.3. Needs the feature `tls`.
    Tls(TlsFiles),
}

/// PEM files for mutual TLS, read again when they change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsFiles {
    /// This engine's certificate and what leads from it to the authority. Its alternative names
    /// of the kinds DNS and URI are the names by which peers know the engine.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Certificates of the authorities that vouch for peers.
    pub authorities: PathBuf,
    /// Whom a peer that we connect to may turn out to be.
    #[serde(default)]
    pub names: PeerNames,
}

/// Whom a peer that an engine connects to may turn out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PeerNames {
    /// The one that was opened: its certificate names the host in its segment name, or with a
    /// metadata server that name itself. So whoever writes into the metadata server can't send
    /// us to another one.
    #[default]
    Opened,
    /// Anyone whom an authority vouches for; for certificates whose names say what a process is,
    /// not where, such as SPIFFE's.
    Any,
}

/// What a pass is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Entrance {
    /// A TCP connection whose bytes are as they are.
    #[default]
    Tcp,
    /// A TCP connection that is encrypted behind the pass.
    SealedTcp,
    /// A session of the same host, which no network carries.
    Host,
}

/// Who a peer turned out to be.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum PeerId {
    /// Nobody knows: nothing has to be proven here.
    Anyone,
    /// It proved nothing where others have to, and is let in by an option.
    Mooncake,
    /// It proved these names.
    Named(Arc<[String]>),
}

impl PeerId {
    pub(crate) fn named(names: impl IntoIterator<Item = String>) -> Self {
        Self::Named(names.into_iter().collect())
    }

    /// Whether this is the same one: under one of its names, since certificates are renewed.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self == other || self.names().iter().any(|name| other.names().contains(name))
    }

    /// What it proved to be.
    pub(crate) fn names(&self) -> &[String] {
        match self {
            Self::Named(names) => names,
            Self::Anyone | Self::Mooncake => &[],
        }
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anyone => f.write_str("anyone"),
            Self::Mooncake => f.write_str("a peer that proved nothing"),
            Self::Named(names) => f.write_str(&names.join(", ")),
        }
    }
}
