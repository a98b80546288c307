//! Receives that the queue pairs of a shard share. They take no bytes, only the word of a write
//! with an immediate.

use std::ptr::{self, NonNull};
use std::sync::Arc;

use rdma_sys::{ibv_post_srq_recv, ibv_recv_wr, ibv_srq, ibv_srq_init_attr};

use super::domain::Domain;
use super::library::VerbsError;

/// A shared receive queue.
#[derive(Debug)]
pub struct Receives {
    pub(super) srq: NonNull<ibv_srq>,
    domain: Arc<Domain>,
}

// SAFETY: the handle may be used by any thread; one owns it at a time.
unsafe impl Send for Receives {}

impl Receives {
    /// A queue for as many receives.
    ///
    /// # Errors
    /// What the kernel says: more than the device takes.
    pub fn new(domain: &Arc<Domain>, capacity: u32) -> Result<Self, VerbsError> {
        // SAFETY: a pointer and numbers, for all of which zero is a value.
        let mut attributes: ibv_srq_init_attr = unsafe { std::mem::zeroed() };
        attributes.attr.max_wr = capacity;
        attributes.attr.max_sge = 1;
        let create = domain.device.library.ibv_create_srq;
        // SAFETY: the domain lives.
        let srq = NonNull::new(unsafe { create(domain.pd.as_ptr(), &mut attributes) });
        let srq = srq.ok_or_else(|| VerbsError::last("ibv_create_srq"))?;
        Ok(Self { srq, domain: domain.clone() })
    }

    /// Adds receives; returns how many it had room for.
    pub fn post(&mut self, count: usize) -> usize {
        let is_posted = |_: &usize| {
            let mut request = ibv_recv_wr {
                wr_id: 0,
                next: ptr::null_mut(),
                sg_list: ptr::null_mut(),
                num_sge: 0,
            };
            let mut bad = ptr::null_mut();
            // SAFETY: the queue lives; the request is read before the call returns and names no
            // memory.
            unsafe { ibv_post_srq_recv(self.srq.as_ptr(), &mut request, &mut bad) == 0 }
        };
        (0..count).take_while(is_posted).count()
    }
}

impl Drop for Receives {
    fn drop(&mut self) {
        // SAFETY: queue pairs that receive by it held it, and are gone.
        unsafe { (self.domain.device.library.ibv_destroy_srq)(self.srq.as_ptr()) };
    }
}
