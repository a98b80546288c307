//! Actors: a state on one shard, messages from anywhere, one at a time. A panic is the caller's and
//! the supervisor's to hear of; nobody else is touched.

use std::any::type_name;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Polling, Poll};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot, watch};

use super::clock::Clock;
use super::inbox::SendError;
use super::shard::Shard;
use super::task::{caught, unwinding};
use crate::Error;

/// A state that lives on one shard and handles one message at a time.
///
/// An actor ends when it is stopped, when its last [`Address`] is dropped, when it panics, or with
/// its runtime. A handler must not block its thread, and must not await a call to its own address.
pub trait Actor: Sized + 'static {
    /// What it is asked.
    type Message: Send + 'static;
    /// What it answers.
    type Reply: Send + 'static;

    /// Handles a message. The next one waits until the future is done.
    fn handle(
        &mut self,
        message: Self::Message,
        context: &Context<Self>,
    ) -> impl Future<Output = Self::Reply>;

    /// Called once after the last message; not after a panic, and not when the runtime's drain
    /// time ran out.
    fn stopped(&mut self) {}
}

/// What an actor knows of itself while it handles a message.
pub struct Context<A: Actor> {
    shard: usize,
    mailbox: mpsc::WeakSender<Envelope<A>>,
    stop: Arc<Notify>,
    exit: watch::Receiver<Option<Exit>>,
}

impl<A: Actor> Context<A> {
    /// The index of the shard it lives on.
    pub fn shard(&self) -> usize {
        self.shard
    }

    /// Its own address; `None` once every other address is dropped. Keeping it keeps the actor.
    pub fn address(&self) -> Option<Address<A>> {
        let mailbox = self.mailbox.upgrade()?;
        Some(Address { mailbox, stop: self.stop.clone(), exit: self.exit.clone() })
    }

    /// Ends the actor after the messages that are queued now.
    pub fn stop(&self) {
        self.stop.notify_one();
    }
}

/// Where an actor is reached; for any thread and any executor.
pub struct Address<A: Actor> {
    mailbox: mpsc::Sender<Envelope<A>>,
    stop: Arc<Notify>,
    exit: watch::Receiver<Option<Exit>>,
}

struct Envelope<A: Actor> {
    message: A::Message,
    reply: Option<ReplySender<A>>,
}

type ReplySender<A> = oneshot::Sender<Result<<A as Actor>::Reply, String>>;

/// Why a cast was not queued; [`SendError::into_inner`] gives the message back.
pub type CastError<M> = SendError<M>;

impl<A: Actor> Address<A> {
    /// Sends `message` and waits for the reply.
    ///
    /// # Errors
    /// Busy when the mailbox is full ([`Address::ask`] gives the message back), Panicked when this
    /// very message made the actor panic, Closed when the actor ended before it replied.
    pub async fn call(&self, message: A::Message) -> Result<A::Reply, ActorError> {
        match self.ask(message) {
            Ok(reply) => reply.await,
            Err(SendError::Full(_)) => Err(ActorError::Busy),
            Err(SendError::Closed(_)) => Err(ActorError::Closed),
        }
    }

    /// Queues `message` now; the reply can be awaited, or dropped unread.
    ///
    /// # Errors
    /// Full or Closed, with the message.
    pub fn ask(&self, message: A::Message) -> Result<Join<A::Reply>, CastError<A::Message>> {
        let (reply, join) = Join::channel();
        self.post(message, Some(reply)).map(|()| join)
    }

    /// Queues `message` and wants no reply.
    ///
    /// # Errors
    /// Full or Closed, with the message.
    pub fn cast(&self, message: A::Message) -> Result<(), CastError<A::Message>> {
        self.post(message, None)
    }

    /// Ends the actor after the messages that are queued now; later ones find it closed.
    pub fn stop(&self) {
        self.stop.notify_one();
    }

    /// Waits until the actor has ended and its state is dropped.
    pub async fn closed(&self) -> Exit {
        let mut exit = self.exit.clone();
        // An error is a task that was dropped before it could say how it ended.
        let ended = exit.wait_for(Option::is_some).await;
        ended.ok().and_then(|exit| exit.clone()).unwrap_or(Exit::Killed)
    }

