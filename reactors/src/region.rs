//! The one place where an address becomes bytes. A [`Region`] outlives its flights: whoever may
//! touch its memory holds it by `Arc`, and the last one to let go unmaps it.
//!
//! Memory that peers may write changes under the reader, so it is never lent as a slice; bytes
//! go in and out by copy.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Size of a base page here and of the alignment we promise (x86-64 and aarch64 with 4 KiB pages).
pub const PAGE_BYTES: usize = 4096;

/// Size of the huge pages we ask `memfd_create` for (`MFD_HUGE_2MB`).
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// `MADV_POPULATE_WRITE` (Linux 5.14): faults pages in and reports a lack of memory as an error
/// where touching the page would raise SIGBUS.
const MADV_POPULATE_WRITE: libc::c_int = 23;

/// `MPOL_BIND` of `mbind(2)`.
const MPOL_BIND: libc::c_int = 2;

/// Memory that the caller owns and wants to register.
#[derive(Debug)]
pub struct Foreign {
    base: NonNull<u8>,
    len: usize,
}

impl Foreign {
    /// Vouches for `len` bytes at `base`.
    ///
    /// # Safety
    /// The bytes must be readable and writable, and stay so until the region made from them is
    /// gone: until `unregister` has returned, or the engine has stopped. Meanwhile no Rust
    /// reference to them may be in use, since peers may write them at any time.
    pub unsafe fn new(base: NonNull<u8>, len: usize) -> Self {
        Self { base, len }
    }
}

// SAFETY: `Foreign` is an address and a length; `new` made the caller vouch for the bytes
// wherever they are used from.
unsafe impl Send for Foreign {}

/// Foreign memory that is never freed, so that registering it takes no promise: for tests, and
/// for callers whose memory lives as long as their process.
#[derive(Debug, Clone, Copy)]
pub struct Eternal {
    base: NonNull<u8>,
    len: usize,
}

impl Eternal {
    /// Leaks `len` bytes, zeroed.
    pub fn new(len: usize) -> Self {
        let bytes = Box::leak(vec![0u8; len].into_boxed_slice());
        Self { base: NonNull::from_mut(bytes).cast(), len }
    }

    /// The memory, to be registered.
    pub fn foreign(&self) -> Foreign {
        // SAFETY: the bytes are never freed, and `new` gave its only reference to them up.
        unsafe { Foreign::new(self.base, self.len) }
    }

    /// Copies all bytes out, as they are now.
    pub fn contents(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        // SAFETY: the source is `len` bytes that are never freed; peers may change them meanwhile,
        // which mixes bytes and breaks nothing.
        unsafe {
            std::ptr::copy_nonoverlapping(self.base.as_ptr(), bytes.as_mut_ptr(), self.len);
        }
        bytes
    }
}

// SAFETY: an address and a length of memory that is never freed and only ever copied.
unsafe impl Send for Eternal {}
// SAFETY: as above.
unsafe impl Sync for Eternal {}

/// A range of memory that transfers read and write.
#[derive(Debug)]
pub struct Region {
    base: NonNull<u8>,
    len: usize,
    backing: Backing,
    id: u64,
}

/// A number that no other region of this process has or had, from 1.
fn next_id() -> u64 {
    static IDS: AtomicU64 = AtomicU64::new(1);
    IDS.fetch_add(1, Ordering::Relaxed)
}

#[derive(Debug)]
enum Backing {
    /// Ours: mapped from a memfd, so that a process on this host can map it too.
    Memfd { file: File, mapped_bytes: usize },
    /// The caller's.
    Foreign,
    /// A larger region's, which it keeps mapped.
    Within(#[expect(dead_code, reason = "held for its drop")] Arc<Region>),
}

// SAFETY: all access goes through raw copies below, whose bounds are checked; concurrent copies
// may mix bytes, as a NIC's would, but no reference to the memory ever exists.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Allocates `len` bytes (rounded up to whole pages in the mapping), bound to NUMA `node`
    /// where one is given, on huge pages where enough are free, every page faulted in.
    ///
    /// Compare `len` with the memory that is free first: the kernel rather kills a process than
    /// refuse it a page.
    ///
    /// # Errors
    /// The system's own, `ENOMEM` among them.
    pub fn allocate(len: usize, node: Option<u32>) -> io::Result<Self> {
        match Self::map(len, node, HUGE_PAGE_BYTES) {
            Ok(region) => Ok(region),
            Err(_) => Self::map(len, node, PAGE_BYTES),
        }
    }

