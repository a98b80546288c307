//! Work requests as the device reads them: two flat lists, of requests and of the pieces of memory
//! that they name, linked when both are filled. They are filled again for every post, so posting
//! allocates nothing once they are as long as the longest list.

use std::ptr::{self, NonNull};

use rdma_sys::{
    ibv_access_flags, ibv_mr, ibv_mw, ibv_send_flags, ibv_send_wr, ibv_sge, ibv_wr_opcode,
};

use super::memory::Local;
use super::{Operation, RemoteAccess, WorkRequest};
use crate::region::Slice;

/// Writes of no more bytes travel with their request, and spare the device a fetch.
pub(super) const INLINE_MAX_BYTES: usize = 64;

/// A list of work requests that is about to be posted.
#[derive(Default)]
pub(super) struct Sends {
    requests: Vec<ibv_send_wr>,
    /// Of all requests, in their order.
    pieces: Vec<ibv_sge>,
}

/// What opening a window needs.
pub(super) struct Opening {
    pub(super) mw: NonNull<ibv_mw>,
    pub(super) mr: NonNull<ibv_mr>,
}

// SAFETY: what its pointers lead to is read by nobody between two posts.
unsafe impl Send for Sends {}

impl Sends {
    pub(super) fn clear(&mut self) {
        self.requests.clear();
        self.pieces.clear();
    }

    pub(super) fn len(&self) -> usize {
        self.requests.len()
    }

    /// How many of the first `count` complete even if all goes well.
    pub(super) fn signalled(&self, count: usize) -> usize {
        let is_signalled =
            |wr: &&ibv_send_wr| wr.send_flags & ibv_send_flags::IBV_SEND_SIGNALED.0 != 0;
        self.requests.iter().take(count).filter(is_signalled).count()
    }

    /// Adds one, whose bytes are these `pieces`.
    pub(super) fn push(
        &mut self,
        request: &WorkRequest,
        pieces: impl Iterator<Item = Local>,
        opening: Option<Opening>,
    ) {
        let first = self.pieces.len();
        if !matches!(request.operation, Operation::Bind { .. } | Operation::Invalidate(_)) {
            let piece = |Local { addr, len, key }| ibv_sge { addr, length: len, lkey: key };
            self.pieces.extend(pieces.map(piece));
        }
        let mut wr = filled(request, opening);
        wr.num_sge = (self.pieces.len() - first) as i32;
        self.requests.push(wr);
    }

    /// The list as one chain. Its pointers hold until the next change.
    pub(super) fn link(&mut self) -> *mut ibv_send_wr {
        let (first, mut pieces) = (self.requests.as_mut_ptr(), self.pieces.as_mut_ptr());
        let last = self.requests.len().saturating_sub(1);
        for (index, request) in self.requests.iter_mut().enumerate() {
            request.sg_list = if request.num_sge > 0 { pieces } else { ptr::null_mut() };
            // SAFETY: all requests together have as many pieces as the list.
            pieces = unsafe { pieces.add(request.num_sge as usize) };
            // SAFETY: behind one that isn't the last there is another.
            let next = || unsafe { first.add(index + 1) };
            request.next = if index < last { next() } else { ptr::null_mut() };
        }
        first
    }

    /// How many of them are before this one.
    pub(super) fn before(&self, request: *const ibv_send_wr) -> usize {
        self.requests.iter().position(|found| ptr::eq(found, request)).unwrap_or(0)
    }
}

impl std::fmt::Debug for Sends {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sends({})", self.requests.len())
    }
}

/// A work request without its pieces.
fn filled(request: &WorkRequest, opening: Option<Opening>) -> ibv_send_wr {
    // SAFETY: pointers, numbers and unions of them, for all of which zero is a value.
    let mut wr: ibv_send_wr = unsafe { std::mem::zeroed() };
    let WorkRequest { id, operation, local, remote_addr, key, is_signalled } = request;
    let len = local.as_ref().map_or(0, Slice::len);
    wr.wr_id = *id;
    wr.wr.rdma.remote_addr = *remote_addr;
    wr.wr.rdma.rkey = key.0;
    if *is_signalled {
        wr.send_flags |= ibv_send_flags::IBV_SEND_SIGNALED.0;
    }
    let has_bytes = matches!(operation, Operation::Write | Operation::WriteWithImmediate(_));
    // What is inline is read by this process, which can't read a GPU's.
    let is_here = local.as_ref().is_none_or(|local| local.region().device().is_none());
    if has_bytes && is_here && len <= INLINE_MAX_BYTES {
        wr.send_flags |= ibv_send_flags::IBV_SEND_INLINE.0;
    }
    wr.opcode = match *operation {
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
            let opening = opening.expect("whoever binds knows the window");
            bind(&mut wr, opening, window.0, (*remote_addr, len as u64), access);
            ibv_wr_opcode::IBV_WR_BIND_MW
        }
    };
    wr
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

