//! From any thread to one shard: a bounded queue that its reader polls, and that rings the shard's
//! doorbell only while it sleeps.

#[cfg(all(test, kvrail_loom))]
mod models;
#[cfg(kvrail_loom)]
mod queue;

use std::sync::Arc;
#[cfg(not(kvrail_loom))]
use std::sync::mpsc;

use kvrail_reactors::doorbell::{Doorbell, EventFd, Ringer};
use kvrail_reactors::sync::{AtomicBool, Ordering};

#[cfg(kvrail_loom)]
use self::queue as mpsc;

use crate::canary::{self, Canary};

/// An inbox for `capacity` messages whose reader sleeps on `doorbell`.
pub(crate) fn inbox<T, R: Ringer>(
    capacity: usize,
    doorbell: Arc<Doorbell<R>>,
) -> (Sender<T, R>, Receiver<T>) {
    let (sender, receiver) = mpsc::sync_channel(capacity);
    let closed = Arc::new(AtomicBool::new(false));
    (
        Sender { queue: sender, closed: closed.clone(), doorbell },
        Receiver { queue: receiver, closed, next: None },
    )
}

/// Any thread's end.
pub(crate) struct Sender<T, R = EventFd> {
    queue: mpsc::SyncSender<T>,
    closed: Arc<AtomicBool>,
    doorbell: Arc<Doorbell<R>>,
}

/// Why a message was not taken; it comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError<T> {
    /// The queue is full: send again later.
    #[error("the queue is full: send again later")]
    Full(T),
    /// The reader was stopped, panicked, or its shard ended.
    #[error("the reader is gone")]
    Closed(T),
}

impl<T> SendError<T> {
    /// The message that was not taken.
    pub fn into_inner(self) -> T {
        match self {
            Self::Full(message) | Self::Closed(message) => message,
        }
    }
}

impl<T, R: Ringer> Sender<T, R> {
    /// Queues `message` and wakes the reader if it sleeps.
    pub(crate) fn send(&self, message: T) -> Result<(), SendError<T>> {
        if self.closed.load(Ordering::Acquire) {
            return Err(SendError::Closed(message));
        }
        self.queue.try_send(message).map_err(|error| match error {
            mpsc::TrySendError::Full(message) => SendError::Full(message),
            mpsc::TrySendError::Disconnected(message) => SendError::Closed(message),
        })?;
        if !canary::is_on(Canary::LostWake) {
            self.doorbell.ring();
        }
        Ok(())
    }
}

impl<T, R> Clone for Sender<T, R> {
    fn clone(&self) -> Self {
        Self {
            queue: self.queue.clone(),
            closed: self.closed.clone(),
            doorbell: self.doorbell.clone(),
        }
    }
}

/// The shard's end. Its drop closes the inbox and drops what is queued.
pub(crate) struct Receiver<T> {
    queue: mpsc::Receiver<T>,
    closed: Arc<AtomicBool>,
    /// Taken from the queue by [`Receiver::is_empty`], to be returned first.
    next: Option<T>,
}

impl<T> Receiver<T> {
    /// The oldest message, if there is one.
    pub(crate) fn receive(&mut self) -> Option<T> {
        self.next.take().or_else(|| self.queue.try_recv().ok())
    }

    /// Whether nothing is queued.
    pub(crate) fn is_empty(&mut self) -> bool {
        if self.next.is_none() {
            self.next = self.queue.try_recv().ok();
        }
        self.next.is_none()
    }

    /// Refuses what comes from here on; what is queued can still be received.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }
}

/// The reader's half of the protocol: announces its sleep, and says whether it may wait now. If
/// not, `quiet` found something (it looks at every queue that rings this doorbell).
pub(crate) fn may_wait<R: Ringer>(doorbell: &Doorbell<R>, quiet: impl FnOnce() -> bool) -> bool {
    doorbell.sleep();
    let wait = quiet();
    if !wait {
        doorbell.wake();
    }
    wait
}

#[cfg(all(test, not(kvrail_loom)))]
mod tests {
    use super::*;
    use std::sync::{Condvar, Mutex};
    use std::thread;
    use std::time::Duration;

    /// An eventfd without a kernel: counts rings, waits until there was one.
    #[derive(Default)]
    struct Bell {
        rings: Mutex<usize>,
        rung: Condvar,
    }

