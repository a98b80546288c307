//! An allocation of device memory, and host memory that devices reach. Both let go of what they
//! hold when they are dropped.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::driver::{Allocation, DeviceFacts, Driver, Failure};

/// Device memory that this process can name: its own, or another process's that is mapped here.
#[derive(Debug)]
pub struct DeviceMemory {
    driver: Arc<dyn Driver>,
    allocation: Allocation,
}

impl DeviceMemory {
    /// Takes at least `len` bytes on a device.
    ///
    /// # Errors
    /// The driver's own.
    pub fn allocate(driver: Arc<dyn Driver>, device: u32, len: usize) -> Result<Self, Failure> {
        let allocation = driver.allocate(device, len)?;
        Ok(Self { driver, allocation })
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
        let memory = Self { driver, allocation };
        let held = memory.device();
        let reaches = |facts: &DeviceFacts| facts.ordinal == held || facts.reaches.contains(&held);
        match memory.driver.devices().iter().find(|facts| !reaches(facts)) {
            None => Ok(memory),
            Some(DeviceFacts { ordinal, .. }) => {
                let why = format!("GPU {ordinal} does not reach the memory of GPU {held}");
                Err(Failure::refused("import", why))
            }
        }
    }

    /// A descriptor by which another process of this host can map it.
    ///
    /// # Errors
    /// The driver's own.
    pub fn export(&self) -> Result<OwnedFd, Failure> {
        self.driver.export(&self.allocation)
    }

    /// The device that holds it, by its number in this process.
    pub fn device(&self) -> u32 {
        self.allocation.device
    }

    /// Bytes, whole pages of the device.
    pub fn bytes(&self) -> usize {
        self.allocation.bytes
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
        self.allocation.addr
    }

    /// Whose memory it is.
    pub fn driver(&self) -> &Arc<dyn Driver> {
        &self.driver
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        // SAFETY: the allocation came from this driver and is freed here alone; whoever could touch
        // it held the region that owns it, so nobody is left.
        unsafe { self.driver.free(&self.allocation) }
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
