//! An allocation of device memory, and host memory that devices reach. Both let go of what they
//! hold when they are dropped.

use std::any::Any;
use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::driver::{Allocation, DeviceFacts, Driver, Failure, Holding, IpcHandle};
use crate::foreign::ForeignVram;
use crate::region::PAGE_BYTES;

/// Device memory that this process can name: its own, the caller's, or another process's that is
/// mapped here.
#[derive(Debug)]
pub struct DeviceMemory {
    driver: Arc<dyn Driver>,
    device: u32,
    addr: u64,
    bytes: usize,
    origin: Origin,
    #[expect(dead_code, reason = "held for its drop, behind the memory's own")]
    keeper: Keeper,
}

/// Whose memory it is, and so what is to be done with it in the end.
#[derive(Debug)]
enum Origin {
    /// Allocated here, or mapped by a descriptor: it is freed.
    Mapped(Allocation),
    /// The caller's, by the allocation that holds it: it is left alone.
    Foreign(Holding),
    /// Another process's, opened by its handle: it is closed.
    Opened(IpcHandle),
}

/// What is dropped when the memory is no longer named here.
#[derive(Default)]
struct Keeper(Option<Box<dyn Any + Send + Sync>>);

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Keeper" } else { "-" })
    }
}

/// By what another process of this host names device memory.
#[derive(Debug)]
pub enum Export {
    /// A descriptor, of an allocation of so many bytes.
    Descriptor(OwnedFd, usize),
    /// A handle, of an allocation that somebody else made.
    Handle(Shared),
}

/// A range of an allocation that another process opens by its handle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shared {
    /// The allocation's.
    pub handle: IpcHandle,
    /// Where in it the range begins, in bytes.
    pub offset: usize,
    /// Bytes of the range.
    pub bytes: usize,
    /// The GPU, by the number that is the same in every process.
    pub uuid: [u8; 16],
}

/// Device memory as other devices of this host reach it.
#[derive(Debug)]
pub struct DmaBuf {
    /// Of the host's pages that cover the memory.
    pub fd: OwnedFd,
    /// Where in them the memory begins, in bytes.
    pub offset: u64,
}

impl DeviceMemory {
    /// Takes at least `len` bytes on a device.
    ///
    /// # Errors
    /// The driver's own.
    pub fn allocate(driver: Arc<dyn Driver>, device: u32, len: usize) -> Result<Self, Failure> {
        let allocation = driver.allocate(device, len)?;
        Ok(Self::mapped(driver, allocation))
    }

    /// Memory that the caller vouched for.
    ///
    /// # Errors
    /// Refused: the driver knows no such memory, it is on another device, or it ends earlier.
    pub fn foreign(driver: Arc<dyn Driver>, foreign: &ForeignVram) -> Result<Self, Failure> {
        let ForeignVram { device, addr, len: bytes } = *foreign;
        let holding = covering(&*driver, foreign)?;
        let (origin, keeper) = (Origin::Foreign(holding), Keeper::default());
        Ok(Self { driver, device, addr, bytes, origin, keeper })
    }

    /// Maps another process's allocation of so many bytes, which all GPUs here have to reach: any
    /// may be asked to copy it.
    ///
    /// # Errors
    /// The driver's own. Refused: a GPU does not reach it.
    pub fn import(
        driver: Arc<dyn Driver>,
        fd: BorrowedFd<'_>,
        bytes: usize,
    ) -> Result<Self, Failure> {
        let allocation = driver.import(fd, bytes)?;
        Self::mapped(driver, allocation).reached_by_all()
    }

    /// Opens a range of another process's. The GPU that holds it makes the copies, and has to reach
    /// all others here. `keeper` is dropped behind the memory, once it is closed again.
    ///
    /// # Errors
    /// The driver's own. Refused: no GPU here is the one that holds it, it is shorter than was
    /// said, or that GPU does not reach another.
    pub fn open(
        driver: Arc<dyn Driver>,
        shared: &Shared,
        keeper: impl Send + Sync + 'static,
    ) -> Result<Self, Failure> {
        let Shared { handle, offset, bytes, uuid } = *shared;
        let held = driver.devices().iter().find(|facts| facts.uuid == uuid);
        let elsewhere = "it is on a GPU that this process does not see: look at \
                         CUDA_VISIBLE_DEVICES";
        let missing = || Failure::refused("cuIpcOpenMemHandle", elsewhere);
        let device = held.ok_or_else(missing)?.ordinal;
        let allocation = driver.open(device, &handle)?;
        let (origin, keeper) = (Origin::Opened(handle), Keeper(Some(Box::new(keeper))));
        let addr = allocation.addr.wrapping_add(offset as u64);
        let memory = Self { driver, device, addr, bytes, origin, keeper };
        // A range that ends behind its allocation would kill the context that copies it.
        let end = offset.checked_add(bytes).filter(|end| (1..=allocation.bytes).contains(end));
        end.ok_or_else(|| Failure::refused("cuIpcOpenMemHandle", "it is shorter than was said"))?;
        memory.reaching_all()
    }

