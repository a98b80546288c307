//! Memory of a peer that this process may copy from: its regions by number or by address, mapped
//! or to be read from its process, and whether what was read is still the peer's word.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use kvrail_reactors::copy::Source;
use kvrail_reactors::host::ledger::LedgerView;
use kvrail_reactors::host::process::{Process, ProcessSlice};
use kvrail_reactors::host::view::{View, ViewSlice};
use kvrail_reactors::region::{self, Slice};

use crate::limits::REGIONS_MAX;
use crate::memory::Operation;
use crate::memory::grant::{Denied, Key, ROW, Use, check};
use crate::{Error, Result};

/// How a peer's region is read.
#[derive(Debug, Clone)]
pub(crate) enum Means {
    /// It is mapped here, read-only.
    Mapped(Arc<View>),
    /// It is on a GPU, and mapped here.
    Gpu(Arc<region::Region>),
    /// It is foreign memory, read by `process_vm_readv`.
    Process(Arc<Process>),
}

/// A region of a peer's.
#[derive(Debug, Clone)]
pub(crate) struct PeerRegion {
    /// The peer's number for it; never used twice by one process.
    pub(crate) id: u64,
    /// Its first byte's address, at the peer.
    pub(crate) addr: u64,
    pub(crate) len: u64,
    pub(crate) means: Means,
}

impl PeerRegion {
    pub(crate) fn is_mapped(&self) -> bool {
        matches!(self.means, Means::Mapped(_) | Means::Gpu(_))
    }

    /// `len` bytes from `offset` on, where it has them.
    pub(crate) fn slice(&self, offset: u64, len: u64) -> Option<Source> {
        let end = offset.checked_add(len)?;
        if len == 0 || end > self.len {
            return None;
        }
        match &self.means {
            Means::Mapped(view) => {
                ViewSlice::new(view.clone(), offset as usize, len as usize).map(Source::View)
            }
            Means::Gpu(region) => {
                let slice = Slice::new(region.clone(), offset as usize, len as usize);
                slice.ok().map(Source::Region)
            }
            Means::Process(process) => {
                let addr = self.addr.checked_add(offset)?;
                Some(Source::Process(ProcessSlice::new(process.clone(), addr, len as usize)))
            }
        }
    }
}

/// The regions that a peer has offered as sources of its writes, by their numbers.
#[derive(Debug, Default)]
pub(crate) struct Offered {
    regions: RwLock<HashMap<u64, PeerRegion>>,
}

impl Offered {
    /// # Errors
    /// Refused: it is offered already. Busy: there are too many.
    pub(crate) fn insert(&self, region: PeerRegion) -> Result<()> {
        let mut regions = write(&self.regions);
        if regions.len() >= REGIONS_MAX {
            return Err(Error::busy(format!("{REGIONS_MAX} regions are offered already")));
        }
        if regions.contains_key(&region.id) {
            return Err(Error::refused("the region is offered already"));
        }
        regions.insert(region.id, region);
        Ok(())
    }

    pub(crate) fn remove(&self, id: u64) {
        write(&self.regions).remove(&id);
    }

    pub(crate) fn slice(&self, id: u64, offset: u64, len: u64) -> Option<Source> {
        read(&self.regions).get(&id)?.slice(offset, len)
    }
}

/// Says behind a copy whether what was read is still the owner's word: it has not taken the memory
/// back meanwhile.
#[derive(Debug, Clone)]
pub(crate) enum Proof {
    /// A region of a peer's, by its slot and number.
    Region(Arc<LedgerView>, usize, u64),
    /// A grant of a peer's.
    Grant(Arc<LedgerView<ROW>>, Key),
    /// A grant of this engine's own.
    Use(Use),
}

impl Proof {
    pub(crate) fn holds(&self) -> bool {
        match self {
            Self::Region(ledger, slot, id) => ledger.holds(*slot, *id),
            Self::Grant(ledger, key) => ledger.holds(key.slot as usize, key.word),
            Self::Use(used) => !used.is_struck(),
        }
    }

    /// Whether it speaks of the same region or grant.
    pub(crate) fn is_of(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Region(ledger, slot, id), Self::Region(other, other_slot, other_id)) => {
                Arc::ptr_eq(ledger, other) && (slot, id) == (other_slot, other_id)
            }
            (Self::Grant(ledger, key), Self::Grant(other, other_key)) => {
                Arc::ptr_eq(ledger, other) && key == other_key
            }
            (Self::Use(used), Self::Use(other)) => used.is_of(other),
            _ => false,
        }
    }
}

/// The regions that a peer lets us read, by address.
#[derive(Debug)]
pub(crate) struct Readable {
    ledger: Arc<LedgerView>,
    grants: Arc<LedgerView<ROW>>,
    /// Those that anybody may read.
    open: Shelf,
    /// Those of which we may read what is granted.
    granted: Shelf,
}

