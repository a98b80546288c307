//! GPUs that aren't there: "VRAM" is memfds, mapped where nobody looks for them, so that a stray
//! access by the CPU or a system call faults as it would on a GPU's address; work is done when it
//! is polled for, and anything can be made to fail.

mod shared;
mod stream;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::stream::FakeStream;
use super::crossover::Crossovers;
use super::driver::{
    Allocation, DeviceFacts, Driver, Failure, FailureKind, Holding, IpcHandle, Stream,
};
use super::opened::Opened;
use super::outside::Outside;

/// A device's page: VMM allocations of real ones are whole multiples of 2 MiB.
const PAGE_BYTES: usize = 64 << 10;

/// What goes wrong.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// No memory is to be had.
    pub no_memory: bool,
    /// Other devices get no memory.
    pub no_dma_buf: bool,
    /// Another process's handles are refused.
    pub no_import: bool,
    /// Nobody's memory is known.
    pub no_holding: bool,
    /// Nobody gets a handle of memory that is shareable.
    pub no_share: bool,
    /// Host memory can't be pinned.
    pub no_pin: bool,
    /// Work is not taken.
    pub no_launch: bool,
    /// No marks are set.
    pub no_mark: bool,
    /// Nobody is told whether work is done.
    pub no_answer: bool,
    /// Nobody may wait for an event.
    pub no_wait: bool,
    /// No events are recorded.
    pub no_record: bool,
    /// Work is taken and never done.
    pub is_stalled: bool,
    /// The devices are lost.
    pub is_lost: bool,
}

/// A driver of GPUs that aren't there.
#[derive(Debug)]
pub struct Fake {
    devices: Vec<DeviceFacts>,
    crossovers: Crossovers,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    storage: Mutex<BTreeMap<u64, Storage>>,
    faults: Mutex<Faults>,
    pinned: Mutex<BTreeMap<u64, usize>>,
    launches: AtomicUsize,
    opened: Opened,
    events: Mutex<Vec<EventState>>,
    dma_bufs: Mutex<Vec<(u64, usize)>>,
}

/// How often an event was recorded, and which of these times has completed.
#[derive(Debug, Clone, Copy, Default)]
struct EventState {
    recorded: u64,
    completed: u64,
}

/// An allocation's bytes.
#[derive(Debug)]
struct Storage {
    file: File,
    bytes: usize,
    /// Where they are.
    base: u64,
    device: u32,
    owner: Owner,
}

/// Who has allocated it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// A driver, to be freed by it.
    Driver,
    /// Somebody else in this process, in a way that has a handle or hasn't.
    Outside { is_shareable: bool },
    /// Another process, which shows it by a handle.
    Opened,
}

impl Fake {
    /// So many GPUs of so much memory, which all reach each other.
    pub fn new(count: u32, memory_bytes: u64) -> Self {
        let facts = |ordinal: u32| DeviceFacts {
            ordinal,
            name: "fake".to_owned(),
            uuid: [ordinal as u8; 16],
            pci: format!("0000:{:02x}:00.0", ordinal + 1),
            memory_bytes,
            multiprocessors: 132,
            reaches: (0..count).filter(|other| *other != ordinal).collect(),
        };
        let crossovers = Crossovers::fixed(count as usize);
        Self { devices: (0..count).map(facts).collect(), crossovers, shared: Arc::default() }
    }

    /// The same, whose copies are measured as a real one's.
    #[must_use]
    pub fn measured(self) -> Self {
        Self { crossovers: Crossovers::new(self.devices.len()), ..self }
    }

    /// The same, none of which reaches another.
    #[must_use]
    pub fn apart(mut self) -> Self {
        self.devices.iter_mut().for_each(|facts| facts.reaches.clear());
        self
    }

