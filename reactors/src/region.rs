//! The one place where an address becomes bytes. A [`Region`] outlives its flights: whoever may
//! touch its memory holds it by `Arc`, and the last one to let go unmaps it.
//!
//! Memory that peers may write changes under the reader, so it is never lent as a slice; bytes
//! go in and out by copy.

mod reach;
mod slice;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use self::reach::Reach;
use self::slice::check;
pub use self::slice::{AccessError, OutOfRange, Slice};
use crate::cuda::{DeviceMemory, Driver, Failure};
pub use crate::foreign::{Eternal, Foreign, ForeignVram};
use crate::numa::{self, NumaPolicy};

/// Size of a base page here and of the alignment we promise (x86-64 and aarch64 with 4 KiB pages).
pub const PAGE_BYTES: usize = 4096;

/// Size of the huge pages we ask `memfd_create` for (`MFD_HUGE_2MB`).
pub const HUGE_PAGE_BYTES: usize = 2 << 20;

/// `MADV_POPULATE_WRITE` (Linux 5.14): faults pages in and reports a lack of memory as an error
/// where touching the page would raise SIGBUS.
const MADV_POPULATE_WRITE: libc::c_int = 23;

/// Bytes faulted in between two looks at the memory that is left: 50 ms or so of work.
const POPULATE_BYTES: usize = 256 << 20;

/// Which pages to allocate on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pages {
    /// Huge pages that the administrator set aside, and no other.
    Huge,
    /// Base pages.
    Base,
    /// Huge pages where enough are free, else base pages.
    Any,
}

/// Why a region was not allocated.
#[derive(Debug, thiserror::Error)]
pub enum AllocateError {
    /// The policy could not be set: `mbind` said so. Without binding the same may pass.
    #[error("mbind: {0}")]
    Policy(#[source] io::Error),
    /// The memory is not to be had.
    #[error(transparent)]
    Memory(io::Error),
}

impl From<AllocateError> for io::Error {
    fn from(error: AllocateError) -> Self {
        match error {
            AllocateError::Policy(error) | AllocateError::Memory(error) => error,
        }
    }
}

/// A range of memory that transfers read and write.
#[derive(Debug)]
pub struct Region {
    base: NonNull<u8>,
    len: usize,
    backing: Backing,
    id: u64,
    /// Found out when it is first asked.
    node: OnceLock<Option<u32>>,
    /// What lets GPUs reach it, where it is host memory that they were asked to.
    reach: Reach,
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
    /// A GPU's; its address means nothing to the CPU.
    Device(DeviceMemory),
    /// A larger region's, which it keeps mapped.
    Within(Arc<Region>),
}

// SAFETY: all access goes through raw copies below, whose bounds are checked; concurrent copies
// may mix bytes, as a NIC's would, but no reference to the memory ever exists. Device memory is
// only named to its driver, which any thread may call.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Allocates `len` bytes (rounded up to whole pages in the mapping), bound to NUMA `node`
    /// where one is given, on huge pages where enough are free, every page faulted in.
    ///
    /// # Errors
    /// As [`Region::allocate_with`].
    pub fn allocate(len: usize, node: Option<u32>) -> Result<Self, AllocateError> {
        let policy = node.map_or(NumaPolicy::Any, |node| NumaPolicy::Bind(vec![node]));
        Self::allocate_with(len, &policy, Pages::Any, &mut |_| Ok(()))
    }

    /// Allocates `len` bytes under a policy, on pages of a size, every page faulted in.
    ///
    /// The kernel rather kills a process than refuse it a page. So compare `len` with the memory
    /// that is free first; and `room` is asked again, with the bytes of base pages still to come,
    /// before every 256 MiB of them.
    ///
    /// # Errors
    /// By the step that failed; nothing is kept.
    pub fn allocate_with(
        len: usize,
        policy: &NumaPolicy,
        pages: Pages,
        room: &mut dyn FnMut(usize) -> io::Result<()>,
    ) -> Result<Self, AllocateError> {
        let huge = || Self::map(len, policy, HUGE_PAGE_BYTES, &mut |_| Ok(()));
        match pages {
            Pages::Huge => huge(),
            Pages::Base => Self::map(len, policy, PAGE_BYTES, room),
            Pages::Any => huge().or_else(|_| Self::map(len, policy, PAGE_BYTES, room)),
        }
    }

