//! Mappings of memfds, ours and peers'. A peer's is mapped only if no one can make it fault: its
//! size is sealed, so a truncation can't raise SIGBUS in us.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr::NonNull;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, memfd_create};

/// `MADV_POPULATE_READ` (Linux 5.14): faults pages in and reports failure as an error where
/// touching the page would raise SIGBUS.
const MADV_POPULATE_READ: libc::c_int = 22;

/// Why a peer's descriptor is not mapped.
#[derive(Debug, thiserror::Error)]
pub enum NotMappable {
    /// It is no memfd, or one that its owner could shrink or change under us.
    #[error("the descriptor is not a memfd sealed against shrinking and foreign writers")]
    NotSealed,
    /// It ends before what was said to be in it.
    #[error("the memfd has {has_bytes} bytes where {wanted_bytes} were announced")]
    TooShort {
        /// Bytes it has.
        has_bytes: u64,
        /// Bytes that were announced.
        wanted_bytes: u64,
    },
    /// Pages of it were never written: reading them would take memory here.
    #[error("the memfd has holes")]
    Hollow,
    /// The system does not map it.
    #[error("the memfd can't be mapped: {0}")]
    System(#[from] io::Error),
}

impl From<rustix::io::Errno> for NotMappable {
    fn from(errno: rustix::io::Errno) -> Self {
        Self::System(errno.into())
    }
}

/// A shared mapping, unmapped on drop.
#[derive(Debug)]
pub(super) struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: an address and a length; all access goes through raw copies or atomics whose bounds are
// checked, and no reference to plain bytes of it ever exists.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

/// What a mapping is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Read,
    ReadWrite,
}

impl Mapping {
    /// Maps the first `len` bytes of a file whose size is known to be at least that for good.
    pub(super) fn new(fd: impl AsFd, len: usize, mode: Mode) -> io::Result<Self> {
        let protection = match mode {
            Mode::Read => libc::PROT_READ,
            Mode::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
        };
        let fd = fd.as_fd().as_raw_fd();
        // SAFETY: a new shared mapping at an address the kernel chooses.
        let base =
            unsafe { libc::mmap(std::ptr::null_mut(), len, protection, libc::MAP_SHARED, fd, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, len })
    }

    /// Faults every page in for reading, so that a page which isn't to be had is an error here
    /// and no signal later. Kernels before 5.14 fault on touch.
    pub(super) fn populate(&self) -> io::Result<()> {
        // SAFETY: the range is this mapping's own.
        let rc = unsafe { libc::madvise(self.base.as_ptr().cast(), self.len, MADV_POPULATE_READ) };
        let error = io::Error::last_os_error();
        if rc == 0 || error.raw_os_error() == Some(libc::EINVAL) { Ok(()) } else { Err(error) }
    }

    pub(super) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this is the mapping made in `new`; whoever could touch it held it.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// A memfd of ours with `len` bytes of zeros.
pub(super) fn own_memfd(name: &str, len: usize) -> io::Result<OwnedFd> {
    let fd = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    crate::region::set_size(&fd, len as u64)?;
    Ok(fd)
}

/// Fixes the size of a memfd of ours; with `only_ours`, nobody who maps it from here on can write.
pub(super) fn seal(fd: impl AsFd, only_ours: bool) -> io::Result<()> {
    let mut seals = SealFlags::SHRINK | SealFlags::GROW;
    seals.set(SealFlags::FUTURE_WRITE, only_ours);
    Ok(fcntl_add_seals(fd, seals)?)
}

/// Refuses a memfd with holes: faulting one in makes a page, even for a reader, and nothing says
/// how many there are. Where its size and contents are sealed, none come later.
pub(super) fn check_filled(fd: impl AsFd) -> Result<(), NotMappable> {
    /// `stat(2)`: the unit of `st_blocks`.
    const BLOCK_BYTES: i64 = 512;
    let stat = fstat(&fd)?;
    match stat.st_blocks.saturating_mul(BLOCK_BYTES) >= stat.st_size {
        true => Ok(()),
        false => Err(NotMappable::Hollow),
    }
}

/// The size of a peer's memfd, which it can't change any more. With `read_only`, it can't punch
/// holes into it either (`F_SEAL_FUTURE_WRITE` forbids that too).
pub(super) fn sealed_bytes(fd: impl AsFd, read_only: bool) -> Result<u64, NotMappable> {
    let mut needed = SealFlags::SHRINK;
    needed.set(SealFlags::FUTURE_WRITE, read_only);
    // EINVAL: no memfd at all.
    let seals = fcntl_get_seals(&fd).map_err(|_| NotMappable::NotSealed)?;
    if !seals.contains(needed) {
        return Err(NotMappable::NotSealed);
    }
    Ok(u64::try_from(fstat(&fd)?.st_size).unwrap_or(0))
}
