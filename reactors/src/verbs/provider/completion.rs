//! A completion queue and the channel that tells a sleeper of it.

use std::ffi::c_int;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use rdma_sys::{
    ibv_comp_channel, ibv_cq, ibv_poll_cq, ibv_req_notify_cq, ibv_wc, ibv_wc_flags, ibv_wc_opcode,
};

use super::device::{Device, set_nonblocking};
use super::library::VerbsError;
use super::status::status;
use super::{Completed, Completion, QpNumber};

/// Entries that one look takes: Mooncake's and UCX's 16 to 32 a poll.
const LOOK: usize = 32;

/// Acknowledging takes a lock, so it is done once in so many events.
const ACKNOWLEDGE_EVENTS: u32 = 64;

/// A completion queue of one shard.
#[derive(Debug)]
pub struct CompletionQueue {
    pub(super) cq: NonNull<ibv_cq>,
    channel: NonNull<ibv_comp_channel>,
    device: Arc<Device>,
    /// Events that were taken and not acknowledged.
    taken: u32,
    capacity: u32,
}

// SAFETY: the handles may be used by any thread; one owns them at a time.
unsafe impl Send for CompletionQueue {}

impl CompletionQueue {
    /// A queue for as many completions.
    ///
    /// # Errors
    /// What the kernel says: more than the device takes.
    pub fn new(device: &Arc<Device>, capacity: u32) -> Result<Self, VerbsError> {
        let (library, context) = (device.library, device.context.as_ptr());
        // SAFETY: the device is open.
        let channel = NonNull::new(unsafe { (library.ibv_create_comp_channel)(context) });
        let channel = channel.ok_or_else(|| VerbsError::last("ibv_create_comp_channel"))?;
        let entries = c_int::try_from(capacity).unwrap_or(c_int::MAX);
        let create = library.ibv_create_cq;
        // SAFETY: the device is open, and the channel is of it.
        let cq = unsafe { create(context, entries, ptr::null_mut(), channel.as_ptr(), 0) };
        let Some(cq) = NonNull::new(cq) else {
            let error = VerbsError::last("ibv_create_cq");
            // SAFETY: nothing uses it.
            unsafe { (library.ibv_destroy_comp_channel)(channel.as_ptr()) };
            return Err(error);
        };
        let queue = Self { cq, channel, device: device.clone(), taken: 0, capacity };
        set_nonblocking(queue.fd())?;
        Ok(queue)
    }

    /// How many completions it holds.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Readable when a completion comes after [`CompletionQueue::arm`].
    pub fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel, and its descriptor with it, lives as long as the queue.
        unsafe { BorrowedFd::borrow_raw(self.channel.as_ref().fd) }
    }

    /// Takes at most `budget` completions.
    pub fn poll(&mut self, budget: usize, done: &mut Vec<Completion>) -> usize {
        let mut taken = 0;
        while taken < budget {
            let look = LOOK.min(budget - taken);
            // SAFETY: numbers and a union of numbers, for all of which zero is a value.
            let mut entries: [ibv_wc; LOOK] = unsafe { std::mem::zeroed() };
            // SAFETY: the queue lives, and there is room for as many entries.
            let found = unsafe { ibv_poll_cq(self.cq.as_ptr(), look as i32, entries.as_mut_ptr()) };
            let found = usize::try_from(found).unwrap_or(0);
            done.extend(entries[..found].iter().map(completion));
            taken += found;
            if found < look {
                break;
            }
        }
        taken
    }

    /// The next completion makes [`CompletionQueue::fd`] readable. Poll once more behind this:
    /// those that came before it don't.
    pub fn arm(&mut self) -> bool {
        self.take_events();
        // SAFETY: the queue lives.
        unsafe { ibv_req_notify_cq(self.cq.as_ptr(), 0) == 0 }
    }

    /// Takes what the channel has told, so that it is not readable for that any more.
    fn take_events(&mut self) {
        let (mut cq, mut context) = (ptr::null_mut(), ptr::null_mut());
        let get = self.device.library.ibv_get_cq_event;
        // SAFETY: the channel lives and its descriptor doesn't block.
        while unsafe { get(self.channel.as_ptr(), &mut cq, &mut context) } == 0 {
            self.taken += 1;
        }
        if self.taken >= ACKNOWLEDGE_EVENTS {
            self.acknowledge();
        }
    }

    fn acknowledge(&mut self) {
        // SAFETY: so many were taken and not acknowledged.
        unsafe { (self.device.library.ibv_ack_cq_events)(self.cq.as_ptr(), self.taken) };
        self.taken = 0;
    }
}

impl Drop for CompletionQueue {
    fn drop(&mut self) {
        // Destroying waits for acknowledgements.
        self.take_events();
        self.acknowledge();
        // SAFETY: queue pairs that complete here held it, and are gone; the channel is its own.
        unsafe {
            (self.device.library.ibv_destroy_cq)(self.cq.as_ptr());
            (self.device.library.ibv_destroy_comp_channel)(self.channel.as_ptr());
        }
    }
}

fn completion(entry: &ibv_wc) -> Completion {
    let is_immediate = entry.wc_flags & ibv_wc_flags::IBV_WC_WITH_IMM.0 != 0;
    let is_receive = entry.opcode & ibv_wc_opcode::IBV_WC_RECV != 0;
    let what = match status(entry.status) {
        super::Status::Success if is_receive && is_immediate => {
            // SAFETY: the flag says that the union holds an immediate.
            let word = unsafe { entry.imm_data_invalidated_rkey_union.imm_data };
            Completed::Received(u32::from_be(word))
        }
        status => Completed::Sent(status),
    };
    Completion { qp: QpNumber(entry.qp_num), id: entry.wr_id, what }
}
