//! Other processes' allocations that are open here. A driver opens a handle once in a process, and
//! many regions may lie in one allocation: it is closed when the last of them is.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::driver::{Allocation, Failure, IpcHandle};

/// See above. As many as there are mapped regions at most, whose number is bounded.
#[derive(Debug, Default)]
pub(super) struct Opened(Mutex<HashMap<IpcHandle, Open>>);

#[derive(Debug)]
struct Open {
    allocation: Allocation,
    uses: usize,
}

impl Opened {
    /// The handle's allocation: as it is open already, else by `open`, which nobody calls
    /// meanwhile.
    ///
    /// # Errors
    /// That of `open`.
    pub(super) fn open(
        &self,
        handle: &IpcHandle,
        open: impl FnOnce() -> Result<Allocation, Failure>,
    ) -> Result<Allocation, Failure> {
        let mut opened = self.lock();
        if let Some(known) = opened.get_mut(handle) {
            known.uses += 1;
            return Ok(known.allocation.clone());
        }
        let allocation = open()?;
        opened.insert(*handle, Open { allocation: allocation.clone(), uses: 1 });
        Ok(allocation)
    }

    /// One that opened it needs it no more; `close` is called behind the last.
    pub(super) fn close(&self, handle: &IpcHandle, close: impl FnOnce(&Allocation)) {
        let mut opened = self.lock();
        let Some(known) = opened.get_mut(handle) else { return };
        known.uses -= 1;
        if known.uses == 0
            && let Some(Open { allocation, .. }) = opened.remove(handle)
        {
            // Under the lock: nobody opens it before it is closed.
            close(&allocation);
        }
    }

    /// How many are open.
    #[cfg(any(test, feature = "sim"))]
    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpcHandle, Open>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_is_opened_once_and_closed_behind_its_last_use() {
        let (opened, handle) = (Opened::default(), [7; 64]);
        let allocation = Allocation { device: 1, addr: 4096, bytes: 10, handle: 0 };
        assert!(opened.open(&handle, || Err(Failure::refused("open", "a test"))).is_err());
        assert_eq!(opened.open(&handle, || Ok(allocation.clone())), Ok(allocation.clone()));
        let known = opened.open(&handle, || panic!("it is open"));
        assert_eq!(known, Ok(allocation.clone()));
        opened.close(&handle, |_| panic!("it is used"));
        let mut closed = None;
        opened.close(&handle, |known| closed = Some(known.clone()));
        assert_eq!(closed, Some(allocation));
        opened.close(&handle, |_| panic!("it is closed"));
        assert_eq!(opened.len(), 0);
    }
}