/// What the peer said of its addresses.
#[derive(Debug, Default)]
struct Shelf {
    regions: RwLock<BTreeMap<u64, Entry>>,
}

#[derive(Debug)]
struct Entry {
    len: u64,
    known: Known,
}

/// What the peer said of an address when it was asked.
#[derive(Debug, Clone)]
pub(crate) enum Known {
    Readable {
        region: PeerRegion,
        slot: usize,
    },
    /// It is to be read by another path, for a reason.
    Refused(Arc<str>),
}

impl Readable {
    pub(crate) fn new(ledger: Arc<LedgerView>, grants: Arc<LedgerView<ROW>>) -> Self {
        Self { ledger, grants, open: Shelf::default(), granted: Shelf::default() }
    }

    /// What is known of the region that holds these bytes; none where the peer must be asked. One
    /// that is gone says nothing of the next one at its address, though news of it may be late.
    pub(crate) fn known(&self, addr: u64, len: u64) -> Option<Known> {
        self.open.known(addr, len).filter(|known| self.is_up_to_date(known))
    }

    fn is_up_to_date(&self, known: &Known) -> bool {
        match known {
            Known::Readable { region, slot } => self.ledger.holds(*slot, region.id),
            Known::Refused(_) => true,
        }
    }

    /// Whether the peer needn't be asked, under a grant of it or without.
    pub(crate) fn is_known(&self, addr: u64, len: u64, key: Option<Key>) -> bool {
        // Of a grant that does not hold, the peer has nothing to say.
        let is_over = |key: Key| self.grants.row(key.slot as usize, key.word).is_none();
        match key {
            None => self.known(addr, len).is_some(),
            Some(key) => is_over(key) || self.region(addr, len).is_some(),
        }
    }

    /// The bytes as a source, with what proves them.
    pub(crate) fn source(&self, addr: u64, len: u64) -> Option<(Source, Proof)> {
        let Some(Known::Readable { region, slot }) = self.known(addr, len) else { return None };
        let source = region.slice(addr - region.addr, len)?;
        Some((source, Proof::Region(self.ledger.clone(), slot, region.id)))
    }

    /// The same under a grant to an engine of this name; none where another path must do.
    ///
    /// # Errors
    /// By the peer's own ledger it does not hold, or does not permit this.
    pub(crate) fn granted(
        &self,
        key: Key,
        name: &str,
        addr: u64,
        len: u64,
    ) -> Result<Option<(Source, Proof)>, Denied> {
        let row = self.grants.row(key.slot as usize, key.word).ok_or(Denied::Stale)?;
        check(row, name, addr, len, Operation::Read)?;
        let Some(Known::Readable { region, .. }) = self.region(addr, len) else { return Ok(None) };
        let source = region.slice(addr - region.addr, len);
        Ok(source.map(|source| (source, Proof::Grant(self.grants.clone(), key))))
    }

    /// The region of bytes that are granted: one that all may read, else one we were shown.
    fn region(&self, addr: u64, len: u64) -> Option<Known> {
        let open = self.known(addr, len).filter(|known| matches!(known, Known::Readable { .. }));
        let granted = || self.granted.known(addr, len).filter(|known| self.is_up_to_date(known));
        open.or_else(granted)
    }

    /// What the peer says now, of all or of what is granted to us.
    pub(crate) fn insert(&self, addr: u64, len: u64, is_granted: bool, known: Known) {
        let shelf = if is_granted { &self.granted } else { &self.open };
        shelf.insert(addr, len, known);
    }

    /// The peer has taken the region back.
    pub(crate) fn remove(&self, id: u64) {
        self.retain(|known| match known {
            Known::Readable { region, .. } => region.id != id,
            Known::Refused(_) => true,
        });
    }

    /// The peer has more regions than before.
    pub(crate) fn forget_refusals(&self) {
        self.retain(|known| matches!(known, Known::Readable { .. }));
    }

    pub(crate) fn clear(&self) {
        self.retain(|_| false);
    }

    fn retain(&self, keep: impl Fn(&Known) -> bool) {
        for shelf in [&self.open, &self.granted] {
            write(&shelf.regions).retain(|_, entry| keep(&entry.known));
        }
    }
}

impl Shelf {
    fn known(&self, addr: u64, len: u64) -> Option<Known> {
        let regions = read(&self.regions);
        let (start, entry) = regions.range(..=addr).next_back()?;
        let end = addr.checked_add(len)?;
        (end <= start.saturating_add(entry.len)).then(|| entry.known.clone())
    }

    fn insert(&self, addr: u64, len: u64, known: Known) {
        let mut regions = write(&self.regions);
        // What the peer says now replaces what it said of these addresses before.
        let end = addr.saturating_add(len);
        let stale: Vec<u64> = regions
            .range(..end)
            .rev()
            .take_while(|(start, entry)| start.saturating_add(entry.len) > addr)
            .map(|(start, _)| *start)
            .collect();
        stale.iter().for_each(|start| drop(regions.remove(start)));
        if regions.len() < REGIONS_MAX {
            regions.insert(addr, Entry { len, known });
        }
    }
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use kvrail_reactors::host::ledger::Ledger;
    use kvrail_reactors::region;

