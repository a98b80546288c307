//! A queue pair, and the work requests that are posted to it.

use std::mem;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use rdma_sys::{
    ibv_access_flags, ibv_post_send, ibv_qp, ibv_qp_attr, ibv_qp_attr_mask as mask,
    ibv_qp_init_attr, ibv_qp_state, ibv_qp_type,
};

use super::completion::CompletionQueue;
use super::device::PORT;
use super::domain::Domain;
use super::library::VerbsError;
use super::posted::Posted;
use super::receives::Receives;
use super::send::{INLINE_MAX_BYTES, Sends};
use super::way::{READS_MAX, RECEIVER_RETRIES, RECEIVER_TIMER, RETRIES, TIMEOUT, Way};
use super::{QpAddress, QpNumber, QpState, Status};

/// Pieces of memory of one work request: a slice that lies across a cut has two.
const PIECES: u32 = 2;

/// A queue pair.
#[derive(Debug)]
pub(super) struct QueuePair {
    qp: NonNull<ibv_qp>,
    domain: Arc<Domain>,
    first_packet: u32,
    is_destroyed: bool,
    pub(super) posted: Posted,
}

// SAFETY: the handle may be used by any thread; one owns it at a time.
unsafe impl Send for QueuePair {}

impl QueuePair {
    /// A queue pair of so many work requests, which completes in `completions` and receives by
    /// `receives`; both must outlive it.
    ///
    /// # Errors
    /// What the kernel says: too many, or too deep.
    pub(super) fn new(
        domain: &Arc<Domain>,
        completions: &CompletionQueue,
        receives: &Receives,
        depth: u32,
        first_packet: u32,
    ) -> Result<Self, VerbsError> {
        // SAFETY: pointers and numbers, for all of which zero is a value.
        let mut attributes: ibv_qp_init_attr = unsafe { std::mem::zeroed() };
        attributes.send_cq = completions.cq.as_ptr();
        attributes.recv_cq = completions.cq.as_ptr();
        attributes.srq = receives.srq.as_ptr();
        attributes.qp_type = ibv_qp_type::IBV_QPT_RC;
        attributes.cap.max_send_wr = depth;
        attributes.cap.max_send_sge = PIECES;
        attributes.cap.max_inline_data = INLINE_MAX_BYTES as u32;
        let create = domain.device.library.ibv_create_qp;
        // SAFETY: the domain and both queues live.
        let qp = NonNull::new(unsafe { create(domain.pd.as_ptr(), &mut attributes) });
        let qp = qp.ok_or_else(|| VerbsError::last("ibv_create_qp"))?;
        let (domain, posted) = (domain.clone(), Posted::new(depth as usize));
        Ok(Self { qp, domain, first_packet, is_destroyed: false, posted })
    }

    pub(super) fn address(&self) -> QpAddress {
        // SAFETY: the queue pair lives.
        let number = QpNumber(unsafe { self.qp.as_ref().qp_num });
        QpAddress { number, first_packet: self.first_packet }
    }

    /// Connects it to a peer's.
    ///
    /// # Errors
    /// What the kernel says: it is connected already, or there is no such address.
    pub(super) fn connect(&mut self, peer: QpAddress, way: &Way) -> Result<(), VerbsError> {
        self.init(way)?;
        self.ready_to_receive(peer, way)?;
        self.ready_to_send()
    }

    fn init(&mut self, way: &Way) -> Result<(), VerbsError> {
        let mut to = to(ibv_qp_state::IBV_QPS_INIT);
        to.port_num = PORT;
        // The keys say more closely what peers may do.
        to.qp_access_flags = (ibv_access_flags::IBV_ACCESS_REMOTE_WRITE
            | ibv_access_flags::IBV_ACCESS_REMOTE_READ)
            .0;
        if way.atomics {
            to.qp_access_flags |= ibv_access_flags::IBV_ACCESS_REMOTE_ATOMIC.0;
        }
        let fields = mask::IBV_QP_STATE
            | mask::IBV_QP_PKEY_INDEX
            | mask::IBV_QP_PORT
            | mask::IBV_QP_ACCESS_FLAGS;
        self.modify("a queue pair to INIT", to, fields)
    }

    fn ready_to_receive(&mut self, peer: QpAddress, way: &Way) -> Result<(), VerbsError> {
        let mut to = to(ibv_qp_state::IBV_QPS_RTR);
        to.path_mtu = way.mtu;
        to.dest_qp_num = peer.number.0;
        to.rq_psn = peer.first_packet;
        to.max_dest_rd_atomic = self.reads();
        to.min_rnr_timer = RECEIVER_TIMER;
        to.ah_attr.port_num = PORT;
        to.ah_attr.dlid = way.lid;
        to.ah_attr.is_global = 1;
        to.ah_attr.grh.dgid.raw = way.peer.0;
        to.ah_attr.grh.sgid_index = way.gid_index;
        to.ah_attr.grh.hop_limit = way.hops;
        let fields = mask::IBV_QP_STATE
            | mask::IBV_QP_AV
            | mask::IBV_QP_PATH_MTU
            | mask::IBV_QP_DEST_QPN
            | mask::IBV_QP_RQ_PSN
            | mask::IBV_QP_MAX_DEST_RD_ATOMIC
            | mask::IBV_QP_MIN_RNR_TIMER;
        self.modify("a queue pair to RTR", to, fields)
    }

