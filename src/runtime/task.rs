//! The futures of one shard. Their wakers may be used and dropped on any thread: a wake queues the
//! task for the shard's next turn and rings its doorbell, and the shard's loop polls it. So the
//! executor underneath never lends its own, single-threaded task states to other threads.
//! A panic ends the task that panicked and nothing else.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::task::{Context, Poll, Wake, Waker};

use kvrail_reactors::doorbell::Doorbell;
use slab::Slab;

use crate::limits::TURN_BURST;

/// What the shard keeps of its futures.
pub(crate) struct Tasks {
    slots: Slab<Slot>,
    ready: mpsc::Receiver<Arc<Handle>>,
    /// Taken from `ready` by [`Tasks::is_idle`], to be run first.
    next: Option<Arc<Handle>>,
    /// Holds each task at most once ([`Handle::queued`]), so it is bounded by their number.
    queue: mpsc::Sender<Arc<Handle>>,
    doorbell: Arc<Doorbell>,
}

struct Slot {
    handle: Arc<Handle>,
    waker: Waker,
    future: Pin<Box<dyn Future<Output = ()>>>,
}

/// What wakers share with the shard.
struct Handle {
    key: usize,
    queued: AtomicBool,
    queue: mpsc::Sender<Arc<Handle>>,
    doorbell: Arc<Doorbell>,
}

impl Wake for Handle {
    fn wake(self: Arc<Self>) {
        Self::wake_by_ref(&self);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            // An error means the shard is gone, and the future with it.
            let _ = self.queue.send(self.clone());
            self.doorbell.ring();
        }
    }
}

impl Tasks {
    /// No tasks yet; wakes ring `doorbell`.
    pub(crate) fn new(doorbell: Arc<Doorbell>) -> Self {
        let (queue, ready) = mpsc::channel();
        Self { slots: Slab::new(), ready, next: None, queue, doorbell }
    }

    /// Adds `future`, to be polled in the next turn.
    pub(crate) fn spawn(&mut self, future: impl Future<Output = ()> + 'static) {
        let entry = self.slots.vacant_entry();
        let handle = Arc::new(Handle {
            key: entry.key(),
            queued: AtomicBool::new(false),
            queue: self.queue.clone(),
            doorbell: self.doorbell.clone(),
        });
        handle.wake_by_ref();
        let waker = Waker::from(handle.clone());
        entry.insert(Slot { handle, waker, future: Box::pin(future) });
    }

    /// Polls at most [`TURN_BURST`] tasks that were woken; returns how many. `panicked` is told of
    /// each that panicked.
    pub(crate) fn run(&mut self, mut panicked: impl FnMut(String)) -> usize {
        for polled in 0..TURN_BURST {
            let Some(handle) = self.next.take().or_else(|| self.ready.try_recv().ok()) else {
                return polled;
            };
            if let Err(text) = self.poll(&handle) {
                panicked(text);
            }
        }
        TURN_BURST
    }

    /// Whether no task is woken.
    pub(crate) fn is_idle(&mut self) -> bool {
        if self.next.is_none() {
            self.next = self.ready.try_recv().ok();
        }
        self.next.is_none()
    }

    /// Drops every future, whatever it waits for. `panicked` is told of each drop that panicked.
    pub(crate) fn clear(&mut self, mut panicked: impl FnMut(String)) {
        for slot in self.slots.drain() {
            if let Err(text) = unwinding(|| drop(slot)) {
                panicked(text);
            }
        }
    }

    fn poll(&mut self, handle: &Arc<Handle>) -> Result<(), String> {
        // Before the poll, so that a wake during it queues the task again. The swap also takes
        // over what the waker's thread did before its own swap found the flag up.
        handle.queued.swap(false, Ordering::AcqRel);
        let slot = match self.slots.get_mut(handle.key) {
            Some(slot) if Arc::ptr_eq(&slot.handle, handle) => slot,
            _ => return Ok(()), // it ended, and its waker lives on
        };
        let mut context = Context::from_waker(&slot.waker);
        let polled = unwinding(|| slot.future.as_mut().poll(&mut context));
        if let Ok(Poll::Pending) = polled {
            return Ok(());
        }
        let slot = self.slots.remove(handle.key);
        let dropped = unwinding(|| drop(slot));
        polled.map(drop).and(dropped)
    }
}

