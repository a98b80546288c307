//! Memory that a device may reach, and the keys to it.
//!
//! Memory of a GPU would come as a dma-buf: [`Piece::new`] is where `ibv_reg_dmabuf_mr` takes the
//! place of `ibv_reg_mr_iova2`, and nothing else knows how a piece came to its keys.

use std::ffi::{c_uint, c_void};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rdma_sys::{ibv_access_flags, ibv_mr};

use super::domain::Domain;
use super::library::VerbsError;
use super::parallel;
use super::{RemoteAccess, RemoteKey};
use crate::region::{Region, Slice};

/// Most bytes of one registration: above, drivers are known to fail (Mooncake cuts here too).
pub const PIECE_MAX_BYTES: usize = 7 << 29;

/// Threads that register pieces of one region: what keeps the memory of a socket busy with faulting
/// pages in and pinning them; the other CPUs belong to the service that embeds us.
const THREADS_MAX: usize = 8;

/// Is told of bytes that are registered, and of how many there are in all.
pub type Progress<'a> = &'a (dyn Fn(usize, usize) + Sync);

/// A region that a device may reach, in one piece or several.
#[derive(Debug)]
pub struct Registration {
    region: Arc<Region>,
    pieces: Vec<Piece>,
}

/// Some of a region's bytes under keys of their own.
#[derive(Debug)]
struct Piece {
    mr: NonNull<ibv_mr>,
    offset: usize,
    len: usize,
    region: Arc<Region>,
    domain: Arc<Domain>,
}

/// Some bytes of this process, as a work request names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Local {
    pub(super) addr: u64,
    pub(super) len: u32,
    pub(super) key: u32,
}

// SAFETY: a registration is a handle that any thread may use.
unsafe impl Send for Piece {}
// SAFETY: as above.
unsafe impl Sync for Piece {}

impl Registration {
    /// Has the device pin a region, all of it or nothing, pieces of at most so many bytes side by
    /// side. Peers may do there what `access` says. The device may order its stores as it likes
    /// ([relaxed ordering]), except that a completion comes behind them. `progress` is told of
    /// every piece, by any thread, one at a time.
    ///
    /// [relaxed ordering]: https://docs.kernel.org/PCI/index.html
    ///
    /// # Errors
    /// What the kernel says: too little locked memory, or too many registrations.
    pub(super) fn new(
        domain: &Arc<Domain>,
        region: Arc<Region>,
        access: RemoteAccess,
        piece_bytes: usize,
        progress: Progress<'_>,
    ) -> Result<Self, VerbsError> {
        let limit = domain.device.limits().registration_bytes;
        let most = usize::try_from(limit).unwrap_or(usize::MAX).min(piece_bytes).max(1);
        let (all, count) = (region.len(), region.len().div_ceil(most));
        let done = Mutex::new(0);
        let piece = |index| {
            let offset = index * most;
            let len = most.min(all - offset);
            let piece = Piece::new(domain, &region, (offset, len), flags(access))?;
            let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
            *done += len;
            progress(*done, all);
            Ok(piece)
        };
        let threads = thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
        let pieces = parallel::all(count, threads, piece)?;
        Ok(Self { region, pieces })
    }

    /// The memory.
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// The peers' key to each piece, with its offset and its length in bytes.
    pub fn keys(&self) -> impl Iterator<Item = (usize, usize, RemoteKey)> {
        self.pieces.iter().map(|piece| {
            // SAFETY: the registration lives as long as the piece.
            (piece.offset, piece.len, RemoteKey(unsafe { piece.mr.as_ref().rkey }))
        })
    }

    /// The registration whose peers' key this is, for windows in it.
    pub(super) fn piece(&self, key: RemoteKey) -> Option<NonNull<ibv_mr>> {
        // SAFETY: as above.
        let found = self.pieces.iter().find(|piece| unsafe { piece.mr.as_ref().rkey } == key.0);
        found.map(|piece| piece.mr)
    }

    /// Some bytes of the region, cut where pieces are.
    pub(super) fn local(&self, bytes: &Slice) -> impl Iterator<Item = Local> {
        let offset = (bytes.addr() - self.region.addr()) as usize;
        let end = offset + bytes.len();
        let touched = move |piece: &&Piece| piece.offset < end && offset < piece.offset + piece.len;
        self.pieces.iter().filter(touched).map(move |piece| {
            let from = offset.max(piece.offset);
            let to = end.min(piece.offset + piece.len);
            // SAFETY: the registration lives as long as the piece.
            let key = unsafe { piece.mr.as_ref().lkey };
            Local { addr: self.region.addr() + from as u64, len: (to - from) as u32, key }
        })
    }
}

impl Piece {
    fn new(
        domain: &Arc<Domain>,
        region: &Arc<Region>,
        (offset, len): (usize, usize),
        access: c_uint,
    ) -> Result<Self, VerbsError> {
        let (domain, addr) = (domain.clone(), region.addr() + offset as u64);
        let register = domain.device.library.ibv_reg_mr_iova2;
        // SAFETY: the region keeps its pages mapped, and is held for longer than the registration.
        let mr = unsafe { register(domain.pd.as_ptr(), addr as *mut c_void, len, addr, access) };
        let mr = NonNull::new(mr).ok_or_else(|| VerbsError::last("ibv_reg_mr"))?;
        Ok(Self { mr, offset, len, region: region.clone(), domain })
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        // SAFETY: it was registered once; work that names it holds its region, and fails from here
        // on. The device reaches nothing by it when the call returns 0.
        let code = unsafe { (self.domain.device.library.ibv_dereg_mr)(self.mr.as_ptr()) };
        if code != 0 {
            // A window is open in it: what the device still reaches is nobody else's, ever.
            std::mem::forget(self.region.clone());
        }
    }
}

fn flags(access: RemoteAccess) -> c_uint {
    let RemoteAccess { read, write } = access;
    let always = ibv_access_flags::IBV_ACCESS_LOCAL_WRITE.0
        | ibv_access_flags::IBV_ACCESS_MW_BIND.0
        | ibv_access_flags::IBV_ACCESS_RELAXED_ORDERING.0;
    let read = if read { ibv_access_flags::IBV_ACCESS_REMOTE_READ.0 } else { 0 };
    let write = if write { ibv_access_flags::IBV_ACCESS_REMOTE_WRITE.0 } else { 0 };
    always | read | write
}
