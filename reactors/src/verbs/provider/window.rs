//! Memory windows of type 2B: a range that one queue pair's peer may reach until its owner
//! invalidates it.

use std::ptr::NonNull;
use std::sync::Arc;

use rdma_sys::{ibv_alloc_mw, ibv_dealloc_mw, ibv_inc_rkey, ibv_mw, ibv_mw_type};

use super::domain::Domain;
use super::library::VerbsError;
use super::{QpNumber, RemoteKey};

/// A window that can be opened once.
#[derive(Debug)]
pub(super) struct Window {
    pub(super) mw: NonNull<ibv_mw>,
    key: RemoteKey,
    /// The queue pair that was told to open it.
    pub(super) opened_on: Option<QpNumber>,
    _domain: Arc<Domain>,
}

// SAFETY: the handle may be used by any thread; one owns it at a time.
unsafe impl Send for Window {}

impl Window {
    /// # Errors
    /// What the kernel says: the device has no such windows, or too few.
    pub(super) fn new(domain: &Arc<Domain>) -> Result<Self, VerbsError> {
        // SAFETY: the domain lives.
        let mw = unsafe { ibv_alloc_mw(domain.pd.as_ptr(), ibv_mw_type::IBV_MW_TYPE_2) };
        let mw = mw.and_then(NonNull::new).ok_or_else(|| VerbsError::last("ibv_alloc_mw"))?;
        // SAFETY: it was just made; counting its key up touches no memory.
        let key = RemoteKey(unsafe { ibv_inc_rkey(mw.as_ref().rkey) });
        Ok(Self { mw, key, opened_on: None, _domain: domain.clone() })
    }

    /// What peers reach it by once it is open.
    pub(super) fn key(&self) -> RemoteKey {
        self.key
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: it was made once; nobody reaches anything by it from here on.
        unsafe { ibv_dealloc_mw(self.mw.as_ptr()) };
    }
}
