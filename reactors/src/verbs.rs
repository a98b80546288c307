//! RDMA verbs. Here are their words, shared by whoever decides what is posted and by every provider
//! that posts it: plain data, no device. `provider` is the real one, `crate::sim::fabric` the
//! other.

#[cfg(feature = "rdma")]
mod provider;

#[cfg(feature = "rdma")]
pub use self::provider::*;
use crate::region::Slice;

/// A list of work requests for one queue pair, posted with one doorbell.
#[derive(Debug)]
pub struct Post {
    /// Where they go.
    pub qp: QpNumber,
    /// In their order.
    pub requests: Vec<WorkRequest>,
}

/// Names a queue pair of one NIC while it lives; a NIC gives numbers of the dead to the living.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QpNumber(pub u32);

/// One end of a connection, as the handshake tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct QpAddress {
    /// Its number at its NIC.
    pub number: QpNumber,
    /// The number of the first packet it sends, 24 bits: drawn anew for every connection, so that
    /// a packet of an earlier one between the same numbers is out of sequence.
    pub first_packet: u32,
}

/// What gives a peer access to a registered range or to a window in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RemoteKey(pub u32);

/// Where a queue pair is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QpState {
    /// Made or reset: forgets all it had, completions too.
    Reset,
    /// Takes receives.
    Init,
    /// Executes what its peer sends.
    ReadyToReceive,
    /// Sends as well.
    ReadyToSend,
    /// Executes nothing more; what is and will be posted completes as [`Status::Flushed`].
    Error,
}

/// What a registered range or a window permits its peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoteAccess {
    /// Peers may read.
    pub read: bool,
    /// Peers may write.
    pub write: bool,
}

/// What a work request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Local bytes go to the peer.
    Write,
    /// The same, and the peer gets a completion with this word.
    WriteWithImmediate(u32),
    /// The peer's bytes come here.
    Read,
    /// Opens a window over a range of ours for this queue pair's peer alone (type 2B).
    Bind {
        /// The window's key.
        window: RemoteKey,
        /// What it permits.
        access: RemoteAccess,
    },
    /// Closes a window of ours; when it completes, nothing is stored through it any more.
    Invalidate(RemoteKey),
    /// Nothing, but it completes. Posted to a queue pair in error it marks the end: when it is
    /// flushed, nothing of the pair touches memory any more, neither ours nor its peer's requests,
    /// and every word that came by it was handed out.
    Nothing,
}

/// One entry of a send queue.
#[derive(Debug, Clone)]
pub struct WorkRequest {
    /// Comes back with its completion.
    pub id: u64,
    /// What it does.
    pub operation: Operation,
    /// The bytes here; none where the operation has none.
    pub local: Option<Slice>,
    /// Where at the peer; for a window, its first address.
    pub remote_addr: u64,
    /// The peer's permission; for a window, the range it lies in.
    pub key: RemoteKey,
    /// Whether success completes; failure always does.
    pub is_signalled: bool,
}

/// How a work request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It is done; so is every one posted before it to its queue pair.
    Success,
    /// The queue pair is in error: this was not tried, or given up.
    Flushed,
    /// The peer doesn't permit it.
    RemoteAccess,
    /// Our own range is not registered, or too short.
    LocalProtection,
    /// The peer did not answer, however often it was asked.
    RetryExceeded,
    /// The peer has no receive for it.
    ReceiverNotReady,
}

/// What an entry of a completion queue is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Completed {
    /// A work request of ours.
    Sent(Status),
    /// A peer's [`Operation::WriteWithImmediate`]; what it and those before it wrote is in place.
    Received(u32),
}

/// An entry of a completion queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// Whose it is.
    pub qp: QpNumber,
    /// The work request's id; 0 for a receive.
    pub id: u64,
    /// What happened.
    pub what: Completed,
}

/// What a device reports beside completions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AsyncEvent {
    /// The port carries traffic.
    PortUp,
    /// The port carries none.
    PortDown,
    /// A peer asked this queue pair for something that it doesn't permit: it is in error.
    AccessViolated(QpNumber),
}
