//! Registered memory: regions, the leases that guard them, and the pools cut from them. Safe
//! code reaches bytes that peers may write only through a lease, by copy.

pub(crate) mod fit;
pub(crate) mod grant;
mod lease;
mod location;
mod pool;
mod room;
mod table;
mod vram;

use std::future::poll_fn;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Poll, Waker};

use kvrail_reactors::region::{self, Slice};

pub use self::fit::Misfit;
pub use self::grant::{Grant, GrantOptions, REFERENCE_BYTES, Reference};
pub use self::lease::{ExclusiveLease, Lease, SharedLease, UndefinedLease};
use self::lease::{Hold, LeaseTable, Mode};
pub use self::location::Location;
pub use self::pool::{Block, BlockPool};
pub(crate) use self::room::allocate;
pub(crate) use self::table::{Operation, RegionMap, Regions, RegionsView};
pub(crate) use self::vram::{allocate_on, foreign_on, gpu_error, reach_peers};
use crate::{Error, Result};

/// What peers may do with a region. The owner's own transfers are not limited by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    pub(crate) read: bool,
    pub(crate) write: bool,
}

impl Access {
    /// Peers may do nothing; the region isn't published.
    pub const LOCAL: Self = Self { read: false, write: false };
    /// Peers may read.
    pub const READ: Self = Self { read: true, write: false };
    /// Peers may write.
    pub const WRITE: Self = Self { read: false, write: true };
    /// Peers may read and write.
    pub const READ_WRITE: Self = Self { read: true, write: true };
}

/// A registered region. Clones name the same region; the memory goes when the last clone, lease
/// and flight have let go of it.
///
/// Its bytes are reached through leases, never as a slice: peers may change them at any time, which
/// no `&[u8]` allows.
/// ```compile_fail,E0308
/// # fn wrong(region: kvrail::Region) {
/// let bytes: &[u8] = &region;
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Region {
    state: Arc<Registered>,
}

/// What a region's handles and leases share.
#[derive(Debug)]
pub(crate) struct Registered {
    memory: Arc<region::Region>,
    access: Access,
    location: Location,
    label: OnceLock<Box<str>>,
    guarded: Mutex<Guarded>,
}

#[derive(Debug, Default)]
struct Guarded {
    leases: LeaseTable,
    /// Refuses new leases once set.
    closed: bool,
    /// Flights of this process that name the region by address, without a lease.
    visits: usize,
    waiters: Vec<Waker>,
}

impl Region {
    pub(crate) fn new(memory: region::Region, access: Access, location: Location) -> Self {
        // Asked here, transfers find the answer ready.
        memory.node();
        let (memory, guarded) = (Arc::new(memory), Mutex::default());
        let label = OnceLock::new();
        Self { state: Arc::new(Registered { memory, access, location, label, guarded }) }
    }

    /// The first byte's address: what peers name in their requests.
    pub fn addr(&self) -> u64 {
        self.state.memory.addr()
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.state.memory.len()
    }

    /// Never true: an empty region is refused.
    pub fn is_empty(&self) -> bool {
        self.state.memory.is_empty()
    }

    /// What peers may do with it.
    pub fn access(&self) -> Access {
        self.state.access
    }

    /// Says what it is for: by this label a [`crate::Policy`] speaks of it. Without one it is
    /// reached by those rules alone that are for all regions. Once said, it stays.
    ///
    /// # Errors
    /// Refused: it has another one.
    pub fn set_label(&self, label: &str) -> Result<()> {
        match &**self.state.label.get_or_init(|| label.into()) {
            known if known == label => Ok(()),
            known => Err(Error::refused(format!("the region has the label {known:?} already"))),
        }
    }

    /// What it is for, if that was said.
    pub fn label(&self) -> Option<&str> {
        self.state.label.get().map(|label| &**label)
    }

    /// Where it was asked to live.
    pub fn location(&self) -> Location {
        self.state.location
    }

    /// The NUMA node that held its pages when it was registered; `None` where they were on
    /// several, not there yet, or the kernel does not say.
    pub fn node(&self) -> Option<u32> {
        self.state.memory.node()
    }

    /// Takes a shared lease on a range of bytes, to read from. Any number may overlap.
    ///
    /// # Errors
    /// Refused: empty or out of range. Busy: part of it is leased exclusively. Closed: the
    /// region was unregistered.
    pub fn share(&self, range: Range<usize>) -> Result<SharedLease> {
        Ok(SharedLease::new(self.hold(range, Mode::Shared)?))
    }

    /// Takes an exclusive lease on a range of bytes, to write into.
    ///
    /// # Errors
    /// Refused: empty or out of range. Busy: part of it is leased. Closed: the region was
    /// unregistered.
    pub fn lease(&self, range: Range<usize>) -> Result<ExclusiveLease> {
        Ok(ExclusiveLease::new(self.hold(range, Mode::Exclusive)?))
    }

    /// Whether any lease touches the range.
    pub fn is_leased(&self, range: Range<usize>) -> bool {
        self.state.lock().leases.is_held(&range)
    }

