//! Receives that the queue pairs of a shard share. They take no bytes, only the word of a write
//! with an immediate, so all are alike: one chain of them is made once, and its end is posted.

use std::ptr::{self, NonNull};
use std::sync::Arc;

use rdma_sys::{ibv_post_srq_recv, ibv_recv_wr, ibv_srq, ibv_srq_init_attr};

use super::completion::RECEIVE;
use super::domain::Domain;
use super::library::VerbsError;

/// The queue is filled up when less than this part of it is left: then a doorbell is for three
/// quarters of it, and the last quarter serves those peers who write meanwhile.
const LOW_WATER_PART: usize = 4;

/// A shared receive queue.
pub(super) struct Receives {
    pub(super) srq: NonNull<ibv_srq>,
    /// As many as the queue holds, each pointing at the next.
    chain: Box<[ibv_recv_wr]>,
    /// Posted, and not completed yet.
    posted: usize,
    domain: Arc<Domain>,
}

// SAFETY: the handle may be used by any thread; one owns it at a time. The chain points into
// itself.
unsafe impl Send for Receives {}

impl Receives {
    /// A queue with as many receives, all posted.
    ///
    /// # Errors
    /// What the kernel says: more than the device takes.
    pub(super) fn new(domain: &Arc<Domain>, capacity: u32) -> Result<Self, VerbsError> {
        // SAFETY: a pointer and numbers, for all of which zero is a value.
        let mut attributes: ibv_srq_init_attr = unsafe { std::mem::zeroed() };
        attributes.attr.max_wr = capacity;
        attributes.attr.max_sge = 1;
        let create = domain.device.library.ibv_create_srq;
        // SAFETY: the domain lives.
        let srq = NonNull::new(unsafe { create(domain.pd.as_ptr(), &mut attributes) });
        let srq = srq.ok_or_else(|| VerbsError::last("ibv_create_srq"))?;
        let chain = chain(capacity as usize);
        let mut receives = Self { srq, chain, posted: 0, domain: domain.clone() };
        receives.fill();
        Ok(receives)
    }

    /// What the kernel calls it in its reports.
    pub(super) fn number(&self) -> u32 {
        // SAFETY: the queue lives.
        unsafe { self.srq.as_ref().handle }
    }

    /// So many have completed; fills the queue up when few are left.
    pub(super) fn took(&mut self, count: usize) {
        self.posted = self.posted.saturating_sub(count);
        if self.posted < self.chain.len() / LOW_WATER_PART {
            self.fill();
        }
    }

    /// Posts those that are missing, with one doorbell. What the device doesn't take now is tried
    /// again when the next one completes.
    fn fill(&mut self) {
        let end = &mut self.chain[self.posted..];
        let Some(first) = end.first_mut() else { return };
        let mut bad = ptr::null_mut();
        // SAFETY: the queue lives. The chain ends where the slice does, is read before the call
        // returns, and names no memory.
        let code = unsafe { ibv_post_srq_recv(self.srq.as_ptr(), first, &mut bad) };
        let refused = end.iter().position(|receive| ptr::eq(receive, bad)).unwrap_or(0);
        self.posted += if code == 0 { end.len() } else { refused };
    }
}

/// So many receives, each pointing at the next.
fn chain(len: usize) -> Box<[ibv_recv_wr]> {
    let alone = |_| ibv_recv_wr {
        wr_id: RECEIVE,
        next: ptr::null_mut(),
        sg_list: ptr::null_mut(),
        num_sge: 0,
    };
    let mut chain: Box<[_]> = (0..len).map(alone).collect();
    let first = chain.as_mut_ptr();
    for (index, receive) in chain.iter_mut().enumerate().take(len.saturating_sub(1)) {
        // SAFETY: not the last one, so the next is inside of the slice.
        receive.next = unsafe { first.add(index + 1) };
    }
    chain
}

impl std::fmt::Debug for Receives {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Receives({} of {})", self.posted, self.chain.len())
    }
}

impl Drop for Receives {
    fn drop(&mut self) {
        // SAFETY: queue pairs that receive by it held it, and are gone.
        unsafe { (self.domain.device.library.ibv_destroy_srq)(self.srq.as_ptr()) };
    }
}