    fn post(
        &self,
        message: A::Message,
        reply: Option<ReplySender<A>>,
    ) -> Result<(), CastError<A::Message>> {
        self.mailbox.try_send(Envelope { message, reply }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(envelope) => SendError::Full(envelope.message),
            mpsc::error::TrySendError::Closed(envelope) => SendError::Closed(envelope.message),
        })
    }
}

impl<A: Actor> Clone for Address<A> {
    fn clone(&self) -> Self {
        Self { mailbox: self.mailbox.clone(), stop: self.stop.clone(), exit: self.exit.clone() }
    }
}

impl<A: Actor> std::fmt::Debug for Address<A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Address<{}>", type_name::<A>())
    }
}

/// Why a call, or a future on a shard, has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ActorError {
    /// The mailbox is full: call again later.
    #[error("the mailbox is full: call again later")]
    Busy,
    /// The actor was stopped, panicked before, or its runtime ended.
    #[error("the actor is gone")]
    Closed,
    /// The handler of this call, or the future, panicked with this text.
    #[error("the actor panicked: {0}")]
    Panicked(String),
}

impl From<ActorError> for Error {
    fn from(error: ActorError) -> Self {
        match error {
            ActorError::Busy => Self::busy(error.to_string()),
            ActorError::Closed | ActorError::Panicked(_) => Self::closed(error.to_string()),
        }
    }
}

/// How an actor ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Exit {
    /// It was stopped, or its last address dropped, and it handled what was queued.
    Stopped,
    /// It panicked with this text, and was not (or not again) restarted.
    Panicked(String),
    /// Its runtime ended before it could handle what was queued.
    Killed,
}

/// The result of a call or a future on a shard, awaitable on any executor. Dropping it abandons
/// only the result: what it waits for goes on.
#[derive(Debug)]
#[must_use = "dropping it abandons the result"]
pub struct Join<T>(oneshot::Receiver<Result<T, String>>);

impl<T> Join<T> {
    pub(crate) fn channel() -> (oneshot::Sender<Result<T, String>>, Self) {
        let (sender, receiver) = oneshot::channel();
        (sender, Self(receiver))
    }
}

impl<T> Future for Join<T> {
    type Output = Result<T, ActorError>;

    fn poll(mut self: Pin<&mut Self>, polling: &mut Polling<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(polling).map(|received| match received {
            Ok(Ok(output)) => Ok(output),
            Ok(Err(text)) => Err(ActorError::Panicked(text)),
            Err(_) => Err(ActorError::Closed),
        })
    }
}

/// A panic that a shard caught.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ActorPanic {
    /// The shard it happened on.
    pub shard: usize,
    /// The type of the actor, pump or future.
    pub actor: &'static str,
    /// The panic's text.
    pub message: String,
}

impl ActorPanic {
    pub(crate) fn new(shard: usize, actor: &'static str, message: String) -> Self {
        Self { shard, actor, message }
    }
}

/// Who hears of panics.
#[derive(Clone)]
pub(crate) struct OnPanic(pub(crate) Arc<dyn Fn(ActorPanic) + Send + Sync>);

impl OnPanic {
    pub(crate) fn report(&self, panic: ActorPanic) {
        if let Err(text) = unwinding(|| (self.0)(panic)) {
            tracing::error!(text, "the panic handler panicked");
        }
    }
}

impl Default for OnPanic {
    fn default() -> Self {
        Self(Arc::new(|ActorPanic { shard, actor, message }| {
            tracing::error!(shard, actor, message, "panicked");
        }))
    }
}

/// How often a supervised actor may be made anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestartPolicy {
    /// Restarts allowed in any window of `within`; one more panic ends the actor.
    pub max_restarts: usize,
    /// The window.
    pub within: Duration,
}

impl RestartPolicy {
    pub(crate) const NEVER: Self = Self { max_restarts: 0, within: Duration::ZERO };
}

/// Pure: which panics are followed by a restart.
struct Restarts {
    policy: RestartPolicy,
    /// Times of the restarts inside the window.
    at_ns: std::collections::VecDeque<u64>,
}

impl Restarts {
    fn new(policy: RestartPolicy) -> Self {
        Self { policy, at_ns: Default::default() }
    }

