//! What a GPU's driver is asked for. The real one and the fake answer alike, so that all above
//! runs without a GPU.

use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

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

/// A driver of GPUs.
pub trait Driver: fmt::Debug + Send + Sync {
    /// The GPUs, by their numbers.
    fn devices(&self) -> &[DeviceFacts];

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
