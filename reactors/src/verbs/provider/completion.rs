//! A completion queue and the channel that tells a sleeper of it.

use std::ffi::c_int;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use rdma_sys::{ibv_comp_channel, ibv_cq, ibv_poll_cq, ibv_req_notify_cq, ibv_wc, ibv_wc_flags};

use super::device::{Device, set_nonblocking};
use super::library::VerbsError;
use super::status::status;
use super::{Completed, Completion, QpNumber};

/// Entries that one look takes: Mooncake's and UCX's 16 to 32 a poll.
const LOOK: usize = 32;

/// Acknowledging takes a lock, so it is done once in so many events.
const ACKNOWLEDGE_EVENTS: u32 = 64;

/// The id that every receive has: of one that failed, nothing else says what it was.
pub(super) const RECEIVE: u64 = u64::MAX;

/// What was taken from a completion queue.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Taken {
    /// Completions of work requests.
    pub(super) sent: usize,
    /// Receives that are used up, whether they brought a word or not.
    pub(super) received: usize,
}

/// A completion queue of one shard.
#[derive(Debug)]
pub(super) struct CompletionQueue {
    pub(super) cq: NonNull<ibv_cq>,
    channel: NonNull<ibv_comp_channel>,
    device: Arc<Device>,
    /// Events that were taken and not acknowledged.
    taken: u32,
}

// SAFETY: the handles may be used by any thread; one owns them at a time.
unsafe impl Send for CompletionQueue {}

impl CompletionQueue {
    /// A queue for as many completions.
    ///
    /// # Errors
    /// What the kernel says: more than the device takes.
    pub(super) fn new(device: &Arc<Device>, capacity: u32) -> Result<Self, VerbsError> {
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
        let queue = Self { cq, channel, device: device.clone(), taken: 0 };
        set_nonblocking(queue.fd())?;
        Ok(queue)
    }

    /// What the kernel calls it in its reports.
    pub(super) fn number(&self) -> u32 {
        // SAFETY: the queue lives.
        unsafe { self.cq.as_ref().handle }
    }

    /// Readable when a completion comes after [`CompletionQueue::arm`].
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel, and its descriptor with it, lives as long as the queue.
        unsafe { BorrowedFd::borrow_raw(self.channel.as_ref().fd) }
    }

    /// Takes at most `budget` completions.
    pub(super) fn poll(&mut self, budget: usize, done: &mut Vec<Completion>) -> Taken {
        let mut taken = Taken::default();
        while taken.all() < budget {
            let look = LOOK.min(budget - taken.all());
            // SAFETY: numbers and a union of numbers, for all of which zero is a value.
            let mut entries: [ibv_wc; LOOK] = unsafe { std::mem::zeroed() };
            // SAFETY: the queue lives, and there is room for as many entries.
            let found = unsafe { ibv_poll_cq(self.cq.as_ptr(), look as i32, entries.as_mut_ptr()) };
            let found = usize::try_from(found).unwrap_or(0);
            let received = entries[..found].iter().filter(|entry| entry.wr_id == RECEIVE).count();
            taken.received += received;
            taken.sent += found - received;
            done.extend(entries[..found].iter().filter_map(completion));
            if found < look {
                break;
            }
        }
        taken
    }

    /// The next completion makes [`CompletionQueue::fd`] readable. Poll once more behind this:
    /// those that came before it don't.
    pub(super) fn arm(&mut self) -> bool {
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

impl Taken {
    pub(super) fn all(self) -> usize {
        self.sent + self.received
    }
}

/// What a shard learns of an entry: of a receive, the word that it brought. One that failed brings
/// none; its queue pair is in error, and says so.
fn completion(entry: &ibv_wc) -> Option<Completion> {
    let (qp, status) = (QpNumber(entry.qp_num), status(entry.status));
    if entry.wr_id != RECEIVE {
        return Some(Completion { qp, id: entry.wr_id, what: Completed::Sent(status) });
    }
    let is_immediate = entry.wc_flags & ibv_wc_flags::IBV_WC_WITH_IMM.0 != 0;
    (status.is_success() && is_immediate).then(|| {
        // SAFETY: the flag says that the union holds an immediate.
        let word = unsafe { entry.imm_data_invalidated_rkey_union.imm_data };
        Completion { qp, id: 0, what: Completed::Received(u32::from_be(word)) }
    })
}

#[cfg(test)]
mod tests {
    use rdma_sys::ibv_wc_status;

    use super::*;

    #[test]
    fn a_receive_that_failed_is_no_completion_of_a_work_request() {
        // SAFETY: numbers and a union of numbers, for all of which zero is a value.
        let mut entry: ibv_wc = unsafe { std::mem::zeroed() };
        (entry.qp_num, entry.wr_id) = (7, RECEIVE);
        entry.status = ibv_wc_status::IBV_WC_WR_FLUSH_ERR;
        assert_eq!(completion(&entry), None);
        entry.status = ibv_wc_status::IBV_WC_SUCCESS;
        entry.wc_flags = ibv_wc_flags::IBV_WC_WITH_IMM.0;
        entry.imm_data_invalidated_rkey_union.imm_data = 9_u32.to_be();
        let word = Completion { qp: QpNumber(7), id: 0, what: Completed::Received(9) };
        assert_eq!(completion(&entry), Some(word));
    }
}
