//! Memory that a device may reach, and the keys to it.

use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rdma_sys::ibv_mr;

use super::domain::Domain;
use super::library::VerbsError;
use super::parallel;
use super::pinned::{Calls, Pinned, Source};
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

/// Some of a region's bytes under keys of their own, in a domain that goes behind them.
#[derive(Debug)]
struct Piece {
    pinned: Pinned,
    offset: usize,
    len: usize,
    #[expect(dead_code, reason = "held for its drop, behind the registration's own")]
    domain: Arc<Domain>,
}

/// Some bytes of this process, as a work request names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Local {
    pub(super) addr: u64,
    pub(super) len: u32,
    pub(super) key: u32,
}

impl Registration {
    /// Has the device pin a region, all of it or nothing, pieces of at most so many bytes side by
    /// side. Peers may do there what `access` says. The device may order its stores as it likes
    /// ([relaxed ordering]), except that a completion comes behind them. `progress` is told of
    /// every piece, by any thread, one at a time.
    ///
    /// [relaxed ordering]: https://docs.kernel.org/PCI/index.html
    ///
    /// # Errors
    /// What the kernel says: too little locked memory, or too many registrations. Of a GPU's
    /// memory: the library, the GPU's driver or the device doesn't do that.
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
        let source = Source::new(Calls::of(domain.device.library), region.clone())?;
        let done = Mutex::new(0);
        let piece = |index| {
            let offset = index * most;
            let len = most.min(all - offset);
            // SAFETY: the domain is alive, and the piece holds it; the range is the region's.
            let pinned = unsafe { source.pin(domain.pd.as_ptr(), (offset, len), access) }?;
            let piece = Piece { pinned, offset, len, domain: domain.clone() };
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
            let (_, remote) = piece.pinned.keys();
            (piece.offset, piece.len, RemoteKey(remote))
        })
    }

    /// The registration whose peers' key this is, for windows in it.
    pub(super) fn piece(&self, key: RemoteKey) -> Option<NonNull<ibv_mr>> {
        let found = self.pieces.iter().find(|piece| piece.pinned.keys().1 == key.0);
        found.map(|piece| piece.pinned.mr())
    }

    /// Some bytes of the region, cut where pieces are.
    pub(super) fn local(&self, bytes: &Slice) -> impl Iterator<Item = Local> {
        let offset = (bytes.addr() - self.region.addr()) as usize;
        let end = offset + bytes.len();
        let touched = move |piece: &&Piece| piece.offset < end && offset < piece.offset + piece.len;
        self.pieces.iter().filter(touched).map(move |piece| {
            let from = offset.max(piece.offset);
            let to = end.min(piece.offset + piece.len);
            let (key, _) = piece.pinned.keys();
            Local { addr: self.region.addr() + from as u64, len: (to - from) as u32, key }
        })
    }
}