    fn map(
        len: usize,
        policy: &NumaPolicy,
        page_bytes: usize,
        room: &mut dyn FnMut(usize) -> io::Result<()>,
    ) -> Result<Self, AllocateError> {
        let region = Self::mapped(len, page_bytes).map_err(AllocateError::Memory)?;
        let bytes = region.mapped_bytes();
        numa::apply(region.base, bytes, policy).map_err(AllocateError::Policy)?;
        region.populate(room).map_err(AllocateError::Memory)?;
        seal(&region).map_err(AllocateError::Memory)?;
        Ok(region)
    }

    /// An empty mapping of a new memfd; dropping the region unmaps it, on errors too.
    fn mapped(len: usize, page_bytes: usize) -> io::Result<Self> {
        let mapped_bytes = len
            .checked_next_multiple_of(page_bytes)
            .filter(|&bytes| bytes > 0 && bytes <= isize::MAX as usize)
            .ok_or(io::ErrorKind::InvalidInput)?;
        if page_bytes == HUGE_PAGE_BYTES && mapped_bytes != len {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let file = memfd(page_bytes == HUGE_PAGE_BYTES)?;
        set_size(&file, mapped_bytes as u64)?;
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
        Ok(Self::new(base, len, Backing::Memfd { file, mapped_bytes }))
    }

    fn new(base: NonNull<u8>, len: usize, backing: Backing) -> Self {
        let (node, reach) = Default::default();
        Self { base, len, backing, id: next_id(), node, reach }
    }

    /// The first `len` bytes of device memory, all of it at most.
    pub fn on_device(memory: DeviceMemory, len: usize) -> Option<Self> {
        let base = NonNull::new(memory.addr() as *mut u8)?;
        let is_inside = (1..=memory.bytes()).contains(&len);
        is_inside.then(|| Self::new(base, len, Backing::Device(memory)))
    }

    /// Memory that the caller vouched for. It is not unmapped on drop.
    pub fn foreign(foreign: Foreign) -> Self {
        Self::new(foreign.base, foreign.len, Backing::Foreign)
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
        Ok(Self::new(base, len, Backing::Within(parent.clone())))
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

    /// The device memory beneath, where it is on a GPU.
    pub fn device(&self) -> Option<&DeviceMemory> {
        match &self.backing {
            Backing::Device(memory) => Some(memory),
            Backing::Memfd { .. } | Backing::Foreign => None,
            Backing::Within(parent) => parent.device(),
        }
    }

    /// Lets this driver's GPUs reach the memory at its own address. Host memory is pinned at the
    /// first call, which takes some 100 ms a GiB.
    ///
    /// # Errors
    /// The driver's own; its copies still work, by way of a buffer of its own and slowly.
    pub fn reach(&self, driver: &Arc<dyn Driver>) -> Result<(), Failure> {
        if self.device().is_some() {
            return Ok(());
        }
        // SAFETY: the region's bytes are mapped until `unpin`, which memory of the caller's asks
        // for, or until the region is dropped, which unpins first.
        unsafe { self.reach.pin(driver, self.addr(), self.len) }
    }

    /// Whether this driver's GPUs reach it at its own address.
    pub(crate) fn is_reachable(&self, driver: &Arc<dyn Driver>) -> bool {
        match self.device() {
            Some(device) => Arc::ptr_eq(device.driver(), driver),
            None => self.reach.is_pinned_for(driver),
        }
    }

    /// GPUs reach it no more, from now on: whose memory it is may free it. Nothing of it is under
    /// way.
    pub fn unpin(&self) {
        self.reach.end();
    }

    /// Whether the memory belongs to the caller rather than to us.
    pub fn is_foreign(&self) -> bool {
        matches!(self.backing, Backing::Foreign)
    }

    /// The one NUMA node that holds the pages, as a sample of them told when it was first asked;
    /// `None` where they are on several or not there, or the kernel doesn't say.
    pub fn node(&self) -> Option<u32> {
        // Of a GPU's memory the kernel knows nothing.
        *self.node.get_or_init(|| self.device().is_none().then(|| numa::node_of(self)).flatten())
    }

    fn mapped_bytes(&self) -> usize {
        match self.backing {
            Backing::Memfd { mapped_bytes, .. } => mapped_bytes,
            Backing::Foreign | Backing::Device(_) | Backing::Within(_) => 0,
        }
    }

    /// Faults every page in, as long as there is room for the next ones.
    fn populate(&self, room: &mut dyn FnMut(usize) -> io::Result<()>) -> io::Result<()> {
        let bytes = self.mapped_bytes();
        (0..bytes).step_by(POPULATE_BYTES).try_for_each(|start| {
            room(bytes - start)?;
            self.populate_part(start, POPULATE_BYTES.min(bytes - start))
        })
    }

    fn populate_part(&self, start: usize, len: usize) -> io::Result<()> {
        // SAFETY: the range lies inside our own mapping.
        let rc = unsafe {
            libc::madvise(self.base.as_ptr().add(start).cast(), len, MADV_POPULATE_WRITE)
        };
        if rc == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match (error.raw_os_error(), &self.backing) {
            // A kernel before 5.14 does not know the advice. The file's pages come from the same
            // policy, and the first touch of a page that is there can't fail.
            (Some(libc::EINVAL), Backing::Memfd { file, .. }) => reserve(file, start, len),
            _ => Err(error),
        }
    }

    /// The memfd beneath, for a process on this host to map; none for foreign memory and a GPU's.
    pub fn memfd(&self) -> Option<BorrowedFd<'_>> {
        match &self.backing {
            Backing::Memfd { file, .. } => Some(file.as_fd()),
            Backing::Foreign | Backing::Device(_) | Backing::Within(_) => None,
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // Before the bytes go.
        self.unpin();
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
    match create_memfd(flags) {
        // vm.memfd_noexec=2 wants to hear that nobody will execute it; older kernels don't know.
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => {
            create_memfd(flags | libc::MFD_NOEXEC_SEAL)
        }
        result => result,
    }
}

fn create_memfd(flags: libc::c_uint) -> io::Result<File> {
    // SAFETY: a plain system call with a static, NUL-terminated name.
    let fd = unsafe { libc::memfd_create(c"kvrail".as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and ours.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) }.into())
}

/// Gives a new memfd its size. Beyond the limit on file sizes (`ulimit -f`) the kernel would answer
/// with a signal that kills.
pub(crate) fn set_size(fd: impl AsFd, bytes: u64) -> io::Result<()> {
    use rustix::process::{Resource, getrlimit};
    if getrlimit(Resource::Fsize).current.is_some_and(|limit| bytes > limit) {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(rustix::fs::ftruncate(fd, bytes)?)
}

fn reserve(file: &File, start: usize, len: usize) -> io::Result<()> {
    let (start, len) = (start as libc::off_t, len as libc::off_t);
    // SAFETY: a plain system call on our own descriptor.
    let rc = unsafe { libc::fallocate(file.as_raw_fd(), 0, start, len) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
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
    fn room_is_asked_before_base_pages_come_and_a_no_ends_it() {
        let mut asked = Vec::new();
        let mut room = |bytes| {
            asked.push(bytes);
            if bytes > PAGE_BYTES { Err(io::ErrorKind::OutOfMemory.into()) } else { Ok(()) }
        };
        let mut allocate =
            |len| Region::allocate_with(len, &NumaPolicy::Any, Pages::Base, &mut room);
        assert!(allocate(1).is_ok());
        assert!(matches!(allocate(2 * PAGE_BYTES), Err(AllocateError::Memory(_))));
        assert_eq!(asked, [PAGE_BYTES, 2 * PAGE_BYTES]);
    }

    #[test]
    fn kernels_without_the_advice_get_their_pages_from_the_file() {
        use std::os::unix::fs::MetadataExt;
        let region = Region::mapped(2 * PAGE_BYTES, PAGE_BYTES).unwrap();
        let Backing::Memfd { file, .. } = &region.backing else { panic!("it is ours") };
        assert_eq!(file.metadata().unwrap().blocks(), 0);
        reserve(file, PAGE_BYTES, PAGE_BYTES).unwrap();
        // stat(2) counts in blocks of 512 bytes.
        assert_eq!(file.metadata().unwrap().blocks() as usize, PAGE_BYTES / 512);
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
