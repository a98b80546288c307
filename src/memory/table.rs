//! Which registered region an address is in: a sorted list, published whole, so that every shard
//! looks up its own copy and takes a lock only after a change.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use kvrail_reactors::region::Slice;

use super::Region;
use crate::auth::Visitor;
use crate::limits::REGIONS_MAX;
use crate::{Error, Result};

/// What a request does, seen from the memory it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Operation {
    Read,
    Write,
}

impl Operation {
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// The registered regions by address, at one moment.
#[derive(Debug, Default, Clone)]
pub(crate) struct RegionMap {
    regions: Vec<Region>,
}

impl RegionMap {
    /// The memory that a peer may touch by this request.
    ///
    /// # Errors
    /// Refused, with the numbers: empty, wrapping, not inside one region, not permitted.
    #[cfg(any(fuzzing, test))]
    pub(crate) fn find(&self, addr: u64, len: u64, operation: Operation) -> Result<Slice> {
        self.find_permitted(addr, len, operation).map(|(_, slice)| slice)
    }

    /// The same for this peer, whom a policy may bind.
    pub(crate) fn find_for(
        &self,
        visitor: &Visitor,
        addr: u64,
        len: u64,
        operation: Operation,
    ) -> Result<Slice> {
        let (region, slice) = self.find_permitted(addr, len, operation)?;
        match visitor.may(region, operation) {
            true => Ok(slice),
            false => Err(Error::refused(format!(
                "the policy lets {visitor} do no {}s at {addr:#x}",
                operation.label()
            ))),
        }
    }

    fn find_permitted(
        &self,
        addr: u64,
        len: u64,
        operation: Operation,
    ) -> Result<(&Region, Slice)> {
        let (region, slice) = self.find_own(addr, len)?;
        let permitted = match operation {
            Operation::Read => region.access().read,
            Operation::Write => region.access().write,
        };
        if !permitted {
            let verb = operation.label();
            return Err(Error::refused(format!("the region at {addr:#x} does not permit {verb}s")));
        }
        Ok((region, slice))
    }

    /// The memory at an address, for the owner itself, whom permissions don't bind.
    ///
    /// # Errors
    /// Refused, with the numbers: empty, wrapping, not inside one region.
    pub(crate) fn find_own(&self, addr: u64, len: u64) -> Result<(&Region, Slice)> {
        let refused = || {
            Error::refused(format!("{len} bytes at {addr:#x} are not inside a registered region"))
        };
        let after = self.regions.partition_point(|region| region.addr() <= addr);
        let region = after.checked_sub(1).map(|index| &self.regions[index]).ok_or_else(refused)?;
        let offset = addr - region.addr();
        if len == 0 || offset.checked_add(len).is_none_or(|end| end > region.len() as u64) {
            return Err(refused());
        }
        let slice = Slice::new(region.memory().clone(), offset as usize, len as usize)
            .map_err(|error| Error::refused(error.to_string()))?;
        Ok((region, slice))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Region> {
        self.regions.iter()
    }

    pub(crate) fn insert(&mut self, region: Region) -> Result<()> {
        if self.regions.len() >= REGIONS_MAX {
            return Err(Error::busy(format!("{REGIONS_MAX} regions are registered already")));
        }
        let (start, end) = (region.addr(), region.addr() + region.len() as u64);
        let at = self.regions.partition_point(|other| other.addr() < start);
        let neighbours = [at.checked_sub(1), Some(at)].into_iter().flatten();
        for other in neighbours.filter_map(|index| self.regions.get(index)) {
            let (other_start, other_end) = (other.addr(), other.addr() + other.len() as u64);
            if start < other_end && other_start < end {
                return Err(Error::refused(format!(
                    "{start:#x}..{end:#x} overlaps the region at {other_start:#x}..{other_end:#x}"
                )));
            }
        }
        self.regions.insert(at, region);
        Ok(())
    }

    fn remove(&mut self, region: &Region) -> bool {
        match self.regions.binary_search_by_key(&region.addr(), Region::addr) {
            // Memory of the caller's may have been registered anew at this address.
            Ok(index) if Arc::ptr_eq(self.regions[index].memory(), region.memory()) => {
                self.regions.remove(index);
                true
            }
            _ => false,
        }
    }
}

/// The registered regions: changed by the engine, looked up by every shard.
#[derive(Debug, Default)]
pub(crate) struct Regions {
    version: AtomicU64,
    current: RwLock<Arc<RegionMap>>,
}

impl Regions {
    pub(crate) fn insert(&self, region: Region) -> Result<()> {
        self.change(|map| map.insert(region))
    }