    fn map(len: usize, node: Option<u32>, page_bytes: usize) -> io::Result<Self> {
        let mapped_bytes = len
            .checked_next_multiple_of(page_bytes)
            .filter(|&bytes| bytes > 0 && bytes <= isize::MAX as usize)
            .ok_or(io::ErrorKind::InvalidInput)?;
        if page_bytes == HUGE_PAGE_BYTES && mapped_bytes != len {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let file = memfd(page_bytes == HUGE_PAGE_BYTES)?;
        file.set_len(mapped_bytes as u64)?;
        // SAFETY: a new shared mapping of our own file at an address the kernel chooses.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                mapped_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        // From here on dropping the region unmaps it, on errors too.
        let backing = Backing::Memfd { file, mapped_bytes };
        let region = Self { base, len, backing, id: next_id() };
        if let Some(node) = node {
            bind(base, mapped_bytes, node)?;
        }
        populate(base, mapped_bytes)?;
        seal(&region)?;
        Ok(region)
    }

    /// Memory that the caller vouched for. It is not unmapped on drop.
    pub fn foreign(foreign: Foreign) -> Self {
        Self { base: foreign.base, len: foreign.len, backing: Backing::Foreign, id: next_id() }
    }

    /// `len` bytes of `parent` from `offset` on as a region of their own, for tests that look at
    /// the bytes around it.
    ///
    /// # Errors
    /// [`OutOfRange`] where the parent ends before.
    #[doc(hidden)]
    pub fn within(parent: &Arc<Self>, offset: usize, len: usize) -> Result<Self, OutOfRange> {
        check(offset, len, parent.len)?;
        // SAFETY: the offset lies inside the parent, whose mapping this region keeps.
        let base = unsafe { parent.base.add(offset) };
        Ok(Self { base, len, backing: Backing::Within(parent.clone()), id: next_id() })
    }

    /// The first byte's address: what peers name.
    pub fn addr(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    /// Names the region among all that this process ever had.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the memory belongs to the caller rather than to us.
    pub fn is_foreign(&self) -> bool {
        matches!(self.backing, Backing::Foreign)
    }

    /// The memfd beneath, for a process on this host to map; none for foreign memory.
    pub fn memfd(&self) -> Option<BorrowedFd<'_>> {
        match &self.backing {
            Backing::Memfd { file, .. } => Some(file.as_fd()),
            Backing::Foreign | Backing::Within(_) => None,
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if let Backing::Memfd { mapped_bytes, .. } = self.backing {
            // SAFETY: this is the mapping made in `map`; whoever could touch it held the region
            // by `Arc`, so nobody is left.
            unsafe { libc::munmap(self.base.as_ptr().cast(), mapped_bytes) };
        }
    }
}

fn memfd(huge: bool) -> io::Result<File> {
    let mut flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    if huge {
        flags |= libc::MFD_HUGETLB | libc::MFD_HUGE_2MB;
    }
    // SAFETY: a plain system call with a static, NUL-terminated name.
    let fd = unsafe { libc::memfd_create(c"kvrail".as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and ours.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) }.into())
}

/// Binds the pages to one node; fails rather than falls back, so that the policy is the caller's.
fn bind(base: NonNull<u8>, len: usize, node: u32) -> io::Result<()> {
    const WORD_BITS: usize = u64::BITS as usize;
    let mut mask = vec![0u64; node as usize / WORD_BITS + 1];
    mask[node as usize / WORD_BITS] = 1 << (node as usize % WORD_BITS);
    // The kernel takes one bit less than it is told (`mbind(2)`, maxnode).
    let max_node = mask.len() * WORD_BITS + 1;
    // SAFETY: the range is our own fresh mapping; the mask outlives the call.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            base.as_ptr(),
            len,
            MPOL_BIND,
            mask.as_ptr(),
            max_node,
            libc::c_uint::default(),
        )
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Faults every page in. Kernels before 5.14 get the pages one by one from `fallocate`.
fn populate(base: NonNull<u8>, len: usize) -> io::Result<()> {
    // SAFETY: the range is our own fresh mapping.
    let rc = unsafe { libc::madvise(base.as_ptr().cast(), len, MADV_POPULATE_WRITE) };
    if rc == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    // EINVAL: the kernel does not know the advice; the first touch will fault pages in.
    if error.raw_os_error() == Some(libc::EINVAL) { Ok(()) } else { Err(error) }
}

/// A peer that maps this memory must not meet SIGBUS: its size is fixed from here on. Nor may it
/// write: whoever maps it after us can only read (`F_SEAL_FUTURE_WRITE`, Linux 5.1; without it
/// peers don't map it at all).
fn seal(region: &Region) -> io::Result<()> {
    use rustix::fs::{SealFlags, fcntl_add_seals};
    let Some(fd) = region.memfd() else { return Ok(()) };
    let size = SealFlags::SHRINK | SealFlags::GROW;
    fcntl_add_seals(fd, size | SealFlags::FUTURE_WRITE).or_else(|_| fcntl_add_seals(fd, size))?;
    Ok(())
}

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

fn check(offset: usize, len: usize, room: usize) -> Result<(), OutOfRange> {
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
    /// [`OutOfRange`], and nothing is copied.
    pub fn read(&self, offset: usize, out: &mut [u8]) -> Result<(), OutOfRange> {
        check(offset, out.len(), self.len)?;
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
    /// [`OutOfRange`], and nothing is copied.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), OutOfRange> {
        check(offset, bytes.len(), self.len)?;
        // SAFETY: as in `read`, the other way round.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.ptr().add(offset), bytes.len());
        }
        Ok(())
    }