    /// Changes what goes wrong from here on.
    pub fn break_with(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut lock(&self.shared.faults));
    }

    /// Allocations that are alive, of this process and mapped ones; those of others but its own
    /// are not counted.
    pub fn allocations(&self) -> usize {
        let storage = lock(&self.shared.storage);
        storage.values().filter(|storage| !matches!(storage.owner, Owner::Outside { .. })).count()
    }

    /// Other processes' allocations that are open by their handles.
    pub fn opened(&self) -> usize {
        self.shared.opened.len()
    }

    /// Launches that were made.
    pub fn launches(&self) -> usize {
        self.shared.launches.load(Ordering::Relaxed)
    }

    /// Ranges that other devices were given, by address and length. What stands for their
    /// descriptor is the whole allocation's memfd.
    pub fn dma_bufs(&self) -> Vec<(u64, usize)> {
        lock(&self.shared.dma_bufs).clone()
    }

    /// Ranges of host memory that are pinned.
    pub fn pins(&self) -> usize {
        lock(&self.shared.pinned).len()
    }

    fn map(
        &self,
        file: File,
        bytes: usize,
        device: u32,
        owner: Owner,
    ) -> Result<Allocation, Failure> {
        let name = map(bytes, None).map_err(|error| refused("reserve", &error))?;
        let base = map(bytes, Some(&file)).map_err(|error| {
            unmap(name, bytes);
            refused("map", &error)
        })?;
        lock(&self.shared.storage).insert(name, Storage { file, bytes, base, device, owner });
        Ok(Allocation { device, addr: name, bytes, handle: 0 })
    }
}

impl Driver for Fake {
    fn devices(&self) -> &[DeviceFacts] {
        &self.devices
    }

    fn crossovers(&self) -> &Crossovers {
        &self.crossovers
    }

    fn free_bytes(&self, device: u32) -> Result<u64, Failure> {
        let all = self.device(device)?.memory_bytes;
        let storage = lock(&self.shared.storage);
        let used = storage.values().filter(|storage| storage.device == device);
        Ok(all.saturating_sub(used.map(|storage| storage.bytes as u64).sum()))
    }

    fn allocate(&self, device: u32, len: usize) -> Result<Allocation, Failure> {
        let bytes = len.next_multiple_of(PAGE_BYTES);
        if self.shared.faults().no_memory || self.free_bytes(device)? < bytes as u64 {
            let (call, name) = ("cuMemCreate", "CUDA_ERROR_OUT_OF_MEMORY".into());
            return Err(Failure { call, name, kind: FailureKind::NoMemory });
        }
        let file = file(device, bytes).map_err(|error| refused("cuMemCreate", &error))?;
        self.map(file, bytes, device, Owner::Driver)
    }

    fn export(&self, allocation: &Allocation) -> Result<OwnedFd, Failure> {
        let storage = lock(&self.shared.storage);
        let missing = || Failure::refused("export", "no such allocation");
        let storage = storage.get(&allocation.addr).ok_or_else(missing)?;
        storage.file.try_clone().map(Into::into).map_err(|error| refused("export", &error))
    }

    fn dma_buf(&self, device: u32, addr: u64, len: usize) -> Result<OwnedFd, Failure> {
        self.for_devices(device, addr, len)
    }

    fn import(&self, fd: BorrowedFd<'_>, bytes: usize) -> Result<Allocation, Failure> {
        if self.shared.faults().no_import {
            return Err(Failure::refused("cuMemImportFromShareableHandle", "it was asked to fail"));
        }
        let call = |error| refused("cuMemImportFromShareableHandle", &error);
        let file = File::from(fd.try_clone_to_owned().map_err(call)?);
        let device = device_of(&file).ok_or_else(|| Failure::refused("import", "no allocation"))?;
        let has_bytes = file.metadata().map_err(call)?.len();
        if has_bytes != bytes as u64 || bytes == 0 {
            return Err(Failure::refused("import", "it has another length"));
        }
        self.device(device)?;
        self.map(file, bytes, device, Owner::Driver)
    }

    unsafe fn free(&self, allocation: &Allocation) {
        if let Some(storage) = lock(&self.shared.storage).remove(&allocation.addr) {
            unmap(allocation.addr, storage.bytes);
            unmap(storage.base, storage.bytes);
        }
    }

    fn holding(&self, _device: u32, addr: u64) -> Result<Holding, Failure> {
        self.held(addr)
    }

    fn share(&self, holding: &Holding) -> Result<IpcHandle, Failure> {
        self.shared(holding)
    }

    fn open(&self, device: u32, handle: &IpcHandle) -> Result<Allocation, Failure> {
        self.shared.opened.open(handle, || self.open_shared(device, handle))
    }

    unsafe fn close(&self, handle: &IpcHandle) {
        self.shared.opened.close(handle, |allocation| {
            // SAFETY: the caller's promise, and nobody else has it open.
            unsafe { Driver::free(self, allocation) };
        });
    }

