//! Inbox and doorbell in every order of their threads' steps, and with every value that a load may
//! see: `cargo xtask loom`. The protocol without one of its parts is tried too, so that a checker
//! that finds nothing is known to have looked.

use loom::model::Builder;
use loom::sync::{Condvar, Mutex};
use loom::thread;

use super::*;

/// An eventfd without a kernel. A wait that nobody ends is a deadlock, which the checker reports.
struct Bell {
    is_rung: Mutex<bool>,
    rung: Condvar,
}

impl Bell {
    fn new() -> Self {
        Self { is_rung: Mutex::new(false), rung: Condvar::new() }
    }

    fn wait(&self) {
        let mut is_rung = self.is_rung.lock().unwrap();
        while !*is_rung {
            is_rung = self.rung.wait(is_rung).unwrap();
        }
        *is_rung = false;
    }
}

impl Ringer for Bell {
    fn ring(&self) {
        *self.is_rung.lock().unwrap() = true;
        self.rung.notify_one();
    }
}

type Parts = (Arc<Doorbell<Bell>>, Sender<usize, Bell>, Receiver<usize>);

fn parts(capacity: usize) -> Parts {
    let doorbell = Arc::new(Doorbell::with_ringer(Bell::new()));
    let (sender, receiver) = inbox(capacity, doorbell.clone());
    (doorbell, sender, receiver)
}

/// With more switches away from a running thread the models take minutes and find no more.
const PREEMPTIONS_MAX: usize = 3;

fn check(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS_MAX);
    builder.check(model);
}

/// The reader as a shard is one: takes what is there, sleeps while it may.
fn receive(
    count: usize,
    (doorbell, mut receiver): (Arc<Doorbell<Bell>>, Receiver<usize>),
    may_wait: impl Fn(&Doorbell<Bell>, &mut Receiver<usize>) -> bool,
) -> Vec<usize> {
    let mut received = Vec::new();
    while received.len() < count {
        received.extend(std::iter::from_fn(|| receiver.receive()));
        if received.len() < count && may_wait(&doorbell, &mut receiver) {
            doorbell.ringer().wait();
            doorbell.wake();
        }
    }
    received
}

fn looks_again(doorbell: &Doorbell<Bell>, receiver: &mut Receiver<usize>) -> bool {
    may_wait(doorbell, || receiver.is_empty())
}

#[test]
fn one_sender_loses_no_wake_and_keeps_its_order() {
    check(|| {
        let (doorbell, sender, receiver) = parts(2);
        let sending = thread::spawn(move || {
            sender.send(1).unwrap();
            sender.send(2).unwrap();
        });
        assert_eq!(receive(2, (doorbell, receiver), looks_again), [1, 2]);
        sending.join().unwrap();
    });
}

#[test]
fn two_senders_lose_no_wake() {
    check(|| {
        let (doorbell, sender, receiver) = parts(2);
        let senders = [1, 2].map(|message| {
            let sender = sender.clone();
            thread::spawn(move || sender.send(message).unwrap())
        });
        let mut received = receive(2, (doorbell, receiver), looks_again);
        received.sort_unstable();
        assert_eq!(received, [1, 2]);
        senders.into_iter().for_each(|sender| sender.join().unwrap());
    });
}

/// A message is received or comes back; none is both or neither.
#[test]
fn closing_loses_no_message() {
    check(|| {
        let (_, sender, mut receiver) = parts(1);
        let sending = thread::spawn(move || sender.send(1).is_ok());
        receiver.close();
        let early = receiver.receive();
        let was_taken = sending.join().unwrap();
        assert_eq!(early.or_else(|| receiver.receive()).is_some(), was_taken);
    });
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_the_second_look_a_wake_is_lost() {
    check(|| {
        let (doorbell, sender, receiver) = parts(2);
        let sending = thread::spawn(move || sender.send(1).unwrap());
        receive(1, (doorbell, receiver), |doorbell, _| may_wait(doorbell, || true));
        sending.join().unwrap();
    });
}

/// Raises the flag behind the look instead of before it.
#[test]
#[should_panic(expected = "deadlock")]
fn a_look_before_the_announcement_loses_a_wake() {
    check(|| {
        let (doorbell, sender, receiver) = parts(2);
        let sending = thread::spawn(move || sender.send(1).unwrap());
        receive(1, (doorbell, receiver), |doorbell, receiver| {
            let is_empty = receiver.is_empty();
            doorbell.sleep();
            is_empty
        });
        sending.join().unwrap();
    });
}

/// What [`Doorbell::ring`] does behind its fence, by a sender that pushes without one.
#[test]
#[should_panic(expected = "deadlock")]
fn without_the_ringers_fence_a_wake_is_lost() {
    check(|| {
        let (sleeping, pushed) =
            (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let bell = Arc::new(Bell::new());
        let (flag, message, ringer) = (sleeping.clone(), pushed.clone(), bell.clone());
        let sending = thread::spawn(move || {
            message.store(true, Ordering::Release);
            if flag.load(Ordering::Relaxed) && flag.swap(false, Ordering::AcqRel) {
                ringer.ring();
            }
        });
        sleeping.store(true, Ordering::Relaxed);
        kvrail_reactors::sync::fence(Ordering::SeqCst);
        if !pushed.load(Ordering::Acquire) {
            bell.wait();
        }
        sending.join().unwrap();
    });
}
