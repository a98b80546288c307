//! What the two sides of an endpoint tell each other over control. Every message may be lost, come
//! twice, late or out of order: each names the endpoint's generation, and asking again is harmless.

use std::fmt;

use kvrail_reactors::verbs::{QpAddress, RemoteAccess, RemoteKey};

use super::notice::queue_bytes;

/// A process, drawn when it starts: another one answering under the same name proves that the
/// first is gone, and its queue pairs with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Incarnation(pub(crate) u64);

/// One shard of one process as the user of one peer, drawn at random when it first needs it: who
/// lets go of a peer and comes back is somebody else, and who doesn't know it ends nothing of its.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct InitiatorId(pub(crate) u64);

/// An endpoint: whose, over which rail, and the how many-th of its initiator. A generation is
/// never used twice, so nothing said about one endpoint is true of the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct EndpointName {
    pub(crate) initiator: InitiatorId,
    pub(crate) rail: u8,
    pub(crate) generation: u64,
}

/// Where an endpoint's notices go: for each queue a word that counts those read, and slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mailbox {
    pub(crate) addr: u64,
    pub(crate) key: RemoteKey,
    /// Slots of each queue.
    pub(crate) slots: u32,
}

impl Mailbox {
    /// Where one queue's part begins.
    pub(crate) fn queue_addr(&self, queue: usize) -> u64 {
        // The peer says where it begins; nonsense goes where the peer's own device refuses it.
        self.addr.wrapping_add((queue * queue_bytes(self.slots as usize)) as u64)
    }
}

impl InitiatorId {
    /// What logs call it: half of it, by which nobody ends anything of its.
    pub(crate) fn label(self) -> u64 {
        self.0 >> u32::BITS
    }
}

/// As in logs, on both sides: its initiator, rail and generation.
impl fmt::Display for EndpointName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}/{}/{}", self.initiator.label(), self.rail, self.generation)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Message {
    /// From the initiator: connect these to queue pairs of this NIC of yours.
    Open { name: EndpointName, theirs: u8, queues: Vec<QpAddress> },
    /// From the target: these are they, and will execute what arrives. Without a mailbox it takes
    /// no notices.
    Opened {
        name: EndpointName,
        target: Incarnation,
        queues: Vec<QpAddress>,
        mailbox: Option<Mailbox>,
    },
    /// From the target: there is no such endpoint and there will be none.
    Refused { name: EndpointName, why: Refusal },
    /// From the initiator: end this endpoint and every earlier one of this rail, and say when
    /// nothing of theirs can be stored any more.
    Fence { name: EndpointName },
    /// From the target: no endpoint of this rail up to this generation exists or will exist, and
    /// nothing of theirs is stored any more. With the parts of open events that have arrived, a bit
    /// each: they must not be sent again, since their memory may be in use for something else.
    Fenced { name: EndpointName, target: Incarnation, arrived: Vec<(u64, u64)> },
    /// From the target: this endpoint is in error at its side; whether its NIC is fine all the
    /// same, since the target has ended it.
    Broken { name: EndpointName, is_rail_well: bool },
    /// From the initiator: open a window for this endpoint to what the grant covers.
    Bind { name: EndpointName, grant: u128 },
    /// From the target: the window's key, for each queue, and what it is open to.
    Bound { name: EndpointName, grant: u128, keys: Vec<RemoteKey>, access: RemoteAccess },
    /// From the target: there is no window to this grant, or no more.
    Struck { name: EndpointName, grant: u128, why: Strike },
}

impl Message {
    /// What logs say of it: neither a grant nor a key.
    #[cfg(feature = "rdma")]
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Open { .. } => "open",
            Self::Opened { .. } => "opened",
            Self::Refused { .. } => "refused",
            Self::Fence { .. } => "fence",
            Self::Fenced { .. } => "fenced",
            Self::Broken { .. } => "broken",
            Self::Bind { .. } => "bind",
            Self::Bound { .. } => "bound",
            Self::Struck { why: Strike::Gone, .. } => "struck: gone",
            Self::Struck { why: Strike::Full, .. } => "struck: no room",
            Self::Struck { why: Strike::Refused, .. } => "struck: refused",
        }
    }

    /// The endpoint that it is about.
    pub(crate) fn name(&self) -> EndpointName {
        match *self {
            Self::Open { name, .. }
            | Self::Opened { name, .. }
            | Self::Refused { name, .. }
            | Self::Fence { name }
            | Self::Fenced { name, .. }
            | Self::Broken { name, .. }
            | Self::Bind { name, .. }
            | Self::Bound { name, .. }
            | Self::Struck { name, .. } => name,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Strike {
    /// The owner has taken the grant back, or never gave it.
    Gone,
    /// The endpoint has as many windows as it may have.
    Full,
    /// It is somebody else's, or no window can cover it.
    Refused,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Its generation is fenced, or a later one exists.
    Stale,
    /// Too many endpoints are accepted.
    Full,
    /// Its queue pairs could not be made or connected.
    Device,
    /// It asks for no queues, or more than are accepted, or for a NIC that isn't there, or may
    /// reach nothing by them.
    Shape,
}