    fn reaching_all(self) -> Result<Self, Failure> {
        let held = self.device;
        let devices = self.driver.devices();
        let own = devices.get(held as usize).map_or(&[][..], |facts| &facts.reaches);
        let is_far = |facts: &&DeviceFacts| facts.ordinal != held && !own.contains(&facts.ordinal);
        match devices.iter().find(is_far) {
            None => Ok(self),
            Some(DeviceFacts { ordinal, .. }) => {
                let why = format!("GPU {held} does not reach the memory of GPU {ordinal}");
                Err(Failure::refused("cuIpcOpenMemHandle", why))
            }
        }
    }

    fn mapped(driver: Arc<dyn Driver>, allocation: Allocation) -> Self {
        let Allocation { device, addr, bytes, .. } = allocation;
        let (origin, keeper) = (Origin::Mapped(allocation), Keeper::default());
        Self { driver, device, addr, bytes, origin, keeper }
    }

    fn reached_by_all(self) -> Result<Self, Failure> {
        let held = self.device;
        let reaches = |facts: &DeviceFacts| facts.ordinal == held || facts.reaches.contains(&held);
        match self.driver.devices().iter().find(|facts| !reaches(facts)) {
            None => Ok(self),
            Some(DeviceFacts { ordinal, .. }) => {
                let why = format!("GPU {ordinal} does not reach the memory of GPU {held}");
                Err(Failure::refused("import", why))
            }
        }
    }

    /// What another process of this host can map it by.
    ///
    /// # Errors
    /// The driver's own. Refused: it is another process's, or it was allocated in a way that has no
    /// handle.
    pub fn export(&self) -> Result<Export, Failure> {
        match &self.origin {
            Origin::Mapped(allocation) => {
                Ok(Export::Descriptor(self.driver.export(allocation)?, self.bytes))
            }
            Origin::Foreign(holding) => self.share(holding).map(Export::Handle),
            Origin::Opened(_) => Err(Failure::refused("export", "it is another process's")),
        }
    }

    fn share(&self, holding: &Holding) -> Result<Shared, Failure> {
        self.check_shareable()?;
        let handle = self.driver.share(holding)?;
        let offset = (self.addr - holding.addr) as usize;
        let facts = self.driver.devices().get(self.device as usize);
        let uuid = facts.map(|facts| facts.uuid).unwrap_or_default();
        Ok(Shared { handle, offset, bytes: self.bytes, uuid })
    }

    /// What other devices of this host reach it by. Somebody else's that ends within a page brings
    /// all of that page: whoever registers it names the bytes.
    ///
    /// # Errors
    /// The driver's own. Refused: it is another process's, or as [`Driver::dma_buf`].
    pub fn dma_buf(&self) -> Result<DmaBuf, Failure> {
        if self.is_opened() {
            return Err(Failure::refused("dma-buf", "it is another process's"));
        }
        let page = PAGE_BYTES as u64;
        let offset = self.addr % page;
        let len = offset.checked_add(self.bytes as u64);
        let len = len.and_then(|len| len.checked_next_multiple_of(page));
        let too_long =
            || Failure::refused("dma-buf", format!("{} bytes are no length", self.bytes));
        let len = len.ok_or_else(too_long)? as usize;
        let fd = self.driver.dma_buf(self.device, self.addr - offset, len)?;
        Ok(DmaBuf { fd, offset })
    }

    /// Whether other processes of this host can map it, as far as is known without trying.
    ///
    /// # Errors
    /// Refused: why not.
    pub fn check_shareable(&self) -> Result<(), Failure> {
        match self.origin {
            Origin::Foreign(Holding { is_shareable: false, .. }) => Err(Failure::refused(
                "cuIpcGetMemHandle",
                "this memory has no IPC handle: it was not allocated by cuMemAlloc or cudaMalloc \
                 (PyTorch: switch expandable_segments and cudaMallocAsync off)",
            )),
            _ => Ok(()),
        }
    }

