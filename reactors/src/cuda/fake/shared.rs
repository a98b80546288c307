//! What others of a fake GPU's process have: memory, how other processes' fakes open it (a handle
//! says where in /proc its memfd is), and events.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use super::super::driver::{Allocation, Driver, Event, Failure, Holding, IpcHandle};
use super::super::outside::Outside;
use super::{EventState, Fake, Owner, PAGE_BYTES, Shared, Storage, device_of, file, lock, refused};
use crate::region;

/// A fake's "processes" are its clones of one memory, since tests have several in one process.
fn process(fake: &Fake) -> u64 {
    Arc::as_ptr(&fake.shared) as u64
}

impl Fake {
    pub(super) fn held(&self, addr: u64) -> Result<Holding, Failure> {
        let unknown = |why: &str| Failure::refused("cuPointerGetAttribute", why);
        if self.shared.faults().no_holding {
            return Err(unknown("it was asked to fail"));
        }
        let storage = lock(&self.shared.storage);
        let below = storage.range(..=addr).next_back();
        let found = below.filter(|(name, storage)| addr - **name < storage.bytes as u64);
        let (name, Storage { device, bytes, owner, .. }) =
            found.ok_or_else(|| unknown("no memory of a GPU's"))?;
        let (name, device, bytes) = (*name, *device, *bytes);
        let is_shareable = *owner == Owner::Outside { is_shareable: true };
        if is_shareable {
            return Ok(Holding { device, addr: name, bytes, is_shareable });
        }
        // As expandable segments are: mapped piece by piece.
        let piece = PAGE_BYTES as u64;
        let addr = name + (addr - name) / piece * piece;
        Ok(Holding { device, addr, bytes: PAGE_BYTES, is_shareable })
    }

    pub(super) fn shared(&self, holding: &Holding) -> Result<IpcHandle, Failure> {
        let storage = lock(&self.shared.storage);
        let found = storage.get(&holding.addr).filter(|_| !self.shared.faults().no_share);
        let missing = || Failure::refused("cuIpcGetMemHandle", "CUDA_ERROR_INVALID_VALUE");
        let fd = found.ok_or_else(missing)?.file.as_raw_fd();
        let mut handle = [0; 64];
        let words = [process(self), u64::from(std::process::id()), fd as u64];
        for (bytes, word) in handle.as_chunks_mut().0.iter_mut().zip(words) {
            *bytes = word.to_le_bytes();
        }
        Ok(handle)
    }

    pub(super) fn for_devices(
        &self,
        device: u32,
        addr: u64,
        len: usize,
    ) -> Result<OwnedFd, Failure> {
        let call = "cuMemGetHandleForAddressRange";
        let no = |why: &str| Failure::refused(call, why);
        if self.shared.faults().no_dma_buf {
            return Err(no("it was asked to fail"));
        }
        let page = region::PAGE_BYTES;
        if !addr.is_multiple_of(page as u64) || !len.is_multiple_of(page) || len == 0 {
            return Err(no("CUDA_ERROR_INVALID_VALUE"));
        }
        let storage = lock(&self.shared.storage);
        let below = storage.range(..=addr).next_back();
        let (name, storage) = below.ok_or_else(|| no("no memory of a GPU's"))?;
        let is_inside = (addr - name) as usize + len <= storage.bytes;
        if !is_inside || storage.device != device {
            return Err(no("no memory of this GPU's"));
        }
        lock(&self.shared.dma_bufs).push((addr, len));
        storage.file.try_clone().map(Into::into).map_err(|error| refused(call, &error))
    }

    pub(super) fn open_shared(
        &self,
        device: u32,
        handle: &IpcHandle,
    ) -> Result<Allocation, Failure> {
        let no = |why: &str| Failure::refused("cuIpcOpenMemHandle", why);
        let word = |k: usize| u64::from_le_bytes(handle.as_chunks().0[k]);
        if self.shared.faults().no_import {
            return Err(no("it was asked to fail"));
        }
        if word(0) == process(self) {
            return Err(no("CUDA_ERROR_INVALID_CONTEXT"));
        }
        let path = format!("/proc/{}/fd/{}", word(1), word(2));
        let opened = OpenOptions::new().read(true).write(true).open(path);
        let file: File = opened.map_err(|error| refused("cuIpcOpenMemHandle", &error))?;
        if device_of(&file) != Some(device) {
            return Err(no("it is another device's"));
        }
        let bytes = file.metadata().map_err(|error| refused("cuIpcOpenMemHandle", &error))?.len();
        self.map(file, bytes as usize, device, Owner::Opened)
    }
}

impl Shared {
    pub(super) fn event(&self, event: &Event) -> Result<EventState, Failure> {
        let missing = || Failure::refused("cuEventQuery", "CUDA_ERROR_INVALID_HANDLE");
        lock(&self.events).get(event.handle as usize).copied().ok_or_else(missing)
    }

    pub(super) fn change(&self, event: &Event, change: impl FnOnce(&mut EventState)) {
        if let Some(state) = lock(&self.events).get_mut(event.handle as usize) {
            change(state);
        }
    }
}

impl Outside for Fake {
    fn allocate(&self, device: u32, len: usize, is_shareable: bool) -> Result<u64, Failure> {
        self.device(device)?;
        let bytes = len.next_multiple_of(PAGE_BYTES);
        let file = file(device, bytes).map_err(|error| refused("cuMemAlloc", &error))?;
        let owner = Owner::Outside { is_shareable };
        Ok(self.map(file, bytes, device, owner)?.addr)
    }

    fn event(&self, device: u32) -> Result<Event, Failure> {
        self.device(device)?;
        let mut events = lock(&self.shared.events);
        events.push(EventState::default());
        Ok(Event { device, handle: events.len() as u64 - 1 })
    }

    fn is_complete(&self, event: &Event) -> bool {
        let state = self.shared.event(event);
        state.is_ok_and(|state| state.recorded == state.completed)
    }

    unsafe fn free(&self, device: u32, addr: u64) {
        let allocation = Allocation { device, addr, bytes: 0, handle: 0 };
        // SAFETY: the caller's promise.
        unsafe { Driver::free(self, &allocation) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::cuda::DeviceMemory;

    #[test]
    fn other_devices_get_whole_pages_of_what_is_there() {
        let fake = Arc::new(Fake::new(2, 1 << 20));
        let memory = DeviceMemory::allocate(fake.clone(), 1, PAGE_BYTES).unwrap();
        // SAFETY: both ranges are alive, and nobody refers to the GPU's.
        unsafe { fake.copy(1, b"bytes".as_ptr() as u64, memory.addr(), 5) }.unwrap();
        let given = memory.dma_buf().unwrap();
        let mut found = [0; 5];
        File::from(given.fd).read_exact_at(&mut found, given.offset).unwrap();
        assert_eq!(&found, b"bytes");
        let page = region::PAGE_BYTES;
        let is_given = |device, addr, len| fake.dma_buf(device, addr, len).is_ok();
        assert!(is_given(1, memory.addr() + page as u64, page));
        assert!(!is_given(0, memory.addr(), page), "it is another GPU's");
        assert!(!is_given(1, memory.addr() + 8, page) && !is_given(1, memory.addr(), 8));
        assert!(!is_given(1, memory.addr(), PAGE_BYTES + page), "it ends before");
        assert_eq!(fake.dma_bufs().len(), 2);
        fake.break_with(|faults| faults.no_dma_buf = true);
        assert!(memory.dma_buf().is_err());
    }
}
