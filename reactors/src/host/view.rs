//! A peer's region, mapped read-only. It stays readable for as long as anybody holds it, whatever
//! becomes of the peer: its pages live until the last mapping goes.

use std::os::fd::AsFd;
use std::sync::{Arc, OnceLock};

use super::mapping::{Mapping, Mode, NotMappable, check_filled, sealed_bytes};
use crate::cuda::{Driver, Failure, Pin};
use crate::region::Slice;

/// Memory of another process that this one can read.
#[derive(Debug)]
pub struct View {
    /// What lets GPUs reach it, where they were asked to; goes before the mapping.
    pin: OnceLock<Result<Pin, Failure>>,
    mapping: Mapping,
    len: usize,
}

impl View {
    /// Maps the first `len` bytes of a peer's memfd and faults them in. Takes some milliseconds
    /// per GiB.
    ///
    /// # Errors
    /// [`NotMappable`] where the memfd could make us fault, is shorter, or the system refuses.
    pub fn map(fd: impl AsFd, len: usize) -> Result<Self, NotMappable> {
        let has_bytes = sealed_bytes(&fd, true)?;
        if len == 0 || has_bytes < len as u64 {
            return Err(NotMappable::TooShort { has_bytes, wanted_bytes: len as u64 });
        }
        check_filled(&fd)?;
        // The whole file: of huge pages only whole ones can be mapped.
        let bytes = usize::try_from(has_bytes).map_err(|_| NotMappable::NotSealed)?;
        let mapping = Mapping::new(fd, bytes, Mode::Read)?;
        mapping.populate()?;
        Ok(Self { pin: OnceLock::new(), mapping, len })
    }

    /// As [`crate::region::Region::reach`], to read from.
    ///
    /// # Errors
    /// The driver's own.
    pub fn reach(&self, driver: &Arc<dyn Driver>) -> Result<(), Failure> {
        let addr = self.mapping.base().as_ptr() as u64;
        // SAFETY: the mapping lives as long as the view, whose fields go in their order: the pin
        // first.
        let pin = || unsafe { Pin::new(driver, addr, self.len, true) };
        self.pin.get_or_init(pin).as_ref().map(|_| ()).map_err(Failure::clone)
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never true: an empty view is refused.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// A range of a view that somebody may be about to read: keeps it mapped.
#[derive(Debug, Clone)]
pub struct ViewSlice {
    view: Arc<View>,
    offset: usize,
    len: usize,
}

impl ViewSlice {
    /// `len` bytes of `view` from `offset` on; none where the view ends before.
    pub fn new(view: Arc<View>, offset: usize, len: usize) -> Option<Self> {
        offset.checked_add(len).filter(|&end| end <= view.len).map(|_| Self { view, offset, len })
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The view it is part of.
    pub fn view(&self) -> &Arc<View> {
        &self.view
    }

    pub(crate) fn addr(&self) -> u64 {
        self.view.mapping.base().as_ptr() as u64 + self.offset as u64
    }

    pub(crate) fn is_reachable(&self, driver: &Arc<dyn Driver>) -> bool {
        matches!(self.view.pin.get(), Some(Ok(pin)) if pin.is_of(driver))
    }

    /// Drops the first `count` bytes (all of them where there are fewer).
    pub fn advance(&mut self, count: usize) {
        let count = count.min(self.len);
        self.offset += count;
        self.len -= count;
    }

    /// Keeps the first `len` bytes (all of them where there are fewer).
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Copies the first `min(len)` bytes onto those of `target`. Returns how many. The peer may
    /// change them meanwhile, which mixes bytes and breaks nothing here.
    pub fn copy_to(&self, target: &Slice) -> usize {
        let len = self.len.min(target.len());
        if let Some(device) = target.device() {
            // SAFETY: as below, by the driver of the GPU that holds the target.
            return unsafe { device.copy(self.addr(), target.addr(), len) }.map_or(0, |()| len);
        }
        // SAFETY: the source lies inside the view (checked in `new`, kept by `advance`), which
        // `self` keeps mapped and whose file can't shrink; the target inside its region, which the
        // slice keeps. A peer's memory and ours are different mappings, and if they should be the
        // same pages (an engine that maps its own), `copy` allows overlap only by address: the
        // bytes mix, as in any copy under a writer.
        unsafe {
            let source = self.view.mapping.base().as_ptr().add(self.offset);
            std::ptr::copy_nonoverlapping(source, target.ptr(), len);
        }
        len
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::OwnedFd;
    use std::os::unix::fs::FileExt;

    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

    use super::*;
    use crate::region::Region;

    fn memfd(bytes: u64, seals: SealFlags) -> OwnedFd {
        let fd = memfd_create("test", MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&fd, bytes).unwrap();
        File::from(fd.try_clone().unwrap()).write_all_at(&vec![0; bytes as usize], 0).unwrap();
        fcntl_add_seals(&fd, seals).unwrap();
        fd
    }

    #[test]
    fn a_region_is_seen_as_it_changes_and_outlives_its_owner() {
        let region = Arc::new(Region::allocate(10_000, None).unwrap());
        let view = Arc::new(View::map(region.memfd().unwrap(), 10_000).unwrap());
        let ours = Slice::new(region, 0, 10_000).unwrap();
        ours.write(9_000, b"there").unwrap();
        drop(ours);
        let target = Slice::new(Arc::new(Region::allocate(100, None).unwrap()), 0, 100).unwrap();
        let part = ViewSlice::new(view.clone(), 9_000, 5).unwrap();
        assert_eq!(part.copy_to(&target), 5);
        let mut out = [0; 5];
        target.read(0, &mut out).unwrap();
        assert_eq!(&out, b"there");
        assert!(ViewSlice::new(view.clone(), 9_999, 2).is_none());
        assert!(ViewSlice::new(view, usize::MAX, 2).is_none());
    }

    #[test]
    fn what_could_fault_is_not_mapped() {
        let refused = |fd: OwnedFd, len| View::map(fd, len).unwrap_err();
        let sealed = SealFlags::SHRINK | SealFlags::FUTURE_WRITE;
        assert!(matches!(refused(memfd(4096, SealFlags::GROW), 1), NotMappable::NotSealed));
        assert!(matches!(refused(memfd(4096, SealFlags::SHRINK), 1), NotMappable::NotSealed));
        assert!(matches!(refused(memfd(4096, sealed), 4097), NotMappable::TooShort { .. }));
        assert!(matches!(refused(memfd(0, sealed), 0), NotMappable::TooShort { .. }));
        let file = File::open("/dev/null").unwrap();
        assert!(matches!(refused(file.into(), 1), NotMappable::NotSealed));
        assert!(View::map(memfd(4096, sealed), 4096).is_ok());
        let hollow = memfd(4096, SealFlags::empty());
        ftruncate(&hollow, 1 << 40).unwrap();
        fcntl_add_seals(&hollow, sealed).unwrap();
        assert!(matches!(refused(hollow, 4096), NotMappable::Hollow));
    }

    #[test]
    fn nobody_can_write_to_a_region_that_was_passed_on() {
        let region = Region::allocate(4096, None).unwrap();
        let fd = region.memfd().unwrap();
        assert!(Mapping::new(fd, 4096, Mode::ReadWrite).is_err(), "a new writable mapping");
        let mut file = File::from(fd.try_clone_to_owned().unwrap());
        assert!(std::io::Write::write(&mut file, b"x").is_err(), "write(2)");
    }
}