    /// Whether it is another process's, which waits for it to be closed.
    pub(crate) fn is_opened(&self) -> bool {
        matches!(self.origin, Origin::Opened(_))
    }

    /// The device that holds it, by its number in this process.
    pub fn device(&self) -> u32 {
        self.device
    }

    /// Bytes; of what was allocated here, whole pages of the device.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether a device reaches it, by what the driver says of both. What was opened by a handle is
    /// there for the device alone whose context opened it.
    pub(crate) fn is_reached_by(&self, device: u32) -> bool {
        if device == self.device {
            return true;
        }
        let facts = self.driver.devices().get(device as usize);
        let reaches = facts.is_some_and(|facts| facts.reaches.contains(&self.device));
        let is_for_all = match self.origin {
            Origin::Mapped(_) => true,
            Origin::Foreign(holding) => holding.is_shareable,
            Origin::Opened(_) => false,
        };
        reaches && is_for_all
    }

    /// Copies between it and any memory that its device reaches, now.
    ///
    /// # Errors
    /// The driver's own.
    ///
    /// # Safety
    /// As [`Driver::copy`].
    pub(crate) unsafe fn copy(&self, from: u64, to: u64, len: usize) -> Result<(), Failure> {
        // SAFETY: the caller's promise.
        unsafe { self.driver.copy(self.device(), from, to, len) }
    }

    pub(crate) fn addr(&self) -> u64 {
        self.addr
    }

    /// Whose memory it is.
    pub fn driver(&self) -> &Arc<dyn Driver> {
        &self.driver
    }
}

/// The allocation that holds all of the range. What has no handle may be mapped in many pieces, as
/// PyTorch's expandable segments are: then it is the first, if the others follow it on its device.
fn covering(driver: &dyn Driver, foreign: &ForeignVram) -> Result<Holding, Failure> {
    let ForeignVram { device, addr, len } = *foreign;
    let refused = |why: String| Failure::refused("cuMemGetAddressRange", why);
    let no_range = || refused(format!("{len} bytes at {addr:#x} are no range"));
    let end = addr.checked_add(len as u64).filter(|_| len > 0).ok_or_else(no_range)?;
    let first = driver.holding(device, addr)?;
    let (mut held, mut at) = (first, addr);
    loop {
        if held.device != device {
            let on = held.device;
            return Err(refused(format!("{at:#x} is memory of cuda:{on}, not of cuda:{device}")));
        }
        let held_end = held.addr.saturating_add(held.bytes as u64);
        if held_end >= end {
            return Ok(first);
        }
        if first.is_shareable || held.is_shareable || held_end <= at {
            let room = held_end.saturating_sub(addr);
            return Err(refused(format!("its allocation ends {room} bytes behind {addr:#x}")));
        }
        at = held_end;
        held = driver.holding(device, at)?;
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        match &self.origin {
            // SAFETY: the allocation came from this driver and is freed here alone; whoever could
            // touch it held the region that owns it, so nobody is left.
            Origin::Mapped(allocation) => unsafe { self.driver.free(allocation) },
            // SAFETY: opened once for this memory, closed here alone, and touched by nobody, as
            // above.
            Origin::Opened(handle) => unsafe { self.driver.close(handle) },
            Origin::Foreign(_) => {}
        }
    }
}

/// Host memory that devices reach at its own address, until this is dropped.
#[derive(Debug)]
pub(crate) struct Pin {
    driver: Arc<dyn Driver>,
    addr: u64,
}

impl Pin {
    /// # Errors
    /// The driver's own.
    ///
    /// # Safety
    /// The range is mapped for as long as the pin lives.
    pub(crate) unsafe fn new(
        driver: &Arc<dyn Driver>,
        addr: u64,
        len: usize,
        is_read_only: bool,
    ) -> Result<Self, Failure> {
        // SAFETY: the caller's promise.
        unsafe { driver.pin(addr, len, is_read_only)? };
        Ok(Self { driver: driver.clone(), addr })
    }

    pub(crate) fn is_of(&self, driver: &Arc<dyn Driver>) -> bool {
        Arc::ptr_eq(&self.driver, driver)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.driver.unpin(self.addr);
    }
}