    fn ready_to_send(&mut self) -> Result<(), VerbsError> {
        let mut to = to(ibv_qp_state::IBV_QPS_RTS);
        to.timeout = TIMEOUT;
        to.retry_cnt = RETRIES;
        to.rnr_retry = RECEIVER_RETRIES;
        to.sq_psn = self.first_packet;
        to.max_rd_atomic = self.reads();
        let fields = mask::IBV_QP_STATE
            | mask::IBV_QP_TIMEOUT
            | mask::IBV_QP_RETRY_CNT
            | mask::IBV_QP_RNR_RETRY
            | mask::IBV_QP_SQ_PSN
            | mask::IBV_QP_MAX_QP_RD_ATOMIC;
        self.modify("a queue pair to RTS", to, fields)
    }

    /// READs under way, either way.
    fn reads(&self) -> u8 {
        self.domain.device.limits().reads.min(READS_MAX)
    }

    /// To error: what is posted completes as flushed.
    pub(super) fn set_error(&mut self) -> Result<(), VerbsError> {
        self.modify("a queue pair to ERR", to(ibv_qp_state::IBV_QPS_ERR), mask::IBV_QP_STATE)
    }

    fn modify(
        &mut self,
        what: &'static str,
        mut to: ibv_qp_attr,
        fields: mask,
    ) -> Result<(), VerbsError> {
        let modify = self.domain.device.library.ibv_modify_qp;
        // SAFETY: the queue pair lives; the named fields are filled in.
        let code = unsafe { modify(self.qp.as_ptr(), &mut to, fields.0 as i32) };
        VerbsError::check(what, code)
    }

    /// Where it is in its life, as the device says.
    pub(super) fn state(&self) -> Option<QpState> {
        // SAFETY: plain numbers, for all of which zero is a value.
        let (mut now, mut init): (ibv_qp_attr, ibv_qp_init_attr) = unsafe { std::mem::zeroed() };
        let (query, field) = (self.domain.device.library.ibv_query_qp, mask::IBV_QP_STATE.0 as i32);
        // SAFETY: the queue pair lives; both structures are the function's to fill in.
        if unsafe { query(self.qp.as_ptr(), &mut now, field, &mut init) } != 0 {
            return None;
        }
        match now.qp_state {
            ibv_qp_state::IBV_QPS_RESET => Some(QpState::Reset),
            ibv_qp_state::IBV_QPS_INIT => Some(QpState::Init),
            ibv_qp_state::IBV_QPS_RTR => Some(QpState::ReadyToReceive),
            ibv_qp_state::IBV_QPS_RTS => Some(QpState::ReadyToSend),
            _ => Some(QpState::Error),
        }
    }

    /// Posts a list with one doorbell. Whoever posts holds the memory that it names, as entries of
    /// [`Posted`]. Answers how many the device took, and how the others end.
    pub(super) fn post(&mut self, sends: &mut Sends) -> (usize, Status) {
        let mut bad = ptr::null_mut();
        // SAFETY: the queue pair lives. The chain lives until the call returns, which reads it.
        let code = unsafe { ibv_post_send(self.qp.as_ptr(), sends.link(), &mut bad) };
        match code.abs() {
            0 => (sends.len(), Status::Success),
            libc::EINVAL => (sends.before(bad), Status::LocalOperation),
            _ => (sends.before(bad), Status::General),
        }
    }

    /// Destroys it, and returns what had not completed: its memory is quiet. None where the device
    /// refuses: what it may still reach is nobody else's, ever.
    pub(super) fn end(mut self) -> Option<Posted> {
        self.destroy().then(|| mem::take(&mut self.posted))
    }

    /// Answers whether the device touches no memory for it any more. What it may touch is kept.
    fn destroy(&mut self) -> bool {
        if mem::replace(&mut self.is_destroyed, true) {
            return true;
        }
        // SAFETY: it was made once, and is destroyed once. When the call returns 0, the device
        // touches no memory for it any more; what it holds is dropped after that.
        let code = unsafe { (self.domain.device.library.ibv_destroy_qp)(self.qp.as_ptr()) };
        if code != 0 {
            mem::forget(mem::take(&mut self.posted));
        }
        code == 0
    }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        self.destroy();
    }
}

/// The way to a state.
fn to(state: ibv_qp_state::Type) -> ibv_qp_attr {
    // SAFETY: plain numbers, for all of which zero is a value.
    let mut to: ibv_qp_attr = unsafe { std::mem::zeroed() };
    to.qp_state = state;
    to
}