    /// Takes the region out; `false` where it isn't registered.
    pub(crate) fn remove(&self, region: &Region) -> bool {
        self.change(|map| Ok(map.remove(region))).unwrap_or(false)
    }

    /// Whether it is registered now.
    pub(crate) fn holds(&self, region: &Region) -> bool {
        let found = self.current().find_own(region.addr(), 1).map(|(known, _)| known.clone());
        found.is_ok_and(|known| Arc::ptr_eq(known.memory(), region.memory()))
    }

    pub(crate) fn current(&self) -> Arc<RegionMap> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change<T>(&self, change: impl FnOnce(&mut RegionMap) -> Result<T>) -> Result<T> {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let mut map = RegionMap::clone(&current);
        let value = change(&mut map)?;
        *current = Arc::new(map);
        self.version.fetch_add(1, Ordering::Release);
        Ok(value)
    }
}

/// One shard's copy of [`Regions`].
#[derive(Debug)]
pub(crate) struct RegionsView {
    regions: Arc<Regions>,
    version: u64,
    map: Arc<RegionMap>,
}

impl RegionsView {
    pub(crate) fn new(regions: Arc<Regions>) -> Self {
        let version = regions.version.load(Ordering::Acquire);
        Self { map: regions.current(), version, regions }
    }

    /// The regions as they are now.
    pub(crate) fn current(&mut self) -> &RegionMap {
        let version = self.regions.version.load(Ordering::Acquire);
        if version != self.version {
            self.version = version;
            self.map = self.regions.current();
        }
        &self.map
    }
}

#[cfg(test)]
mod tests {
    use kvrail_reactors::region;

    use super::*;
    use crate::memory::{Access, Location};

    fn region(len: usize, access: Access) -> Region {
        Region::new(region::Region::allocate(len, None).unwrap(), access, Location::Cpu(None))
    }

    #[test]
    fn only_permitted_ranges_inside_one_region_are_found() {
        let (a, b) = (region(8192, Access::READ), region(4096, Access::WRITE));
        let regions = Arc::new(Regions::default());
        let mut view = RegionsView::new(regions.clone());
        regions.insert(a.clone()).unwrap();
        regions.insert(b.clone()).unwrap();
        let map = view.current();
        assert_eq!(map.find(a.addr() + 1, 8191, Operation::Read).unwrap().len(), 8191);
        assert!(map.find(b.addr(), 4096, Operation::Write).is_ok());
        let refused = [
            (a.addr() + 1, 8192, Operation::Read),
            (a.addr(), 1, Operation::Write),
            (b.addr(), 1, Operation::Read),
            (a.addr(), 0, Operation::Read),
            (a.addr() + 8, u64::MAX, Operation::Read),
            (u64::MAX, 2, Operation::Read),
            (0, 1, Operation::Read),
        ];
        for (addr, len, operation) in refused {
            assert!(map.find(addr, len, operation).is_err(), "{addr:#x} {len}");
        }
        assert!(regions.remove(&a));
        assert!(!regions.remove(&a));
        assert!(view.current().find(a.addr(), 1, Operation::Read).is_err());
    }

    #[test]
    fn an_old_handle_does_not_take_out_what_is_registered_there_now() {
        let parent = Arc::new(region::Region::allocate(4096, None).unwrap());
        let region = || {
            let memory = region::Region::within(&parent, 0, 4096).unwrap();
            Region::new(memory, Access::READ, Location::Cpu(None))
        };
        let (regions, old, new) = (Regions::default(), region(), region());
        regions.insert(old.clone()).unwrap();
        assert!(regions.remove(&old));
        regions.insert(new.clone()).unwrap();
        assert!(!regions.remove(&old));
        assert!(regions.current().find(new.addr(), 1, Operation::Read).is_ok());
    }

    #[test]
    fn overlap_is_refused_with_the_numbers() {
        let regions = Regions::default();
        let a = region(4096, Access::READ);
        regions.insert(a.clone()).unwrap();
        let error = regions.insert(a).unwrap_err().to_string();
        assert!(error.contains("overlaps the region at 0x"), "{error}");
    }
}