    use super::*;

    fn mapped(id: u64, addr: u64, len: u64) -> PeerRegion {
        let memory = region::Region::allocate(len as usize, None).unwrap();
        let view = View::map(memory.memfd().unwrap(), len as usize).unwrap();
        PeerRegion { id, addr, len, means: Means::Mapped(Arc::new(view)) }
    }

    #[test]
    fn an_offered_region_is_found_by_number_and_bounds_hold() {
        let offered = Offered::default();
        offered.insert(mapped(7, 1 << 40, 100)).unwrap();
        assert_eq!(offered.insert(mapped(7, 0, 9)).unwrap_err().kind(), crate::ErrorKind::Refused);
        assert_eq!(offered.slice(7, 90, 10).unwrap().len(), 10);
        for (offset, len) in [(90, 11), (0, 0), (u64::MAX, 2), (101, 1)] {
            assert!(offered.slice(7, offset, len).is_none(), "{offset} {len}");
        }
        assert!(offered.slice(8, 0, 1).is_none());
        offered.remove(7);
        assert!(offered.slice(7, 0, 1).is_none());
    }

    /// A peer of four slots, and what is known of it.
    struct Rig {
        ledger: Ledger,
        grants: Ledger<ROW>,
        readable: Readable,
    }

    fn rig() -> Rig {
        let (ledger, grants) = (Ledger::new(4).unwrap(), Ledger::new(4).unwrap());
        let view = Arc::new(LedgerView::map(ledger.fd(), 4).unwrap());
        let granted = Arc::new(LedgerView::map(grants.fd(), 4).unwrap());
        Rig { ledger, grants, readable: Readable::new(view, granted) }
    }

    #[test]
    fn a_readable_region_is_found_by_address_until_it_is_struck() {
        let Rig { ledger, readable, .. } = rig();
        assert!(readable.known(5000, 10).is_none());
        ledger.enter(2, [7]);
        let region = mapped(7, 5000, 100);
        readable.insert(5000, 100, false, Known::Readable { region, slot: 2 });
        let (source, proof) = readable.source(5090, 10).unwrap();
        assert!(source.len() == 10 && proof.holds());
        assert!(readable.source(5090, 11).is_none() && readable.known(4999, 1).is_none());
        ledger.strike(2);
        assert!(!proof.holds());
        assert!(readable.known(5000, 1).is_none(), "another may be there by now");
        ledger.enter(2, [8]);
        assert!(!readable.is_known(5000, 1, None) && readable.source(5000, 1).is_none());
        readable.remove(7);
        assert!(readable.known(5000, 1).is_none());
    }

    #[test]
    fn what_is_granted_is_readable_under_its_grant_only() {
        let Rig { ledger, grants, readable } = rig();
        ledger.enter(2, [7]);
        let key = Key { slot: 1, word: 77 };
        // Readable by anyone.
        grants.enter(1, [77, 5010, 20, 1]);
        assert!(!readable.is_known(5010, 20, Some(key)), "the region is to be asked for");
        assert!(readable.granted(key, "us", 5010, 20).unwrap().is_none());
        let region = mapped(7, 5000, 100);
        readable.insert(5000, 100, true, Known::Readable { region, slot: 2 });
        let (source, proof) = readable.granted(key, "us", 5010, 20).unwrap().unwrap();
        assert!(source.len() == 20 && proof.holds());
        assert!(readable.source(5010, 20).is_none() && readable.known(5010, 20).is_none());
        assert_eq!(readable.granted(key, "us", 5010, 21).unwrap_err(), Denied::Refused);
        let other = Key { word: 78, ..key };
        assert_eq!(readable.granted(other, "us", 5010, 20).unwrap_err(), Denied::Stale);
        ledger.strike(2);
        assert!(!readable.is_known(5010, 20, Some(key)), "another region may be there");
        assert!(readable.granted(key, "us", 5010, 20).unwrap().is_none());
        grants.strike(1);
        assert!(!proof.holds() && readable.is_known(5010, 20, Some(key)));
        assert_eq!(readable.granted(key, "us", 5010, 20).unwrap_err(), Denied::Stale);
    }

    #[test]
    fn news_replace_what_they_overlap() {
        let readable = rig().readable;
        readable.insert(100, 100, false, Known::Refused("a".into()));
        readable.insert(300, 100, false, Known::Refused("b".into()));
        readable.insert(150, 200, false, Known::Refused("c".into()));
        assert!(readable.known(100, 10).is_none() && readable.known(390, 10).is_none());
        assert!(matches!(readable.known(340, 10), Some(Known::Refused(why)) if &*why == "c"));
    }
}
