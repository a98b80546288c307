//! Counters at the receiver: peers advance them behind their data, and the receiver awaits them.
//! "Layer 7 has arrived" is a counter that reached its number of slices.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Poll, Waker};

use crate::limits::COUNTERS_MAX;
use crate::{Error, Result};

/// The counters that peers may advance: those with a living [`Counter`].
#[derive(Debug, Default)]
pub(crate) struct Counters {
    by_id: Mutex<HashMap<u64, Weak<State>>>,
}

#[derive(Debug)]
struct State {
    progress: Mutex<Progress>,
}

#[derive(Debug, Default)]
struct Progress {
    value: u64,
    waiters: Vec<(u64, Waker)>,
}

impl Counters {
    /// Opens the counter `id`, at 0 or where another handle has it.
    pub(crate) fn open(&self, id: u64) -> Result<Counter> {
        let mut by_id = lock(&self.by_id);
        if let Some(state) = by_id.get(&id).and_then(Weak::upgrade) {
            return Ok(Counter { state });
        }
        if by_id.len() >= COUNTERS_MAX {
            by_id.retain(|_, state| state.strong_count() > 0);
            if by_id.len() >= COUNTERS_MAX {
                return Err(Error::busy(format!("{COUNTERS_MAX} counters are open; drop some")));
            }
        }
        let state = Arc::new(State { progress: Mutex::default() });
        by_id.insert(id, Arc::downgrade(&state));
        Ok(Counter { state })
    }

    pub(crate) fn is_open(&self, id: u64) -> bool {
        lock(&self.by_id).get(&id).is_some_and(|state| state.strong_count() > 0)
    }

    /// Advances counter `id`; `false` where nobody has opened it.
    pub(crate) fn advance(&self, id: u64, amount: u64) -> bool {
        let Some(state) = lock(&self.by_id).get(&id).and_then(Weak::upgrade) else {
            return false;
        };
        let mut progress = lock(&state.progress);
        progress.value = progress.value.saturating_add(amount);
        let value = progress.value;
        let (reached, waiting) =
            std::mem::take(&mut progress.waiters).into_iter().partition(|(at, _)| *at <= value);
        progress.waiters = waiting;
        drop(progress);
        let reached: Vec<(u64, Waker)> = reached;
        reached.into_iter().for_each(|(_, waker)| waker.wake());
        true
    }
}

/// A counter that kvrail peers advance by [`Batch::count`](crate::Batch::count). Clones share it.
/// Open it before peers use it: an advance of a counter that nobody has open is refused.
#[derive(Debug, Clone)]
pub struct Counter {
    state: Arc<State>,
}

impl Counter {
    /// What it has reached. Saturates at `u64::MAX`.
    pub fn value(&self) -> u64 {
        lock(&self.state.progress).value
    }

    /// Waits until it is `target` at least; returns what it is then. All data of the batches
    /// that brought it there is in place.
    pub async fn reached(&self, target: u64) -> u64 {
        poll_fn(|context| {
            let mut progress = lock(&self.state.progress);
            if progress.value >= target {
                return Poll::Ready(progress.value);
            }
            let waker = context.waker();
            let known = |(at, other): &(u64, Waker)| *at == target && other.will_wake(waker);
            if !progress.waiters.iter().any(known) {
                progress.waiters.push((target, waker.clone()));
            }
            Poll::Pending
        })
        .await
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use futures_lite::future::{block_on, poll_once};

    use super::*;

    #[test]
    fn a_waiter_wakes_at_its_number_and_not_before() {
        let counters = Counters::default();
        let counter = counters.open(7).unwrap();
        assert!(counters.advance(7, 2));
        assert_eq!(block_on(poll_once(counter.reached(3))), None);
        let waiting = std::thread::spawn({
            let counter = counter.clone();
            move || block_on(counter.reached(5))
        });
        assert!(counters.advance(7, 4));
        assert_eq!(waiting.join().unwrap(), 6);
        assert_eq!(counters.open(7).unwrap().value(), 6, "handles share it");
        assert!(counters.advance(7, u64::MAX));
        assert_eq!(counter.value(), u64::MAX);
    }

    #[test]
    fn only_open_counters_advance() {
        let counters = Counters::default();
        assert!(!counters.advance(1, 1));
        drop(counters.open(1).unwrap());
        assert!(!counters.advance(1, 1));
        assert_eq!(counters.open(1).unwrap().value(), 0);
    }
}