    fn allow(&mut self, now_ns: u64) -> bool {
        let within_ns = self.policy.within.as_nanos();
        while self
            .at_ns
            .front()
            .is_some_and(|at| u128::from(now_ns.saturating_sub(*at)) > within_ns)
        {
            self.at_ns.pop_front();
        }
        let allowed = self.at_ns.len() < self.policy.max_restarts;
        if allowed {
            self.at_ns.push_back(now_ns);
        }
        allowed
    }
}

/// An actor that has a mailbox and an address, and no shard yet.
pub(crate) struct Birth<A: Actor, F> {
    mailbox: Mailbox<A>,
    context: Context<A>,
    exit: watch::Sender<Option<Exit>>,
    make: F,
    policy: RestartPolicy,
}

impl<A: Actor, F: FnMut() -> A + 'static> Birth<A, F> {
    pub(crate) fn new(
        shard: usize,
        capacity: usize,
        policy: RestartPolicy,
        make: F,
    ) -> (Self, Address<A>) {
        let (sender, receiver) = mpsc::channel(capacity);
        let (exit, exits) = watch::channel(None);
        let stop = Arc::new(Notify::new());
        let context =
            Context { shard, mailbox: sender.downgrade(), stop: stop.clone(), exit: exits.clone() };
        let mailbox = Mailbox { receiver, current: None };
        let address = Address { mailbox: sender, stop, exit: exits };
        (Self { mailbox, context, exit, make, policy }, address)
    }

    /// Starts it, on its shard's thread.
    pub(crate) fn on(self, shard: &mut Shard) {
        let present = shard.actors().enter(self.context.stop.clone());
        let (clock, on_panic) = (shard.clock().clone(), shard.on_panic().clone());
        shard.spawn(async move {
            let _present = present;
            self.live(&clock, &on_panic).await
        });
    }

    async fn live(mut self, clock: &Clock, on_panic: &OnPanic) {
        let mut restarts = Restarts::new(self.policy);
        let exit = loop {
            let life = serve(&mut self.make, &mut self.mailbox, &self.context);
            let Err(text) = caught(life).await else { break Exit::Stopped };
            if let Some(reply) = self.mailbox.current.take() {
                let _ = reply.send(Err(text.clone())); // the caller may have given up
            }
            on_panic.report(ActorPanic::new(self.context.shard, type_name::<A>(), text.clone()));
            if !restarts.allow(clock.now_ns()) {
                break Exit::Panicked(text);
            }
            // A factory that always panics must not keep the shard from its other work.
            futures_lite::future::yield_now().await;
        };
        drop(self.mailbox); // who waits in it is told before those that wait for the exit
        let _ = self.exit.send(Some(exit));
    }
}

struct Mailbox<A: Actor> {
    receiver: mpsc::Receiver<Envelope<A>>,
    /// The caller of the message in hand: outside of what a panic unwinds, so it can be told.
    current: Option<ReplySender<A>>,
}

/// One life of an actor, from its making to its drop. Panics are the caller's to catch.
async fn serve<A: Actor>(
    make: &mut impl FnMut() -> A,
    mailbox: &mut Mailbox<A>,
    context: &Context<A>,
) {
    let mut actor = make();
    let mut stop = std::pin::pin!(context.stop.notified());
    let mut stopping = false;
    loop {
        let next = poll_fn(|polling| {
            if !stopping && stop.as_mut().poll(polling).is_ready() {
                stopping = true;
                mailbox.receiver.close();
            }
            mailbox.receiver.poll_recv(polling)
        });
        let Some(Envelope { message, reply }) = next.await else { break };
        mailbox.current = reply;
        let reply = actor.handle(message, context).await;
        if let Some(caller) = mailbox.current.take() {
            let _ = caller.send(Ok(reply)); // the caller may have given up
        }
    }
    actor.stopped();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_are_counted_in_a_sliding_window() {
        let policy = RestartPolicy { max_restarts: 2, within: Duration::from_nanos(100) };
        let mut restarts = Restarts::new(policy);
        let allowed = [0, 10, 20, 101, 102, 111, 500].map(|now_ns| restarts.allow(now_ns));
        assert_eq!(allowed, [true, true, false, true, false, true, true]);
        assert!(!Restarts::new(RestartPolicy::NEVER).allow(0));
    }
}
