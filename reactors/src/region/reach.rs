//! Whether GPUs reach a region of host memory at its own address: pinned when a GPU is first to
//! copy it, and let go of before its owner may free it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::cuda::{Driver, Failure, Pin};

/// See above.
#[derive(Debug, Default)]
pub(super) struct Reach {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Untried,
    Pinned(Pin),
    Refused(Failure),
    Over,
}

impl Reach {
    /// Pins the memory, unless that was tried before.
    ///
    /// # Errors
    /// The driver's own, each time; refused behind `end`.
    ///
    /// # Safety
    /// The range is mapped until `end` returns.
    pub(super) unsafe fn pin(
        &self,
        driver: &Arc<dyn Driver>,
        addr: u64,
        len: usize,
    ) -> Result<(), Failure> {
        let mut state = self.lock();
        if let State::Untried = *state {
            // SAFETY: the caller's promise; `end` drops the pin.
            let pin = unsafe { Pin::new(driver, addr, len, false) };
            *state = pin.map_or_else(State::Refused, State::Pinned);
        }
        match &*state {
            State::Pinned(_) => Ok(()),
            State::Refused(failure) => Err(failure.clone()),
            State::Untried | State::Over => Err(Failure::refused("pin", "it was taken back")),
        }
    }

    pub(super) fn is_pinned_for(&self, driver: &Arc<dyn Driver>) -> bool {
        matches!(&*self.lock(), State::Pinned(pin) if pin.is_of(driver))
    }

    /// Lets go of the memory, for good. Nothing of it is under way.
    pub(super) fn end(&self) {
        *self.lock() = State::Over;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
