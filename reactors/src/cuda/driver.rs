//! What a GPU's driver is asked for. The real one and the fake answer alike, so that all above
//! runs without a GPU.

use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::crossover::Crossovers;
use super::plan::Launch;
use crate::doorbell::Doorbell;

/// A call that the driver refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{call}: {name}")]
pub struct Failure {
    /// What was asked for, by the driver's name for it.
    pub call: &'static str,
    /// The driver's name for what went wrong.
    pub name: Arc<str>,
    /// What is known of its kind.
    pub kind: FailureKind,
}

/// What a failure means for whoever asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// There is no room on the device.
    NoMemory,
    /// The request is wrong, or the device can't do it.
    Refused,
    /// The device is lost, and with it all that was under way.
    Lost,
    /// Some of the memory was taken back before it was copied, and left out; all else is copied.
    Fenced,
}

impl Failure {
    /// A request that can't be done, in words.
    pub fn refused(call: &'static str, name: impl Into<Arc<str>>) -> Self {
        Self { call, name: name.into(), kind: FailureKind::Refused }
    }

    /// See [`FailureKind::Fenced`].
    pub(crate) fn fenced() -> Self {
        let name = "memory was taken back".into();
        Self { call: "copy", name, kind: FailureKind::Fenced }
    }
}

/// A GPU as this process sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceFacts {
    /// Its number in this process: `N` of the location `cuda:N`.
    pub ordinal: u32,
    /// The product's name.
    pub name: String,
    /// The same in every process of the host, whatever its number there.
    pub uuid: [u8; 16],
    /// Its address on the PCI bus, as sysfs writes it: `0000:1b:00.0`.
    pub pci: String,
    /// Memory in all.
    pub memory_bytes: u64,
    /// Multiprocessors: what `sm_budget` is a share of.
    pub multiprocessors: u32,
    /// Devices whose memory it reaches, by their numbers.
    pub reaches: Vec<u32>,
}

/// A range of device memory that this process can name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allocation {
    /// The device that holds it.
    pub device: u32,
    /// Its first byte, in this process.
    pub addr: u64,
    /// Bytes, whole pages of the device.
    pub bytes: usize,
    /// What the driver knows it by.
    pub handle: u64,
}

/// An allocation that somebody else of this process made, or a piece of one that is mapped by
/// itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holding {
    /// The device that holds it.
    pub device: u32,
    /// Its first byte.
    pub addr: u64,
    /// Bytes.
    pub bytes: usize,
    /// Whether [`Driver::share`] gives it away. Such memory is reached by every device that can;
    /// any other by its own device alone, for all that is known.
    pub is_shareable: bool,
}

/// What another process opens an allocation by: CUDA's legacy IPC handle (`CUipcMemHandle`).
pub type IpcHandle = [u8; 64];

/// An event of the driver's that the caller made (`CUevent`; `cudaEvent_t` is the same).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    pub(crate) device: u32,
    pub(crate) handle: u64,
}

impl Event {
    /// Vouches for an event of the GPU of this number in this process (`cuda:N`): made there, in
    /// the primary context, which PyTorch and the CUDA runtime use.
    ///
    /// # Safety
    /// The event must not be recorded while a graph is captured, nor destroyed before every
    /// transfer that names it is over: its outcome is there or, of one that was dropped, its leases
    /// are back.
    pub unsafe fn new(device: u32, event: *mut std::ffi::c_void) -> Self {
        Self { device, handle: event as u64 }
    }

    /// The GPU's number in this process.
    pub fn device(&self) -> u32 {
        self.device
    }
}

/// A driver of GPUs.
pub trait Driver: fmt::Debug + Send + Sync {
    /// The GPUs, by their numbers.
    fn devices(&self) -> &[DeviceFacts];

    /// From where on ranges are the copy engines'.
    fn crossovers(&self) -> &Crossovers;

    /// Bytes of a device's memory that are free.
    ///
    /// # Errors
    /// The driver's own.
    fn free_bytes(&self, device: u32) -> Result<u64, Failure>;

    /// Takes at least `len` bytes on a device, reachable from every device that can.
    ///
    /// # Errors
    /// The driver's own.
    fn allocate(&self, device: u32, len: usize) -> Result<Allocation, Failure>;

    /// A descriptor by which another process of this host can map the allocation.
    ///
    /// # Errors
    /// The driver's own.
    fn export(&self, allocation: &Allocation) -> Result<OwnedFd, Failure>;

    /// A descriptor by which other devices of this host, NICs say, reach a range of a device's
    /// memory (dma-buf). The memory stays as long as one of them holds it.
    ///
    /// # Errors
    /// The driver's own. Refused: the range is not of whole pages of the host, or others' writes
    /// into it would not be seen in their order.
    fn dma_buf(&self, device: u32, addr: u64, len: usize) -> Result<OwnedFd, Failure>;

