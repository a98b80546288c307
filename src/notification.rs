//! Messages that peers sent, in a queue with two bounds: whoever sends more than is read is
//! told so, and costs us nothing.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use crate::limits::{NOTIFICATIONS_MAX, NOTIFICATIONS_MAX_BYTES};
use crate::{Error, Result};

/// A message from a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notification {
    /// The name that the sender gave; not verified.
    pub from: String,
    /// What it said.
    pub bytes: Vec<u8>,
}

/// The queue of an engine's notifications.
#[derive(Debug, Default)]
pub(crate) struct Notifications {
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    messages: VecDeque<Notification>,
    bytes: usize,
    waiters: Vec<Waker>,
}

impl Notifications {
    /// Queues a message, or says Busy where nobody reads them.
    pub(crate) fn push(&self, message: Notification) -> Result<()> {
        let mut queue = self.lock();
        let bytes = message.from.len() + message.bytes.len();
        if queue.messages.len() >= NOTIFICATIONS_MAX
            || queue.bytes + bytes > NOTIFICATIONS_MAX_BYTES
        {
            return Err(Error::busy(format!(
                "{} notifications of {} bytes wait to be read",
                queue.messages.len(),
                queue.bytes
            )));
        }
        queue.bytes += bytes;
        queue.messages.push_back(message);
        let waiters = std::mem::take(&mut queue.waiters);
        drop(queue);
        waiters.into_iter().for_each(Waker::wake);
        Ok(())
    }

    pub(crate) fn pop(&self) -> Option<Notification> {
        self.lock().pop()
    }

    pub(crate) async fn next(&self) -> Notification {
        poll_fn(|context| {
            let mut queue = self.lock();
            if let Some(message) = queue.pop() {
                return Poll::Ready(message);
            }
            if !queue.waiters.iter().any(|waker| waker.will_wake(context.waker())) {
                queue.waiters.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn pop(&mut self) -> Option<Notification> {
        let message = self.messages.pop_front()?;
        self.bytes -= message.from.len() + message.bytes.len();
        Some(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(len: usize) -> Notification {
        Notification { from: "peer".into(), bytes: vec![0; len] }
    }

    #[test]
    fn both_bounds_hold_and_reading_makes_room() {
        let queue = Notifications::default();
        for _ in 0..NOTIFICATIONS_MAX {
            queue.push(message(1)).unwrap();
        }
        assert_eq!(queue.push(message(1)).unwrap_err().kind(), crate::ErrorKind::Busy);
        while queue.pop().is_some() {}
        queue.push(message(NOTIFICATIONS_MAX_BYTES - 4)).unwrap();
        assert!(queue.push(message(1)).is_err());
        queue.pop().unwrap();
        queue.push(message(1)).unwrap();
    }

    #[test]
    fn a_reader_waits_for_the_next() {
        let queue = Notifications::default();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| futures_lite::future::block_on(queue.next()));
            queue.push(message(3)).unwrap();
            assert_eq!(reader.join().unwrap(), message(3));
        });
    }
}
