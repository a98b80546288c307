//! What the caller's own code does with a GPU beside this library, as PyTorch would: memory, a
//! stream of work on it, and events. For tests and examples, which so need no `unsafe`.

use std::sync::Arc;

use super::driver::{Driver, Event, Failure, Stream};
use super::memory::DeviceMemory;
use super::plan::{Launch, Range};
use crate::foreign::ForeignVram;

/// A driver, as others in the process use it.
pub trait Outside {
    /// Allocates memory, by `cuMemAlloc` where it is to have an IPC handle, else in a way that has
    /// none.
    ///
    /// # Errors
    /// The driver's own.
    fn allocate(&self, device: u32, len: usize, is_shareable: bool) -> Result<u64, Failure>;

    /// Makes an event, which is never destroyed.
    ///
    /// # Errors
    /// The driver's own.
    fn event(&self, device: u32) -> Result<Event, Failure>;

    /// Whether all that was before its last recording is done; so it is where there was none.
    fn is_complete(&self, event: &Event) -> bool;

    /// Frees memory.
    ///
    /// # Safety
    /// It came from [`Outside::allocate`], is freed once, and nothing touches it any more.
    unsafe fn free(&self, device: u32, addr: u64);
}

/// Memory of a GPU that is never freed, so that registering it takes no promise.
#[derive(Debug, Clone)]
pub struct EternalVram {
    driver: Arc<dyn Driver>,
    device: u32,
    addr: u64,
    len: usize,
}

impl EternalVram {
    /// Leaks `len` bytes on a device, with an IPC handle or without.
    ///
    /// # Errors
    /// The driver's own.
    pub fn new(
        driver: Arc<dyn Driver>,
        device: u32,
        len: usize,
        is_shareable: bool,
    ) -> Result<Self, Failure> {
        let addr = driver.outside().allocate(device, len, is_shareable)?;
        Ok(Self { driver, device, addr, len })
    }

    /// What isn't there is claimed to be, for tests of what is said to it.
    ///
    /// # Panics
    /// It is there.
    pub fn claim(driver: Arc<dyn Driver>, device: u32, addr: u64, len: usize) -> Self {
        let claimed = Self { driver, device, addr, len };
        let found = DeviceMemory::foreign(claimed.driver.clone(), &claimed.foreign());
        assert!(found.is_err(), "somebody may free it");
        claimed
    }

    /// `len` bytes of it from `offset` on, to be registered.
    ///
    /// # Panics
    /// It has no such range.
    pub fn part(&self, offset: usize, len: usize) -> ForeignVram {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len), "it ends before");
        // SAFETY: the memory is never freed.
        unsafe { ForeignVram::new(self.device, self.addr + offset as u64, len) }
    }

    /// All of it, to be registered.
    pub fn foreign(&self) -> ForeignVram {
        self.part(0, self.len)
    }

    /// Its first byte's address.
    pub fn addr(&self) -> u64 {
        self.addr
    }

    /// Whose memory it is.
    pub fn driver(&self) -> &Arc<dyn Driver> {
        &self.driver
    }

    /// Frees it after all.
    ///
    /// # Safety
    /// No region is made of it any more, nor of a clone.
    pub unsafe fn free(self) {
        // SAFETY: it was allocated there; the rest is the caller's promise.
        unsafe { self.driver.outside().free(self.device, self.addr) };
    }
}

/// A stream of the caller's on a GPU.
#[derive(Debug)]
pub struct Work {
    stream: Box<dyn Stream>,
}

impl Work {
    /// A new stream.
    ///
    /// # Errors
    /// The driver's own.
    pub fn new(driver: &Arc<dyn Driver>, device: u32) -> Result<Self, Failure> {
        Ok(Self { stream: driver.stream(device)? })
    }

    /// What a layer's kernel would do: computes all of `from` into `to`, by a copy.
    ///
    /// # Errors
    /// The driver's own.
    ///
    /// # Panics
    /// `to` has no such range.
    pub fn compute(
        &mut self,
        from: &EternalVram,
        to: &EternalVram,
        at: usize,
    ) -> Result<(), Failure> {
        assert!(at.checked_add(from.len).is_some_and(|end| end <= to.len), "it ends before");
        let range = Range { from: from.addr, to: to.addr + at as u64, len: from.len };
        // SAFETY: neither is ever freed, and nobody has references to a GPU's memory.
        unsafe { self.stream.enqueue(&Launch::Copy(range), 1) }
    }

    /// Records an event behind what was added.
    ///
    /// # Errors
    /// The driver's own.
    pub fn record(&mut self, event: &Event) -> Result<(), Failure> {
        self.stream.record(event)
    }

    /// Has what is added from here on wait for an event.
    ///
    /// # Errors
    /// The driver's own.
    pub fn wait(&mut self, event: &Event) -> Result<(), Failure> {
        self.stream.wait(event)
    }

    /// Waits until all that was added is done.
    ///
    /// # Errors
    /// The driver's own.
    pub fn finish(&mut self) -> Result<(), Failure> {
        self.stream.drain()
    }
}