/// Runs `future`; a panic while it is polled or dropped is `Err` with the panic's text.
pub(crate) async fn caught<F: Future>(future: F) -> Result<F::Output, String> {
    let mut slot = Some(Box::pin(future));
    poll_fn(move |context| {
        let Some(future) = slot.as_mut() else { return Poll::Pending };
        let polled = unwinding(|| future.as_mut().poll(context));
        if let Ok(Poll::Pending) = polled {
            return Poll::Pending;
        }
        let dropped = unwinding(|| slot = None);
        Poll::Ready(match polled {
            Ok(Poll::Ready(output)) => dropped.map(|()| output),
            Ok(Poll::Pending) => return Poll::Pending,
            Err(text) => Err(text),
        })
    })
    .await
}

/// Calls `f`; a panic is `Err` with its text.
pub(crate) fn unwinding<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    // Unwind safety: whoever panicked is dropped by the callers and never used again.
    catch_unwind(AssertUnwindSafe(f)).map_err(|payload| {
        if let Some(text) = payload.downcast_ref::<&str>() {
            return (*text).to_owned();
        }
        match payload.downcast::<String>() {
            Ok(text) => *text,
            Err(payload) => {
                // Its drop is the panicking code's and may panic too, outside of any catch.
                std::mem::forget(payload);
                "a panic without a text".to_owned()
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::rc::Rc;

    fn tasks() -> Tasks {
        Tasks::new(Arc::new(Doorbell::new().unwrap()))
    }

    fn none(text: String) {
        panic!("unexpected panic: {text}")
    }

    #[test]
    fn a_task_runs_when_woken_and_only_then() {
        let mut tasks = tasks();
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let seen = Rc::new(Cell::new(0));
        let seen_inside = seen.clone();
        tasks.spawn(async move { seen_inside.set(receiver.await.unwrap()) });
        assert_eq!(tasks.run(none), 1);
        assert!(tasks.is_idle());
        std::thread::spawn(move || sender.send(7).unwrap()).join().unwrap();
        assert!(!tasks.is_idle());
        assert_eq!(tasks.run(none), 1);
        assert_eq!(seen.get(), 7);
        assert!(tasks.slots.is_empty());
    }

    #[test]
    fn a_task_that_wakes_itself_leaves_the_others_their_turn() {
        let mut tasks = tasks();
        let ran = Rc::new(Cell::new(false));
        tasks.spawn(async {
            loop {
                futures_lite::future::yield_now().await;
            }
        });
        let ran_inside = ran.clone();
        tasks.spawn(async move { ran_inside.set(true) });
        assert_eq!(tasks.run(none), TURN_BURST, "bounded");
        assert!(ran.get());
    }

    #[test]
    fn a_panic_in_poll_or_drop_ends_one_task() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("in drop")
            }
        }
        let mut tasks = tasks();
        let mut texts = Vec::new();
        tasks.spawn(async { panic!("in poll {}", 1) });
        tasks.spawn(async { drop(Bomb) });
        tasks.spawn(async { std::panic::panic_any(5) });
        let bomb = Bomb;
        tasks.spawn(async move {
            let _bomb = bomb;
            std::future::pending().await
        });
        tasks.run(|text| texts.push(text));
        assert_eq!(texts, ["in poll 1", "in drop", "a panic without a text"]);
        tasks.clear(|text| texts.push(text));
        assert_eq!(texts.last().unwrap(), "in drop");
        assert_eq!(texts.len(), 4);
    }

    #[test]
    fn a_waker_outlives_its_task_and_its_shard() {
        let mut tasks = tasks();
        let kept = Rc::new(Cell::new(None));
        let kept_inside = kept.clone();
        tasks.spawn(async move {
            let waker = poll_fn(|context| Poll::Ready(context.waker().clone())).await;
            kept_inside.set(Some(waker));
        });
        tasks.run(none);
        let waker = kept.take().unwrap();
        waker.wake_by_ref();
        tasks.spawn(std::future::pending()); // takes the same slot
        assert_eq!(tasks.run(none), 2);
        drop(tasks);
        waker.wake();
    }
}
