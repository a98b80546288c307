//! A queue pair, and the memory that its work requests hold: each until it has completed, or one
//! behind it has.

use std::collections::VecDeque;
use std::ptr;
use std::ptr::NonNull;
use std::sync::Arc;

use rdma_sys::{
    ibv_access_flags, ibv_post_send, ibv_qp, ibv_qp_attr, ibv_qp_attr_mask as mask,
    ibv_qp_init_attr, ibv_qp_state, ibv_qp_type,
};

use super::completion::CompletionQueue;
use super::device::{Gid, PORT, PortState};
use super::domain::Domain;
use super::library::VerbsError;
use super::receives::Receives;
use super::send::{INLINE_MAX_BYTES, Link, Sends};
use super::{QpAddress, QpNumber, QpState};
use crate::region::Slice;

/// 4.096 us * 2^14 = 67 ms until a packet is sent again (IBTA 9.7.6.1.3): UCX's and NCCL's order.
const TIMEOUT: u8 = 14;

/// Seven times, all that the field holds: half a second until a peer is given up.
const RETRIES: u8 = 7;

/// 0.64 ms until a peer without a receive is asked again (IBTA table 45), without end.
const RECEIVER_TIMER: u8 = 12;

/// Hops that a packet of RoCEv2 may take.
const HOPS: u8 = 64;

/// Pieces of memory of one work request: a slice that lies across a cut has two.
const PIECES: u32 = 2;

/// What a connection is made of beside the two addresses.
#[derive(Debug, Clone, Copy)]
pub struct Way {
    /// Which of our port's addresses is used.
    pub gid_index: u8,
    /// The peer's.
    pub peer: Gid,
    /// The peer's address in an InfiniBand subnet; 0 on Ethernet.
    pub lid: u16,
    /// The smaller MTU of both ports, as the enumeration of [`PortState::mtu`].
    pub mtu: u32,
}

impl Way {
    /// Over RoCE, between a port in this state and a peer whose MTU is no smaller.
    pub fn roce(port: &PortState, gid_index: u8, peer: Gid) -> Self {
        Self { gid_index, peer, lid: 0, mtu: port.mtu }
    }
}

/// A queue pair.
#[derive(Debug)]
pub(super) struct QueuePair {
    qp: NonNull<ibv_qp>,
    domain: Arc<Domain>,
    first_packet: u32,
    depth: usize,
    /// What is posted and has not completed, in order.
    posted: VecDeque<(u64, Option<Slice>)>,
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
        let (domain, depth, posted) = (domain.clone(), depth as usize, VecDeque::new());
        Ok(Self { qp, domain, first_packet, depth, posted })
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
        self.init()?;
        self.ready_to_receive(peer, way)?;
        self.ready_to_send()
    }

    fn init(&mut self) -> Result<(), VerbsError> {
        let mut to = to(ibv_qp_state::IBV_QPS_INIT);
        to.port_num = PORT;
        // The keys say more closely what peers may do.
        to.qp_access_flags = (ibv_access_flags::IBV_ACCESS_REMOTE_WRITE
            | ibv_access_flags::IBV_ACCESS_REMOTE_READ)
            .0;
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
        to.max_dest_rd_atomic = self.domain.device.limits().reads;
        to.min_rnr_timer = RECEIVER_TIMER;
        to.ah_attr.port_num = PORT;
        to.ah_attr.dlid = way.lid;
        to.ah_attr.is_global = 1;
        to.ah_attr.grh.dgid.raw = way.peer.0;
        to.ah_attr.grh.sgid_index = way.gid_index;
        to.ah_attr.grh.hop_limit = HOPS;
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
        to.rnr_retry = RETRIES;
        to.sq_psn = self.first_packet;
        to.max_rd_atomic = self.domain.device.limits().reads;
        let fields = mask::IBV_QP_STATE
            | mask::IBV_QP_TIMEOUT
            | mask::IBV_QP_RETRY_CNT
            | mask::IBV_QP_RNR_RETRY
            | mask::IBV_QP_SQ_PSN
            | mask::IBV_QP_MAX_QP_RD_ATOMIC;
        self.modify("a queue pair to RTS", to, fields)
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

    /// Whether there is room for so many more work requests.
    pub(super) fn has_room(&self, requests: usize) -> bool {
        self.posted.len() + requests <= self.depth
    }

    /// Posts a list with one doorbell. From here on their memory is held. Returns those that the
    /// device did not take, by their ids: they never complete.
    pub(super) fn post(&mut self, sends: Sends) -> Vec<u64> {
        let Sends { mut list, held } = sends;
        let ids: Vec<u64> = held.iter().map(|(id, _)| *id).collect();
        self.posted.extend(held);
        let Some(first) = list.first_mut() else { return Vec::new() };
        let mut bad = ptr::null_mut();
        // SAFETY: the queue pair lives. The list and its pieces, which point at each other, live
        // until the call returns, which reads them; the memory that they name is held above.
        let code = unsafe { ibv_post_send(self.qp.as_ptr(), first.request(), &mut bad) };
        if code == 0 {
            return Vec::new();
        }
        let is_bad = |link: &mut Link| ptr::eq(link.request(), bad);
        let taken = list.iter_mut().position(is_bad).unwrap_or(0);
        self.posted.truncate(self.posted.len() - (ids.len() - taken));
        ids[taken..].to_vec()
    }

    /// A work request has completed, and with it those before it: their memory is quiet.
    pub(super) fn retire(&mut self, id: u64) {
        if let Some(at) = self.posted.iter().position(|(posted, _)| *posted == id) {
            self.posted.drain(..=at);
        }
    }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        // SAFETY: it was made once. When the call returns, the device touches no memory for it any
        // more; what it holds is dropped after that.
        unsafe { (self.domain.device.library.ibv_destroy_qp)(self.qp.as_ptr()) };
    }
}

/// The way to a state.
fn to(state: ibv_qp_state::Type) -> ibv_qp_attr {
    // SAFETY: plain numbers, for all of which zero is a value.
    let mut to: ibv_qp_attr = unsafe { std::mem::zeroed() };
    to.qp_state = state;
    to
}