    impl Ringer for Bell {
        fn ring(&self) {
            *self.rings.lock().unwrap() += 1;
            self.rung.notify_one();
        }
    }

    impl Bell {
        /// False when nobody rang in time: a lost wake.
        fn wait(&self) -> bool {
            let guard = self.rings.lock().unwrap();
            let patience = Duration::from_secs(20);
            let (mut guard, timeout) =
                self.rung.wait_timeout_while(guard, patience, |rings| *rings == 0).unwrap();
            *guard = 0;
            !timeout.timed_out()
        }
    }

    type Parts = (Arc<Doorbell<Bell>>, Sender<u64, Bell>, Receiver<u64>);

    fn parts(capacity: usize) -> Parts {
        let doorbell = Arc::new(Doorbell::with_ringer(Bell::default()));
        let (sender, receiver) = inbox(capacity, doorbell.clone());
        (doorbell, sender, receiver)
    }

    fn rings(doorbell: &Doorbell<Bell>) -> usize {
        *doorbell.ringer().rings.lock().unwrap()
    }

    #[test]
    fn full_gives_the_message_back_and_room_takes_it() {
        let (_, sender, mut receiver) = parts(2);
        sender.send(1).unwrap();
        sender.send(2).unwrap();
        assert_eq!(sender.send(3), Err(SendError::Full(3)));
        assert_eq!(receiver.receive(), Some(1));
        sender.send(3).unwrap();
        assert_eq!(
            [receiver.receive(), receiver.receive(), receiver.receive()],
            [Some(2), Some(3), None]
        );
    }

    #[test]
    fn looking_takes_nothing_away() {
        let (_, sender, mut receiver) = parts(2);
        assert!(receiver.is_empty());
        sender.send(1).unwrap();
        sender.send(2).unwrap();
        assert!(!receiver.is_empty() && !receiver.is_empty());
        assert_eq!(receiver.receive(), Some(1));
        assert_eq!(receiver.receive(), Some(2));
    }

    #[test]
    fn a_closed_inbox_refuses_and_still_empties() {
        let (_, sender, mut receiver) = parts(2);
        sender.send(1).unwrap();
        receiver.close();
        assert_eq!(sender.send(2), Err(SendError::Closed(2)));
        assert_eq!(receiver.receive(), Some(1));
        drop(receiver);
        assert_eq!(sender.send(3), Err(SendError::Closed(3)));
    }

    #[test]
    fn a_push_between_announcing_and_looking_is_found() {
        let (doorbell, sender, mut receiver) = parts(2);
        let wait = may_wait(&doorbell, || {
            sender.send(1).unwrap();
            receiver.is_empty()
        });
        assert!(!wait);
        assert_eq!(rings(&doorbell), 1, "the announcement was out already");
    }

    #[test]
    fn an_awake_reader_is_never_rung() {
        let (doorbell, sender, mut receiver) = parts(2);
        sender.send(1).unwrap();
        assert!(!may_wait(&doorbell, || receiver.is_empty()));
        sender.send(2).unwrap();
        assert_eq!(rings(&doorbell), 0);
    }

    /// Several threads against a reader that sleeps whenever it can; a small capacity makes both
    /// sides wait for each other.
    #[test]
    fn no_push_and_no_wake_is_lost() {
        const SENDERS: u64 = 4;
        const EACH: u64 = 20_000;
        let (doorbell, sender, mut receiver) = parts(8);
        let reader = thread::spawn(move || {
            let mut last = [None; SENDERS as usize];
            let mut received = 0;
            while received < SENDERS * EACH {
                while let Some(message) = receiver.receive() {
                    let (from, number) = ((message / EACH) as usize, message % EACH);
                    assert!(last[from] < Some(number), "in order from each sender");
                    last[from] = Some(number);
                    received += 1;
                }
                let done = received == SENDERS * EACH;
                if !done && may_wait(&doorbell, || receiver.is_empty()) {
                    assert!(doorbell.ringer().wait(), "{received} received, then no ring");
                    doorbell.wake();
                }
            }
        });
        thread::scope(|scope| {
            for from in 0..SENDERS {
                let sender = sender.clone();
                scope.spawn(move || {
                    for number in 0..EACH {
                        let mut message = from * EACH + number;
                        while let Err(error) = sender.send(message) {
                            message = error.into_inner();
                            thread::yield_now();
                        }
                    }
                });
            }
        });
        reader.join().unwrap();
    }
}
