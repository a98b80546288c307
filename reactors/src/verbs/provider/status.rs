//! What a completion's status says, in the words of this crate.

use rdma_sys::ibv_wc_status;

use super::Status;

/// The status of a completion.
pub(super) fn status(code: ibv_wc_status::Type) -> Status {
    use ibv_wc_status::*;
    match code {
        IBV_WC_SUCCESS => Status::Success,
        IBV_WC_LOC_LEN_ERR => Status::LocalLength,
        IBV_WC_LOC_QP_OP_ERR => Status::LocalOperation,
        IBV_WC_LOC_PROT_ERR => Status::LocalProtection,
        IBV_WC_WR_FLUSH_ERR => Status::Flushed,
        IBV_WC_MW_BIND_ERR => Status::Bind,
        IBV_WC_BAD_RESP_ERR => Status::BadResponse,
        IBV_WC_LOC_ACCESS_ERR => Status::LocalAccess,
        IBV_WC_REM_INV_REQ_ERR => Status::RemoteInvalidRequest,
        IBV_WC_REM_ACCESS_ERR => Status::RemoteAccess,
        IBV_WC_REM_OP_ERR => Status::RemoteOperation,
        IBV_WC_RETRY_EXC_ERR => Status::RetryExceeded,
        IBV_WC_RNR_RETRY_EXC_ERR => Status::ReceiverNotReady,
        IBV_WC_REM_ABORT_ERR => Status::Aborted,
        IBV_WC_FATAL_ERR => Status::Fatal,
        IBV_WC_RESP_TIMEOUT_ERR => Status::ResponseTimeout,
        IBV_WC_GENERAL_ERR => Status::General,
        code => Status::Other(code),
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::{CStr, c_char};

    use super::*;

    /// Statuses of what is not used here: end-to-end contexts, reliable datagrams, tag matching.
    const FOREIGN: [u32; 7] = [3, 14, 15, 17, 18, 22, 23];

    #[test]
    fn every_status_is_shown_in_the_words_of_libibverbs() {
        // SAFETY: as in library.rs.
        let library = unsafe { libloading::Library::new("libibverbs.so.1") }.unwrap();
        // SAFETY: the signature of <infiniband/verbs.h>.
        let words: libloading::Symbol<'_, unsafe extern "C" fn(u32) -> *const c_char> =
            unsafe { library.get(b"ibv_wc_status_str\0") }.unwrap();
        for code in 0..=ibv_wc_status::IBV_WC_GENERAL_ERR + 2 {
            // SAFETY: it answers any number with a constant string.
            let theirs = unsafe { CStr::from_ptr(words(code)) }.to_str().unwrap();
            let ours = status(code).to_string();
            match FOREIGN.contains(&code) {
                true => assert_eq!(ours, format!("work completion status {code}"), "{theirs}"),
                false => assert_eq!(ours, theirs, "status {code}"),
            }
        }
    }
}
