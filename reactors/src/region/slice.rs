//! Ranges of regions: who holds one keeps the memory, and its bounds were checked.

use std::sync::Arc;

use super::Region;
use crate::cuda::{DeviceMemory, Driver, Failure};

/// A range of a region that somebody may be about to read or write: keeps the region alive.
#[derive(Debug, Clone)]
pub struct Slice {
    region: Arc<Region>,
    offset: usize,
    len: usize,
}

/// A range that isn't inside the slice it was asked of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("bytes {offset}..{offset}+{len} are outside of {room} bytes")]
pub struct OutOfRange {
    /// First byte asked for, counted from the slice's start.
    pub offset: usize,
    /// Bytes asked for.
    pub len: usize,
    /// Bytes there are.
    pub room: usize,
}

/// Why bytes were not copied into or out of a slice.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    /// They aren't inside of it.
    #[error(transparent)]
    OutOfRange(#[from] OutOfRange),
    /// The GPU that holds them did not answer for them.
    #[error(transparent)]
    Device(#[from] Failure),
}

pub(super) fn check(offset: usize, len: usize, room: usize) -> Result<(), OutOfRange> {
    match offset.checked_add(len) {
        Some(end) if end <= room => Ok(()),
        _ => Err(OutOfRange { offset, len, room }),
    }
}

impl Slice {
    /// `len` bytes of `region` from `offset` on.
    ///
    /// # Errors
    /// [`OutOfRange`] where the region ends before.
    pub fn new(region: Arc<Region>, offset: usize, len: usize) -> Result<Self, OutOfRange> {
        check(offset, len, region.len())?;
        Ok(Self { region, offset, len })
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The region it is part of.
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// The first byte's address.
    pub fn addr(&self) -> u64 {
        self.region.addr() + self.offset as u64
    }

    /// A part of this slice.
    ///
    /// # Errors
    /// [`OutOfRange`] where this slice ends before.
    pub fn part(&self, offset: usize, len: usize) -> Result<Self, OutOfRange> {
        check(offset, len, self.len)?;
        Ok(Self { region: self.region.clone(), offset: self.offset + offset, len })
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

    /// Copies bytes out, from `offset` of this slice on.
    ///
    /// # Errors
    /// Out of range, and nothing is copied. Of a GPU's memory its driver's, too.
    pub fn read(&self, offset: usize, out: &mut [u8]) -> Result<(), AccessError> {
        check(offset, out.len(), self.len)?;
        if let Some(device) = self.device() {
            let from = self.addr() + offset as u64;
            // SAFETY: as below; the driver returns when the bytes are there.
            return Ok(unsafe { device.copy(from, out.as_mut_ptr() as u64, out.len()) }?);
        }
        // SAFETY: the source lies inside the region (checked here and in `new`), which `self`
        // keeps mapped; `out` is the caller's own and can't be region memory, which is never
        // lent as a reference.
        unsafe {
            std::ptr::copy_nonoverlapping(self.ptr().add(offset), out.as_mut_ptr(), out.len());
        }
        Ok(())
    }

    /// Copies bytes in, from `offset` of this slice on.
    ///
    /// # Errors
    /// As [`Slice::read`].
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), AccessError> {
        check(offset, bytes.len(), self.len)?;
        if let Some(device) = self.device() {
            let to = self.addr() + offset as u64;
            // SAFETY: as in `read`, the other way round.
            return Ok(unsafe { device.copy(bytes.as_ptr() as u64, to, bytes.len()) }?);
        }
        // SAFETY: as in `read`, the other way round.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.ptr().add(offset), bytes.len());
        }
        Ok(())
    }

    /// Copies the first `min(len)` bytes of `self` onto those of `target`; the two may overlap.
    /// Returns how many: none where a GPU that holds some does not answer for them.
    pub fn copy_to(&self, target: &Slice) -> usize {
        let len = self.len.min(target.len);
        if let Some(device) = target.device().or(self.device()) {
            // SAFETY: as below.
            return unsafe { device.copy(self.addr(), target.addr(), len) }.map_or(0, |()| len);
        }
        // SAFETY: both ranges lie inside regions that the slices keep mapped; `copy` allows
        // overlap, and libc's memmove is memcpy's equal in speed where there is none.
        unsafe { std::ptr::copy(self.ptr(), target.ptr(), len) };
        len
    }

    /// Who copies the bytes, where the CPU can't.
    pub fn driver(&self) -> Option<&Arc<dyn Driver>> {
        self.device().map(|device| device.driver())
    }

    pub(crate) fn device(&self) -> Option<&DeviceMemory> {
        self.region.device()
    }

    /// The first byte, for system calls in this crate; valid while `self` (or a clone) lives. Of a
    /// GPU's memory it is no more than a name: a system call fails on it with `EFAULT`, and this
    /// process must not touch it.
    pub(crate) fn ptr(&self) -> *mut u8 {
        // SAFETY: `offset` is within the region, checked in `new` and kept by `part`, `advance`.
        unsafe { self.region.base.as_ptr().add(self.offset) }
    }
}