    /// Whether its bytes are on a GPU.
    pub(crate) fn is_on_gpu(&self) -> bool {
        self.state.memory.device().is_some()
    }

    pub(crate) fn memory(&self) -> &Arc<region::Region> {
        &self.state.memory
    }

    /// No lease can be taken from here on.
    pub(crate) fn close(&self) {
        self.state.lock().closed = true;
    }

    /// Counts a flight in that names the region by address.
    pub(crate) fn visit(&self) -> Result<Visit> {
        let mut guarded = self.state.lock();
        if guarded.closed {
            return Err(Error::closed("the region was unregistered"));
        }
        guarded.visits += 1;
        Ok(Visit { state: self.state.clone() })
    }

    /// Waits until every lease and visit is over.
    pub(crate) async fn quiet(&self) {
        poll_fn(|context| {
            let mut guarded = self.state.lock();
            if guarded.is_quiet() {
                return Poll::Ready(());
            }
            guarded.waiters.push(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    fn hold(&self, range: Range<usize>, mode: Mode) -> Result<Hold> {
        if range.is_empty() || range.end > self.len() {
            return Err(Error::refused(format!(
                "a lease on bytes {}..{} of a region of {} bytes",
                range.start,
                range.end,
                self.len()
            )));
        }
        let mut guarded = self.state.lock();
        if guarded.closed {
            return Err(Error::closed("the region was unregistered"));
        }
        guarded.leases.take(range.clone(), mode).map_err(|held| {
            Error::busy(format!(
                "bytes {}..{} are leased ({}); wait for that lease to come back",
                held.range.start, held.range.end, held.mode
            ))
        })?;
        Ok(Hold::new(self.state.clone(), range, mode))
    }
}

impl Guarded {
    fn is_quiet(&self) -> bool {
        self.leases.is_empty() && self.visits == 0
    }

    fn wake_if_quiet(&mut self) {
        if self.is_quiet() {
            std::mem::take(&mut self.waiters).into_iter().for_each(Waker::wake);
        }
    }
}

/// A flight of this process that names a region by address; ends when dropped.
#[derive(Debug)]
pub(crate) struct Visit {
    state: Arc<Registered>,
}

impl Visit {
    pub(crate) fn region(&self) -> Region {
        Region { state: self.state.clone() }
    }

    pub(crate) fn is_of(&self, region: &Region) -> bool {
        Arc::ptr_eq(&self.state, &region.state)
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let mut guarded = self.state.lock();
        guarded.visits -= 1;
        guarded.wake_if_quiet();
    }
}

impl Registered {
    fn lock(&self) -> MutexGuard<'_, Guarded> {
        self.guarded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slice(self: &Arc<Self>, range: &Range<usize>) -> Slice {
        Slice::new(self.memory.clone(), range.start, range.len())
            .expect("a lease's range was checked against its region")
    }

    fn release(&self, range: Range<usize>, mode: Mode) {
        let mut guarded = self.lock();
        guarded.leases.release(range, mode);
        guarded.wake_if_quiet();
    }

    /// An exclusive hold becomes a shared one without a gap in between.
    fn downgrade(&self, range: Range<usize>) {
        let mut guarded = self.lock();
        guarded.leases.release(range.clone(), Mode::Exclusive);
        guarded.leases.take(range, Mode::Shared).expect("nobody else could hold it");
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn region(len: usize) -> Region {
        let memory = region::Region::allocate(len, None).unwrap();
        Region::new(memory, Access::READ_WRITE, Location::Cpu(None))
    }

    #[test]
    fn leases_conflict_as_locks_do() {
        let region = region(100);
        let shared = region.share(0..50).unwrap();
        let clone = shared.clone();
        drop(shared);
        assert_eq!(region.lease(49..60).unwrap_err().kind(), crate::ErrorKind::Busy);
        let other = region.share(20..80).unwrap();
        drop((clone, other));
        let exclusive = region.lease(0..100).unwrap();
        assert_eq!(region.share(0..1).unwrap_err().kind(), crate::ErrorKind::Busy);
        let (left, right) = exclusive.split_at(30).unwrap();
        drop(left);
        region.lease(0..30).unwrap();
        assert!(region.lease(29..31).is_err());
        let shared = right.downgrade();
        region.share(30..100).unwrap();
        drop(shared);
        assert!(!region.is_leased(0..100));
        assert_eq!(region.share(5..5).unwrap_err().kind(), crate::ErrorKind::Refused);
        assert_eq!(region.share(99..101).unwrap_err().kind(), crate::ErrorKind::Refused);
    }

    #[test]
    fn a_closed_region_becomes_quiet_when_its_leases_are_back() {
        let region = region(100);
        let lease = region.lease(0..10).unwrap();
        region.close();
        assert_eq!(region.share(50..60).unwrap_err().kind(), crate::ErrorKind::Closed);
        let waiting = std::thread::spawn({
            let region = region.clone();
            move || futures_lite::future::block_on(region.quiet())
        });
        assert!(!waiting.is_finished());
        drop(lease);
        waiting.join().unwrap();
    }
}