#[cfg(test)]
mod tests {
    #[cfg(feature = "sim")]
    use std::sync::Arc;

    use super::*;
    #[cfg(feature = "sim")]
    use crate::region::Region;
    use crate::verbs::RemoteKey;

    fn request(id: u64, operation: Operation) -> WorkRequest {
        let (remote_addr, key) = (0x1000 * id, RemoteKey(7));
        WorkRequest { id, operation, local: None, remote_addr, key, is_signalled: id % 2 == 1 }
    }

    fn pieces(count: u32) -> impl Iterator<Item = Local> {
        (0..count).map(|k| Local { addr: 0x10_0000 + u64::from(k), len: k + 1, key: 3 })
    }

    /// What a device would read, from the first request on: ids, and the lengths of their pieces.
    fn walked(mut at: *mut ibv_send_wr) -> Vec<(u64, Vec<u32>)> {
        let mut found = Vec::new();
        while !at.is_null() {
            // SAFETY: a chain of live requests, each with so many live pieces.
            let (request, pieces) = unsafe {
                let request = &*at;
                let len = request.num_sge as usize;
                let none = len == 0;
                (request, if none { &[] } else { std::slice::from_raw_parts(request.sg_list, len) })
            };
            found.push((request.wr_id, pieces.iter().map(|piece| piece.length).collect()));
            at = request.next;
        }
        found
    }

    #[test]
    fn a_chain_names_every_request_and_its_own_pieces() {
        let mut sends = Sends::default();
        for _ in 0..2 {
            sends.clear();
            for (id, count) in [(1, 2), (2, 0), (3, 1), (4, 2)] {
                sends.push(&request(id, Operation::Write), pieces(count), None);
            }
            let invalidate = request(5, Operation::Invalidate(RemoteKey(9)));
            sends.push(&invalidate, pieces(2), None);
            let expected: Vec<(u64, Vec<u32>)> =
                vec![(1, vec![1, 2]), (2, vec![]), (3, vec![1]), (4, vec![1, 2]), (5, vec![])];
            assert_eq!(walked(sends.link()), expected);
            assert_eq!((sends.len(), sends.signalled(5), sends.signalled(2)), (5, 3, 1));
            let third = &raw const sends.requests[2];
            assert_eq!(sends.before(third), 2);
        }
    }

    #[test]
    #[cfg(feature = "sim")]
    fn only_what_this_process_can_read_travels_inline() {
        use crate::cuda::DeviceMemory;
        use crate::cuda::fake::Fake;
        let vram = DeviceMemory::allocate(Arc::new(Fake::new(1, 1 << 20)), 0, 4096).unwrap();
        let vram = Region::on_device(vram, 4096).unwrap();
        let host = Region::allocate(4096, None).unwrap();
        let is_inline = |region: Region, len| {
            let local = Some(Slice::new(Arc::new(region), 0, len).unwrap());
            let wr = filled(&WorkRequest { local, ..request(1, Operation::Write) }, None);
            wr.send_flags & ibv_send_flags::IBV_SEND_INLINE.0 != 0
        };
        assert!(is_inline(host, INLINE_MAX_BYTES));
        assert!(!is_inline(vram, INLINE_MAX_BYTES));
    }

    #[test]
    fn no_request_is_no_chain() {
        let mut sends = Sends::default();
        assert_eq!((sends.len(), sends.signalled(1)), (0, 0));
        sends.push(&request(1, Operation::Read), pieces(1), None);
        sends.clear();
        assert_eq!(sends.len(), 0);
    }
}
