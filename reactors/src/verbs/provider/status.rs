//! What a completion's status says, in the words of this crate.

use rdma_sys::ibv_wc_status;

use super::Status;

/// The status of a completion.
pub(super) fn status(code: ibv_wc_status::Type) -> Status {
    use ibv_wc_status::*;
    match code {
        IBV_WC_SUCCESS => Status::Success,
        IBV_WC_WR_FLUSH_ERR => Status::Flushed,
        IBV_WC_REM_ACCESS_ERR | IBV_WC_REM_OP_ERR | IBV_WC_REM_INV_REQ_ERR => Status::RemoteAccess,
        IBV_WC_LOC_PROT_ERR
        | IBV_WC_LOC_LEN_ERR
        | IBV_WC_LOC_QP_OP_ERR
        | IBV_WC_LOC_ACCESS_ERR
        | IBV_WC_MW_BIND_ERR => Status::LocalProtection,
        IBV_WC_RNR_RETRY_EXC_ERR => Status::ReceiverNotReady,
        // The peer is silent, or the device is beyond repair; either way the endpoint goes.
        _ => Status::RetryExceeded,
    }
}
