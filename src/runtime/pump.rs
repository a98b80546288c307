//! A pump: an actor of the hot loop, whose messages and completion sources are polled together.

use std::any::type_name;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kvrail_reactors::doorbell::Doorbell;

use super::clock::Clock;
use super::inbox::{Receiver, SendError, Sender};
use crate::limits::TURN_BURST;

/// What a shard's hot loop drives. Every call is on the shard's thread and must not block: all
/// actors and pumps of the shard wait meanwhile.
///
/// A pump that panics is dropped, its senders get [`SendError::Closed`], the rest of the shard goes
/// on. So whatever a pump has in flight must be quiet, or owned elsewhere, when its `drop` returns.
pub trait Pump: 'static {
    /// What other threads send it.
    type Message: Send + 'static;

    /// Takes one message, in the order of each sender. Never blocks.
    fn handle(&mut self, message: Self::Message);

    /// Drives completion sources and timers; bounded, never blocks. Returns how much was done: 0 in
    /// turn after turn lets the shard park. `now_ns` is [`PumpContext::now_ns`].
    fn poll(&mut self, now_ns: u64) -> usize;

    /// Before the shard parks: arranges that any completion or timer of this pump makes the
    /// doorbell's eventfd readable. False when something is there already; the shard polls on.
    fn arm(&mut self, now_ns: u64) -> bool;

    /// When to be polled again though nothing rings, in the time of [`PumpContext::now_ns`]. Asked
    /// before the shard parks.
    fn wake_at_ns(&self) -> Option<u64> {
        None
    }

    /// Called each turn after stop was asked. True when quiet: the pump is dropped then, once its
    /// messages are handled. Until then it is polled and armed like before.
    fn stopping(&mut self, now_ns: u64) -> bool;
}

/// What a pump knows of its shard; handed to its factory.
pub struct PumpContext<M> {
    /// The shard's index.
    pub shard: usize,
    /// What the shard parks on: register its descriptor for the pump's completions.
    pub doorbell: Arc<Doorbell>,
    /// The pump's own address.
    pub address: PumpAddress<M>,
    pub(crate) clock: Clock,
}

impl<M> PumpContext<M> {
    /// Monotonic time in nanoseconds since the runtime was built.
    pub fn now_ns(&self) -> u64 {
        self.clock.now_ns()
    }
}

/// Where a pump gets its messages; for any thread.
pub struct PumpAddress<M> {
    inbox: Sender<M>,
    stop: Arc<AtomicBool>,
    doorbell: Arc<Doorbell>,
}

impl<M> Clone for PumpAddress<M> {
    fn clone(&self) -> Self {
        Self { inbox: self.inbox.clone(), stop: self.stop.clone(), doorbell: self.doorbell.clone() }
    }
}

impl<M> PumpAddress<M> {
    pub(crate) fn new(inbox: Sender<M>, doorbell: Arc<Doorbell>) -> Self {
        Self { inbox, stop: Arc::default(), doorbell }
    }

    /// What its shard parks on.
    pub(crate) fn doorbell(&self) -> &Arc<Doorbell> {
        &self.doorbell
    }

    /// Queues a message; a system call only if the shard sleeps. It is dropped unhandled if the
    /// pump panics, or the shard ends before it took it.
    ///
    /// # Errors
    /// Full past [`crate::limits::MAILBOX_MESSAGES`] (or the builder's number), Closed after the
    /// pump's end; both give the message back.
    pub fn send(&self, message: M) -> Result<(), SendError<M>> {
        self.inbox.send(message)
    }

    /// Asks the pump to stop: no more messages, and it ends once [`Pump::stopping`] says so.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.doorbell.ring();
    }
}

/// Pumps of any type, as the shard's loop sees them.
pub(crate) trait Driven {
    /// The pump's type, for reports.
    fn name(&self) -> &'static str;
    /// Messages, then completions and timers, then the stop if it was asked.
    fn turn(&mut self, now_ns: u64) -> Turn;
    /// After the shard announced its sleep: false when there is something to do.
    fn arm(&mut self, now_ns: u64) -> bool;
    /// When to take a turn though nothing rings.
    fn wake_at_ns(&self) -> Option<u64>;
    /// Asks it to stop.
    fn stop(&self);
    /// Whether it was asked to stop.
    fn is_stopping(&self) -> bool;
}

/// What became of a pump in a turn.
pub(crate) enum Turn {
    /// It did so much.
    Did(usize),
    /// It is quiet after stop was asked.
    Quiet,
}

/// A pump in its shard's loop.
pub(crate) struct Seat<P: Pump> {
    pump: P,
    inbox: Receiver<P::Message>,
    stop: Arc<AtomicBool>,
    /// The loop has seen `stop`.
    stopping: bool,
}

impl<P: Pump> Seat<P> {
    pub(crate) fn new(
        pump: P,
        inbox: Receiver<P::Message>,
        address: &PumpAddress<P::Message>,
    ) -> Self {
        Self { pump, inbox, stop: address.stop.clone(), stopping: false }
    }
}

impl<P: Pump> Driven for Seat<P> {
    fn name(&self) -> &'static str {
        type_name::<P>()
    }

    fn turn(&mut self, now_ns: u64) -> Turn {
        if !self.stopping && self.stop.load(Ordering::Acquire) {
            self.stopping = true;
            self.inbox.close();
        }
        let mut done = 0;
        while done < TURN_BURST
            && let Some(message) = self.inbox.receive()
        {
            self.pump.handle(message);
            done += 1;
        }
        done += self.pump.poll(now_ns);
        if self.stopping && self.pump.stopping(now_ns) && self.inbox.is_empty() {
            return Turn::Quiet;
        }
        Turn::Did(done)
    }

    fn arm(&mut self, now_ns: u64) -> bool {
        let stop_is_new = self.stop.load(Ordering::Acquire) != self.stopping;
        !stop_is_new && self.inbox.is_empty() && self.pump.arm(now_ns)
    }

    fn wake_at_ns(&self) -> Option<u64> {
        self.pump.wake_at_ns()
    }

    fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }

    fn is_stopping(&self) -> bool {
        self.stopping
    }
}
