//! What stands for the standard library's bounded channel where the model checker runs, which can't
//! look into that. It orders no more than a channel does: a message happens before its receipt. A
//! lock around both ends would order their other steps too, and hide a fence that is missing.

use std::sync::Arc;
pub(super) use std::sync::mpsc::TrySendError;

use kvrail_reactors::sync::{AtomicBool, Ordering};
use loom::sync::Mutex;

struct Ring<T> {
    slots: Vec<Slot<T>>,
    /// The next slot to be filled. Senders take turns by it, and the receiver never looks at it.
    tail: Mutex<usize>,
}

struct Slot<T> {
    is_full: AtomicBool,
    /// Never waited for: `is_full` says whose it is.
    message: std::sync::Mutex<Option<T>>,
}

pub(super) struct SyncSender<T>(Arc<Ring<T>>);

pub(super) struct Receiver<T> {
    ring: Arc<Ring<T>>,
    head: usize,
}

pub(super) fn sync_channel<T>(capacity: usize) -> (SyncSender<T>, Receiver<T>) {
    let slot = |_| Slot { is_full: AtomicBool::new(false), message: None.into() };
    let slots = (0..capacity).map(slot).collect();
    let ring = Arc::new(Ring { slots, tail: Mutex::new(0) });
    (SyncSender(ring.clone()), Receiver { ring, head: 0 })
}

impl<T> SyncSender<T> {
    pub(super) fn try_send(&self, message: T) -> Result<(), TrySendError<T>> {
        let mut tail = self.0.tail.lock().expect("nobody panics in there");
        let slot = &self.0.slots[*tail % self.0.slots.len()];
        if slot.is_full.load(Ordering::Acquire) {
            return Err(TrySendError::Full(message));
        }
        *slot.message.lock().expect("nobody panics in there") = Some(message);
        slot.is_full.store(true, Ordering::Release);
        *tail += 1;
        Ok(())
    }
}

impl<T> Clone for SyncSender<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Receiver<T> {
    pub(super) fn try_recv(&mut self) -> Result<T, Empty> {
        let slot = &self.ring.slots[self.head % self.ring.slots.len()];
        if !slot.is_full.load(Ordering::Acquire) {
            return Err(Empty);
        }
        let message = slot.message.lock().expect("nobody panics in there").take();
        slot.is_full.store(false, Ordering::Release);
        self.head += 1;
        message.ok_or(Empty)
    }
}

/// Nothing is queued.
#[derive(Debug)]
pub(super) struct Empty;