    /// Maps another process's allocation of so many bytes here.
    ///
    /// # Errors
    /// It is none, it is shorter, or no device of this process reaches it.
    fn import(&self, fd: BorrowedFd<'_>, bytes: usize) -> Result<Allocation, Failure>;

    /// Unmaps an allocation; its memory goes with its last mapping in any process.
    ///
    /// # Safety
    /// It is this driver's, it is freed once, and nothing touches it any more.
    unsafe fn free(&self, allocation: &Allocation);

    /// The allocation of device memory that holds this address, whoever made it, as `device` sees
    /// it, which is supposed to have it; of another's the device alone is told.
    ///
    /// # Errors
    /// Refused: none does, or it is managed memory, which has no place.
    fn holding(&self, device: u32, addr: u64) -> Result<Holding, Failure>;

    /// A handle by which other processes of this host open such an allocation.
    ///
    /// # Errors
    /// The driver's own.
    fn share(&self, holding: &Holding) -> Result<IpcHandle, Failure>;

    /// Opens another process's allocation on a device of this one. Opened again it is the same, and
    /// is to be closed as often.
    ///
    /// # Errors
    /// It is none, it is gone, or it is this process's own.
    fn open(&self, device: u32, handle: &IpcHandle) -> Result<Allocation, Failure>;

    /// Ends [`Driver::open`].
    ///
    /// # Safety
    /// It was opened by this driver, is closed once for each time, and nothing touches it any more
    /// by way of this opening.
    unsafe fn close(&self, handle: &IpcHandle);

    /// What the caller's own code does with the GPUs, for tests and examples.
    #[cfg(feature = "sim")]
    #[doc(hidden)]
    fn outside(&self) -> &dyn super::outside::Outside;

    /// Copies between any two ranges of host or device memory, now, by a device that holds one.
    ///
    /// # Errors
    /// The driver's own; what the target holds then is undefined.
    ///
    /// # Safety
    /// Both ranges are alive; nobody has a reference to the target's bytes.
    unsafe fn copy(&self, device: u32, from: u64, to: u64, len: usize) -> Result<(), Failure>;

    /// Makes host memory reachable for the devices at its own address; where this process may only
    /// read it, for reading.
    ///
    /// # Errors
    /// The driver's own.
    ///
    /// # Safety
    /// The range is mapped, and stays so until it is unpinned.
    unsafe fn pin(&self, addr: u64, len: usize, is_read_only: bool) -> Result<(), Failure>;

    /// Ends [`Driver::pin`]. Nothing of it is under way.
    fn unpin(&self, addr: u64);

    /// A line of work on a device.
    ///
    /// # Errors
    /// The driver's own.
    fn stream(&self, device: u32) -> Result<Box<dyn Stream>, Failure>;
}

/// Work of one device that is done in its order.
pub trait Stream: fmt::Debug + Send {
    /// What is added from here on begins once the event has completed, as it was last recorded;
    /// at once where it never was.
    ///
    /// # Errors
    /// The driver's own: nothing waits.
    fn wait(&mut self, event: &Event) -> Result<(), Failure>;

    /// Records the event, which completes behind all that was added.
    ///
    /// # Errors
    /// The driver's own: it is as it was before.
    fn record(&mut self, event: &Event) -> Result<(), Failure>;

    /// Adds work behind what is there. Never waits for it.
    ///
    /// # Errors
    /// The driver's own: the work is not added.
    ///
    /// # Safety
    /// Both ends of every range stay alive until a mark behind it has passed, and nobody has a
    /// reference to the targets' bytes.
    unsafe fn enqueue(&mut self, launch: &Launch, blocks: u32) -> Result<(), Failure>;

    /// Sets a mark behind all that was added; marks count from 1.
    ///
    /// # Errors
    /// The driver's own.
    fn mark(&mut self) -> Result<u64, Failure>;

    /// The last mark that has passed: all work before it is done, and its memory is quiet.
    ///
    /// # Errors
    /// Lost: nothing of it touches any memory any more. Any other says nothing of the work.
    fn passed(&mut self) -> Result<u64, Failure>;

    /// Rings when all that was added is done.
    ///
    /// # Errors
    /// The driver's own: nobody will ring.
    fn ring_behind(&mut self, doorbell: &Arc<Doorbell>) -> Result<(), Failure>;

    /// Waits until all that was added is done.
    ///
    /// # Errors
    /// Lost: nothing of it touches any memory any more. Any other: it may be under way still.
    fn drain(&mut self) -> Result<(), Failure>;
}
