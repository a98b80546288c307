//! What the machines ask of whoever owns the devices, and the bounds they keep.

use kvrail_reactors::verbs::{QpAddress, QpNumber, WorkRequest};

use super::ending::Ending;
use super::ledger::Counted;
use super::message::{EndpointName, InitiatorId, Message};
use super::queue::Signals;
use super::rail::Ends;
use crate::limits;

/// Something to be done, in this order.
#[derive(Debug)]
pub(crate) enum Action {
    /// Make so many queue pairs on this NIC; answered by `Initiator::created`.
    Create { name: EndpointName, peer: u64, ends: Ends, queues: usize },
    /// Connect them to the peer's, one by one; answered by `Initiator::connected`.
    Connect { name: EndpointName, peer: u64, nic: u8, pairs: Vec<(QpNumber, QpAddress)> },
    /// Make a queue pair for each of these, connected to it, and a mailbox; answered by
    /// `Target::accepted`.
    Accept { name: EndpointName, peer: u64, nic: u8, queues: Vec<QpAddress> },
    /// Move it to error.
    Error { nic: u8, qp: QpNumber },
    /// End it: all it had is quiet.
    Destroy { nic: u8, qp: QpNumber },
    /// Post a list; it fits.
    Post { nic: u8, qp: QpNumber, requests: Vec<WorkRequest> },
    /// Tell a peer.
    Tell { peer: u64, message: Message },
    /// A transfer has ended.
    Ended { order: u64, ending: Ending },
    /// The memory of a transfer that ended without being quiet here is quiet now.
    Released { order: u64 },
    /// A counter of ours has advanced, by an event of this initiator's.
    Counted { from: InitiatorId, counted: Counted },
    /// A window to this grant was asked for; answered by `Target::granted`.
    Granted { name: EndpointName, grant: u128 },
    /// Nothing reaches this grant any more.
    Revoked { grant: u128 },
    /// Nothing of this initiator is stored any more.
    Evicted { initiator: InitiatorId },
    /// Only for the canary: reset it, as nobody should.
    Reset { nic: u8, qp: QpNumber },
}

/// Bounds of an initiator; the defaults are in [`crate::limits`], with their reasons.
#[derive(Debug, Clone)]
pub(crate) struct RdmaLimits {
    /// Queue pairs of an endpoint.
    pub(crate) queues: usize,
    /// Work requests under way on one queue pair.
    pub(crate) window_requests: usize,
    /// Bytes under way on one endpoint.
    pub(crate) window_bytes: usize,
    /// Work requests under way on one NIC, to all peers: its completion queue must hold them all
    /// when they are flushed.
    pub(crate) nic_requests: usize,
    /// Work requests of one list.
    pub(crate) list_max: usize,
    pub(crate) signals: Signals,
    /// Notices that a queue may have under way or unread at the peer; a power of two.
    pub(crate) notices: usize,
    pub(crate) open_retry_ns: u64,
    pub(crate) open_max_ns: u64,
    pub(crate) silence_ns: u64,
    pub(crate) grace_ns: u64,
    pub(crate) fence_retry_ns: u64,
    pub(crate) fence_max_ns: u64,
    pub(crate) drain_max_ns: u64,
    pub(crate) pause_ns: u64,
    pub(crate) pause_max_ns: u64,
    pub(crate) lost_ns: u64,
}

impl Default for RdmaLimits {
    fn default() -> Self {
        Self {
            queues: limits::RDMA_QUEUES,
            window_requests: limits::RDMA_WINDOW_REQUESTS,
            window_bytes: limits::RDMA_WINDOW_BYTES,
            nic_requests: limits::RDMA_NIC_REQUESTS,
            list_max: limits::RDMA_LIST_MAX,
            signals: Signals::Every(limits::RDMA_SIGNAL_EVERY),
            notices: limits::RDMA_NOTICES_MAX,
            open_retry_ns: limits::RDMA_OPEN_RETRY_NS,
            open_max_ns: limits::RDMA_OPEN_MAX_NS,
            silence_ns: limits::RDMA_SILENCE_NS,
            grace_ns: limits::RDMA_GRACE_NS,
            fence_retry_ns: limits::RDMA_FENCE_RETRY_NS,
            fence_max_ns: limits::RDMA_FENCE_MAX_NS,
            drain_max_ns: limits::RDMA_DRAIN_MAX_NS,
            pause_ns: limits::RDMA_PAUSE_NS,
            pause_max_ns: limits::RDMA_PAUSE_MAX_NS,
            lost_ns: limits::RDMA_LOST_NS,
        }
    }
}

impl RdmaLimits {
    /// For software devices: [`Signals::Behind`], for which each list may have one write more.
    #[cfg(feature = "rdma")]
    pub(crate) fn of_software() -> Self {
        let hardware = Self::default();
        let nic_requests = hardware.nic_requests / 2;
        Self { signals: Signals::Behind, nic_requests, ..hardware }
    }
}
