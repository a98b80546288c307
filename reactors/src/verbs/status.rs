//! How work requests end, each in the words that libibverbs has for it.

/// How a work request ended. What is shown are the words of `ibv_wc_status_str`, which every other
/// program of RDMA prints too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Status {
    /// It is done; so is every one posted before it to its queue pair.
    #[error("success")]
    Success,
    /// The queue pair is in error: this was not tried, or given up.
    #[error("Work Request Flushed Error")]
    Flushed,
    /// The peer doesn't permit it.
    #[error("remote access error")]
    RemoteAccess,
    /// The peer does not know such a request, or it is too long there.
    #[error("remote invalid request error")]
    RemoteInvalidRequest,
    /// The peer could not do it, for reasons of its own.
    #[error("remote operation error")]
    RemoteOperation,
    /// Our own range is not registered, or too short.
    #[error("local protection error")]
    LocalProtection,
    /// Our own range is longer than a message may be.
    #[error("local length error")]
    LocalLength,
    /// The request itself makes no sense to the device.
    #[error("local QP operation error")]
    LocalOperation,
    /// What a peer's write with an immediate touches here is not registered.
    #[error("local access error")]
    LocalAccess,
    /// A window could not be opened or closed.
    #[error("memory management operation error")]
    Bind,
    /// The peer's answer makes no sense.
    #[error("bad response error")]
    BadResponse,
    /// The peer did not answer, however often it was asked.
    #[error("transport retry counter exceeded")]
    RetryExceeded,
    /// The peer has no receive for it.
    #[error("RNR retry counter exceeded")]
    ReceiverNotReady,
    /// The peer gave it up.
    #[error("aborted error")]
    Aborted,
    /// The device is beyond repair.
    #[error("fatal error")]
    Fatal,
    /// The peer's answer came too late.
    #[error("response timeout error")]
    ResponseTimeout,
    /// The device says no more than that it failed.
    #[error("general error")]
    General,
    /// A number that <infiniband/verbs.h> does not have for connected queue pairs.
    #[error("work completion status {0}")]
    Other(u32),
}

impl Status {
    /// Whether it is done.
    pub fn is_success(self) -> bool {
        self == Self::Success
    }

    /// Whether the request itself is at fault, and would end so on every other NIC too: a range or
    /// a key that doesn't cover it. The connection and the peer are as well as ever.
    pub fn is_protection(self) -> bool {
        match self {
            Self::RemoteAccess
            | Self::RemoteInvalidRequest
            | Self::LocalProtection
            | Self::LocalLength
            | Self::LocalAccess
            | Self::Bind => true,
            // Soft-RoCE says so of a packet that found no way out of its host.
            Self::LocalOperation
            | Self::Success
            | Self::Flushed
            | Self::RemoteOperation
            | Self::BadResponse
            | Self::RetryExceeded
            | Self::ReceiverNotReady
            | Self::Aborted
            | Self::Fatal
            | Self::ResponseTimeout
            | Self::General
            | Self::Other(_) => false,
        }
    }
}