    /// Copies the first `min(len)` bytes of `self` onto those of `target`; the two may overlap.
    /// Returns how many.
    pub fn copy_to(&self, target: &Slice) -> usize {
        let len = self.len.min(target.len);
        // SAFETY: both ranges lie inside regions that the slices keep mapped; `copy` allows
        // overlap, and libc's memmove is memcpy's equal in speed where there is none.
        unsafe { std::ptr::copy(self.ptr(), target.ptr(), len) };
        len
    }

    /// The first byte, for system calls in this crate; valid while `self` (or a clone) lives.
    pub(crate) fn ptr(&self) -> *mut u8 {
        // SAFETY: `offset` is within the region, checked in `new` and kept by `part`, `advance`.
        unsafe { self.region.base.as_ptr().add(self.offset) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(len: usize) -> Arc<Region> {
        Arc::new(Region::allocate(len, None).unwrap())
    }

    #[test]
    fn bytes_come_back_and_bounds_hold() {
        let all = Slice::new(region(10_000), 0, 10_000).unwrap();
        assert_eq!(all.addr() % PAGE_BYTES as u64, 0);
        all.write(9_990, &[7; 10]).unwrap();
        let mut out = [0; 10];
        all.read(9_990, &mut out).unwrap();
        assert_eq!(out, [7; 10]);
        assert!(all.write(9_991, &[0; 10]).is_err());
        assert!(all.read(usize::MAX, &mut out).is_err());
        assert!(all.part(1, 10_000).is_err());
        assert!(Slice::new(all.region().clone(), 10_000, 1).is_err());
    }

    #[test]
    fn a_slice_keeps_its_region_mapped() {
        let slice = Slice::new(region(PAGE_BYTES), 8, 8).unwrap();
        slice.write(0, b"survives").unwrap();
        let mut out = [0; 8];
        slice.read(0, &mut out).unwrap();
        assert_eq!(&out, b"survives");
    }

    #[test]
    fn overlapping_copies_are_exact() {
        let all = Slice::new(region(PAGE_BYTES), 0, 100).unwrap();
        all.write(0, &(0..100).collect::<Vec<u8>>()).unwrap();
        all.part(0, 50).unwrap().copy_to(&all.part(10, 50).unwrap());
        let mut out = [0; 50];
        all.read(10, &mut out).unwrap();
        assert_eq!(out.to_vec(), (0..50).collect::<Vec<u8>>());
    }

    #[test]
    fn no_room_is_an_error_and_a_sealed_region_keeps_its_size() {
        assert!(Region::allocate(0, None).is_err());
        assert!(Region::allocate(usize::MAX, None).is_err());
        assert!(Region::allocate(PAGE_BYTES, Some(4000)).is_err(), "no such node");
        let region = region(PAGE_BYTES);
        // SAFETY: a plain system call on the region's descriptor.
        assert_eq!(unsafe { libc::ftruncate(region.memfd().unwrap().as_raw_fd(), 0) }, -1);
    }
}
