//! Work requests as the device reads them: a chain, whose links and pieces of memory stay where
//! they are until it is posted.

use std::ptr::{self, NonNull};

use rdma_sys::{
    ibv_access_flags, ibv_mr, ibv_mw, ibv_send_flags, ibv_send_wr, ibv_sge, ibv_wr_opcode,
};

use super::memory::Local;
use super::{Operation, RemoteAccess, WorkRequest};
use crate::region::Slice;

/// Writes of no more bytes travel with their request, and spare the device a fetch.
pub(super) const INLINE_MAX_BYTES: usize = 64;

/// A chain of work requests, and the memory that it is about.
#[derive(Default)]
pub(super) struct Sends {
    pub(super) list: Vec<Link>,
    pub(super) held: Vec<(u64, Option<Slice>)>,
}

/// One work request. Boxed, since its predecessor and itself point into it.
pub(super) struct Link(Box<Parts>);

struct Parts {
    request: ibv_send_wr,
    pieces: Vec<ibv_sge>,
}

/// What opening a window needs.
pub(super) struct Opening {
    pub(super) mw: NonNull<ibv_mw>,
    pub(super) mr: NonNull<ibv_mr>,
}

impl Sends {
    /// Adds one, whose bytes are these `pieces`.
    pub(super) fn push(
        &mut self,
        request: WorkRequest,
        pieces: Vec<Local>,
        opening: Option<Opening>,
    ) {
        let WorkRequest { id, operation, local, remote_addr, key, is_signalled } = request;
        let mut link = Link::new(id, pieces, is_signalled);
        let wr = &mut link.0.request;
        wr.wr.rdma.remote_addr = remote_addr;
        wr.wr.rdma.rkey = key.0;
        wr.opcode = match operation {
            Operation::Write | Operation::Nothing => ibv_wr_opcode::IBV_WR_RDMA_WRITE,
            Operation::WriteWithImmediate(word) => {
                wr.imm_data_invalidated_rkey_union.imm_data = word.to_be();
                ibv_wr_opcode::IBV_WR_RDMA_WRITE_WITH_IMM
            }
            Operation::Read => ibv_wr_opcode::IBV_WR_RDMA_READ,
            Operation::Invalidate(window) => {
                wr.imm_data_invalidated_rkey_union.invalidated_rkey = window.0;
                ibv_wr_opcode::IBV_WR_LOCAL_INV
            }
            Operation::Bind { window, access } => {
                let len = local.as_ref().map_or(0, Slice::len) as u64;
                let opening = opening.expect("whoever binds knows the window");
                bind(wr, opening, window.0, (remote_addr, len), access);
                ibv_wr_opcode::IBV_WR_BIND_MW
            }
        };
        let has_bytes = matches!(operation, Operation::Write | Operation::WriteWithImmediate(_));
        let is_small = local.as_ref().is_none_or(|local| local.len() <= INLINE_MAX_BYTES);
        if has_bytes && is_small {
            wr.send_flags |= ibv_send_flags::IBV_SEND_INLINE.0;
        }
        if matches!(operation, Operation::Bind { .. } | Operation::Invalidate(_)) {
            wr.sg_list = ptr::null_mut();
            wr.num_sge = 0;
        }
        if let Some(last) = self.list.last_mut() {
            last.0.request.next = &mut link.0.request;
        }
        self.list.push(link);
        self.held.push((id, local));
    }
}

impl Link {
    fn new(id: u64, pieces: Vec<Local>, is_signalled: bool) -> Self {
        let piece = |Local { addr, len, key }| ibv_sge { addr, length: len, lkey: key };
        // SAFETY: pointers, numbers and unions of them, for all of which zero is a value.
        let request: ibv_send_wr = unsafe { std::mem::zeroed() };
        let mut parts =
            Box::new(Parts { request, pieces: pieces.into_iter().map(piece).collect() });
        parts.request.wr_id = id;
        parts.request.sg_list = parts.pieces.as_mut_ptr();
        parts.request.num_sge = parts.pieces.len() as i32;
        if is_signalled {
            parts.request.send_flags = ibv_send_flags::IBV_SEND_SIGNALED.0;
        }
        Self(parts)
    }

    pub(super) fn request(&mut self) -> &mut ibv_send_wr {
        &mut self.0.request
    }
}

fn bind(
    wr: &mut ibv_send_wr,
    Opening { mw, mr }: Opening,
    key: u32,
    (addr, len): (u64, u64),
    RemoteAccess { read, write }: RemoteAccess,
) {
    let read = if read { ibv_access_flags::IBV_ACCESS_REMOTE_READ.0 } else { 0 };
    let write = if write { ibv_access_flags::IBV_ACCESS_REMOTE_WRITE.0 } else { 0 };
    let bind_info = rdma_sys::ibv_mw_bind_info {
        mr: mr.as_ptr(),
        addr,
        length: len,
        mw_access_flags: read | write,
    };
    wr.bind_mw_tso_union.bind_mw = rdma_sys::bind_mw_t { mw: mw.as_ptr(), rkey: key, bind_info };
}
