//! RDMA verbs. Here are their words, shared by whoever decides what is posted and by every provider
//! that posts it: plain data, no device. `provider` is the real one, `crate::sim::fabric` the
//! other.

#[cfg(feature = "rdma")]
mod provider;
mod status;

#[cfg(feature = "rdma")]
pub use self::provider::*;
pub use self::status::Status;
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
    /// Comes back with its completion. Any but `u64::MAX`, by which a provider knows receives.
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

/// What a device reports beside completions. Its words are those of <infiniband/verbs.h>.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AsyncEvent {
    /// The port carries traffic.
    #[error("port active")]
    PortUp,
    /// The port carries none.
    #[error("port error")]
    PortDown,
    /// An address of the port has changed, a GID or its LID: peers that connect use another.
    #[error("GID table change")]
    GidChanged,
    /// A peer asked this queue pair for something that it doesn't permit: it is in error.
    #[error("local access violation work queue error, queue pair {}", .0.0)]
    AccessViolated(QpNumber),
    /// This queue pair is in error by the device's own doing.
    #[error("local work queue catastrophic error, queue pair {}", .0.0)]
    PairFailed(QpNumber),
    /// This queue pair is in error and takes no more of the receives that it shares.
    #[error("last WQE reached, queue pair {}", .0.0)]
    LastReceive(QpNumber),
    /// The completion queue of this number has overflowed: its completions are lost.
    #[error("CQ error, completion queue {0}")]
    CompletionsFailed(u32),
    /// The shared receive queue of this number gives no more receives.
    #[error("SRQ catastrophic error, shared receive queue {0}")]
    ReceivesFailed(u32),
    /// The device is gone for good.
    #[error("local catastrophic error")]
    DeviceFatal,
}