    fn outside(&self) -> &dyn Outside {
        self
    }

    unsafe fn copy(&self, device: u32, from: u64, to: u64, len: usize) -> Result<(), Failure> {
        self.device(device)?;
        if self.shared.faults().is_lost {
            return Err(lost());
        }
        // SAFETY: the caller's promise.
        unsafe { self.shared.copy(from, to, len) };
        Ok(())
    }

    unsafe fn pin(&self, addr: u64, len: usize, _is_read_only: bool) -> Result<(), Failure> {
        if self.shared.faults().no_pin {
            return Err(Failure::refused("cuMemHostRegister", "it was asked to fail"));
        }
        lock(&self.shared.pinned).insert(addr, len);
        Ok(())
    }

    fn unpin(&self, addr: u64) {
        lock(&self.shared.pinned).remove(&addr);
    }

    fn stream(&self, device: u32) -> Result<Box<dyn Stream>, Failure> {
        self.device(device)?;
        Ok(Box::new(FakeStream::new(self.shared.clone(), device)))
    }
}

impl Fake {
    fn device(&self, device: u32) -> Result<&DeviceFacts, Failure> {
        let missing = || Failure::refused("cuDeviceGet", format!("there is no GPU {device}"));
        self.devices.get(device as usize).ok_or_else(missing)
    }
}

impl Shared {
    fn faults(&self) -> Faults {
        *lock(&self.faults)
    }

    /// # Safety
    /// As [`Driver::copy`].
    unsafe fn copy(&self, from: u64, to: u64, len: usize) {
        let (from, to) = (self.place(from, len), self.place(to, len));
        // SAFETY: both ranges are alive, by the caller's promise; a device's was looked up, and its
        // storage goes no earlier than its name.
        unsafe { std::ptr::copy(from as *const u8, to as *mut u8, len) };
    }

    /// Whether a device may touch this address: what was opened in one context is not there for
    /// another.
    fn may_touch(&self, device: u32, addr: u64) -> bool {
        let storage = lock(&self.storage);
        let below = storage.range(..=addr).next_back();
        let found = below.filter(|(name, storage)| addr - **name < storage.bytes as u64);
        found.is_none_or(|(_, held)| held.owner != Owner::Opened || held.device == device)
    }

    /// Where the bytes of an address are: host addresses are their own.
    fn place(&self, addr: u64, len: usize) -> u64 {
        let storage = lock(&self.storage);
        let Some((name, storage)) = storage.range(..=addr).next_back() else { return addr };
        let offset = addr - name;
        if offset >= storage.bytes as u64 {
            return addr;
        }
        assert!(offset + len as u64 <= storage.bytes as u64, "beyond an allocation's end");
        storage.base + offset
    }
}

fn lost() -> Failure {
    let (call, name) = ("cuStreamQuery", "CUDA_ERROR_LAUNCH_FAILED".into());
    Failure { call, name, kind: FailureKind::Lost }
}

fn refused(call: &'static str, error: &io::Error) -> Failure {
    Failure::refused(call, error.to_string())
}

/// The name of a device's memfds, by which another process's fake knows them.
const NAME: &str = "kvrail-fake-gpu-";

fn file(device: u32, bytes: usize) -> io::Result<File> {
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    let fd = memfd_create(format!("{NAME}{device}"), MemfdFlags::CLOEXEC)?;
    ftruncate(&fd, bytes as u64)?;
    Ok(fd.into())
}

fn device_of(file: &File) -> Option<u32> {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", file.as_fd().as_raw_fd())).ok()?;
    let rest = link.to_str()?.strip_prefix("/memfd:")?.strip_prefix(NAME)?;
    rest.split(' ').next()?.parse().ok()
}

/// Maps a file's bytes, or reserves addresses that nobody may touch.
fn map(bytes: usize, file: Option<&File>) -> io::Result<u64> {
    let (protection, flags, fd) = match file {
        Some(file) => (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, file.as_raw_fd()),
        None => (libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1),
    };
    // SAFETY: a new mapping at an address that the kernel chooses.
    let base = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, fd, 0) };
    if base == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(base as u64) }
}

fn unmap(base: u64, bytes: usize) {
    // SAFETY: a mapping of `map`'s, which nobody uses any more.
    unsafe { libc::munmap(base as *mut libc::c_void, bytes) };
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
