//! The life of one posted batch: parts go out to shards and come back; then the event, if any,
//! is announced; then it is done. Pure, but for [`Flight`] at the bottom, which lets one caller
//! wait for it, and its [`Portion`]s.

mod portion;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use kvrail_reactors::cuda::{Event, Failure, Order, Recorded};
use tracing::Level;
use tracing::field::display;

pub(crate) use self::portion::Portion;
use crate::memory::Visit;
use crate::path::asking::RequestName;
use crate::path::host::{self, Lane};
use crate::prepared::Plan;
use crate::receipt::{Fenced, Receipt};
use crate::runtime::is_shard;
use crate::{Error, ErrorKind, Landed, PathKind, metrics};

/// What is to be done after a part has come back.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Other parts are still out.
    Wait,
    /// All data is in place: announce the event.
    Announce,
    /// All memory is quiet: record the caller's event of a GPU.
    Record,
    /// It is over: wake the caller.
    Finish,
}

/// Where a batch is between posting and its end.
#[derive(Debug)]
pub(crate) struct Life {
    parts_out: usize,
    has_event: bool,
    /// An event of a GPU's is to be recorded still.
    records: bool,
    failures: Vec<(usize, Error)>,
    over: Option<Over>,
    is_done: bool,
}

impl Life {
    /// A batch whose data goes out in `parts`, followed by an event or not.
    pub(crate) fn new(parts: usize, has_event: bool) -> Self {
        let (records, failures, over, is_done) = Default::default();
        Self { parts_out: parts, has_event, records, failures, over, is_done }
    }

    /// More parts go out while at least one is.
    pub(crate) fn more_parts(&mut self, parts: usize) {
        debug_assert!(self.parts_out > 0 && !self.is_done, "it was over already");
        self.parts_out += parts;
    }

    /// A part came back: every slice of it has ended and its memory is quiet.
    pub(crate) fn part_back(&mut self, failures: Vec<(usize, Error)>) -> Next {
        debug_assert!(self.parts_out > 0 && !self.is_done, "a part came back twice");
        self.failures.extend(failures);
        self.parts_out -= 1;
        if self.parts_out > 0 {
            return Next::Wait;
        }
        if self.has_event && self.failures.is_empty() {
            self.has_event = false;
            self.parts_out = 1;
            return Next::Announce;
        }
        if std::mem::take(&mut self.records) {
            self.parts_out = 1;
            return Next::Record;
        }
        self.is_done = true;
        Next::Finish
    }

    pub(crate) fn is_done(&self) -> bool {
        self.is_done
    }

    /// What has failed so far.
    fn failures(&self) -> &[(usize, Error)] {
        &self.failures
    }

    /// How it ended, for a batch of `requests`. Failures are of slices: `slices` says how many
    /// each request has, and `done` by whose word the others are over.
    pub(crate) fn landing(
        &mut self,
        requests: usize,
        done: Fenced,
        slices: impl FnOnce() -> Vec<usize>,
    ) -> Landing {
        // A row of zeros: `vec!` would clone each.
        let mut statuses: Vec<_> = std::iter::repeat_with(|| Ok(())).take(requests).collect();
        let failures = std::mem::take(&mut self.failures);
        let first_error = failures.first().map(|(_, error)| error.clone());
        let mut left = if failures.is_empty() { Vec::new() } else { slices() };
        for (request, error) in failures {
            let Some(status) = statuses.get_mut(request) else { continue };
            left[request] = left[request].saturating_sub(1);
            *status = match std::mem::replace(status, Ok(())) {
                Ok(()) => Err(error),
                Err(first) => Err(first.joined(error.landed(), error.fenced())),
            };
        }
        for (status, _) in statuses.iter_mut().zip(left).filter(|(_, left)| *left > 0) {
            let landed_in_part = |error: Error| error.joined(Landed::Yes, done);
            *status = std::mem::replace(status, Ok(())).map_err(landed_in_part);
        }
        Landing { statuses, first_error, over: self.over }
    }
}

/// How a batch ended.
#[derive(Debug)]
pub(crate) struct Landing {
    /// Each request's end: the first failure of any slice of it.
    pub(crate) statuses: Vec<Result<(), Error>>,
    /// The first failure of anything, the event included.
    pub(crate) first_error: Option<Error>,
    /// None where nothing took off.
    pub(crate) over: Option<Over>,
}

/// What is known when the last part is back.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Over {
    /// Of the memory.
    pub(crate) receipt: Receipt,
    /// From the start to the end.
    pub(crate) lasted: Duration,
}

/// The request number of a batch's event.
pub(crate) const EVENT: usize = usize::MAX;

/// Sends the event of a flight whose data is in place, which is a part of it too.
pub(crate) type Announce = Box<dyn FnOnce(Portion) + Send>;

/// One posted batch, shared by its caller and the shards that carry its parts.
pub(crate) struct Flight {
    pub(crate) plan: Arc<Plan>,
    pub(crate) deadline_ns: Option<u64>,
    /// What logs call it; 0 where nobody writes that much.
    number: u64,
    path: PathKind,
    started: quanta::Instant,
    abandoned: AtomicBool,
    /// When somebody wanted it to end.
    ended: OnceLock<quanta::Instant>,
    shared: Mutex<Shared>,
    /// The lanes that its end comes by, if any.
    lanes: OnceLock<Vec<Arc<Lane>>>,
    /// GPUs end it within microseconds: a caller that looks for its end is not in vain.
    is_by_gpu: AtomicBool,
    /// Regions of this process that the flight reaches without a lease.
    _visits: Vec<Visit>,
}

struct Shared {
    life: Life,
    announce: Option<Announce>,
    waker: Option<Waker>,
    recording: Recording,
}

/// Where the caller's event of a GPU stands.
#[derive(Default)]
struct Recording {
    /// Has it recorded once the memory is quiet.
    record: Option<Announce>,
    /// The one GPU that makes all the copies is to record it behind them.
    by_gpu: Option<Event>,
    is_recorded: bool,
    wakers: Vec<Waker>,
}

impl Flight {
    pub(crate) fn new(
        plan: Arc<Plan>,
        parts: usize,
        announce: Option<Announce>,
        deadline_ns: Option<u64>,
        visits: Vec<Visit>,
        started: quanta::Instant,
    ) -> Arc<Self> {
        let life = Life::new(parts, announce.is_some());
        let recording = Recording::default();
        let shared = Mutex::new(Shared { life, announce, waker: None, recording });
        let abandoned = AtomicBool::new(false);
        let path = plan.peer.path();
        let number = if tracing::enabled!(Level::DEBUG) { next_number() } else { 0 };
        tracing::debug!(
            transfer = number,
            peer = plan.peer.name(),
            path = path.label(),
            requests = plan.requests(),
            bytes = plan.bytes(),
            "posted"
        );
        Arc::new(Self {
            plan,
            deadline_ns,
            number,
            path,
            started,
            abandoned,
            ended: OnceLock::new(),
            shared,
            lanes: OnceLock::new(),
            is_by_gpu: AtomicBool::new(false),
            _visits: visits,
        })
    }

    /// More parts go out while at least one is.
    pub(crate) fn more_parts(&self, parts: usize) {
        self.lock().life.more_parts(parts);
    }

    /// The lanes that its end comes by.
    pub(crate) fn comes_by(&self, lanes: Vec<Arc<Lane>>) {
        // It is posted once.
        let _ = self.lanes.set(lanes);
    }

    /// GPUs make its copies.
    pub(crate) fn comes_by_gpu(&self) {
        self.is_by_gpu.store(true, Ordering::Relaxed);
    }

    /// The caller's event of a GPU is recorded by this once the memory is quiet, unless that GPU
    /// did so behind the copies.
    pub(crate) fn record_by(&self, record: Announce) {
        let mut shared = self.lock();
        shared.life.records = true;
        shared.recording.record = Some(record);
    }

    /// This GPU makes all the copies, as one group.
    pub(crate) fn is_all_of(&self, device: u32) {
        let event = self.plan.events.before.filter(|event| event.device() == device);
        self.lock().recording.by_gpu = event;
    }

    /// What the copies that a GPU makes stand between.
    pub(crate) fn order(self: &Arc<Self>) -> Order {
        let event = self.lock().recording.by_gpu.take();
        let before = event.map(|event| {
            let flight = self.clone();
            let told = Box::new(move |recorded: Result<(), Failure>| {
                // What is not recorded now is when the memory is quiet.
                if recorded.is_ok() {
                    flight.recorded();
                }
            });
            Recorded { event, told }
        });
        Order { after: self.plan.events.after, before }
    }

    /// The caller's event is recorded.
    pub(crate) fn recorded(&self) {
        let mut shared = self.lock();
        shared.life.records = false;
        shared.recording.is_recorded = true;
        let wakers = std::mem::take(&mut shared.recording.wakers);
        drop(shared);
        wakers.into_iter().for_each(Waker::wake);
    }

    fn is_recorded(&self) -> bool {
        self.lock().recording.is_recorded
    }

    /// Whether the caller's event is recorded, or never will be.
    pub(crate) fn poll_recorded(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut shared = self.lock();
        let is_asked_for = self.plan.events.before.is_some();
        if shared.recording.is_recorded || shared.life.is_done() || !is_asked_for {
            return Poll::Ready(());
        }
        shared.recording.wakers.push(context.waker().clone());
        Poll::Pending
    }

    fn lanes(&self) -> &[Arc<Lane>] {
        self.lanes.get().map_or(&[], Vec::as_slice)
    }

    /// Looks for the end on the caller's thread for a while, which spares two wakes; then leaves it
    /// to the shards. A shard's thread has others to serve, and may be the one that is waited for.
    pub(crate) fn watch(&self, spin: Duration) {
        let lanes = self.lanes();
        let is_near = !lanes.is_empty() || self.is_by_gpu.load(Ordering::Relaxed);
        if !is_near || self.is_done() {
            return;
        }
        if spin.is_zero() || is_shard() {
            return lanes.iter().for_each(|lane| lane.entrust());
        }
        let since = quanta::Instant::now();
        host::watch(lanes, || self.is_done() || since.elapsed() > spin);
    }

    fn is_done(&self) -> bool {
        self.lock().life.is_done()
    }

    /// Nobody waits any more: what wasn't posted yet needn't be.
    pub(crate) fn abandon(&self) {
        // The first cause stands.
        let _ = self.ended.set(quanta::Instant::now());
        self.abandoned.store(true, Ordering::Relaxed);
        // Whoever looks after it learns that nobody waits.
        self.lanes().iter().for_each(|lane| lane.entrust());
    }

    /// Why nothing more of this flight should be posted, if so.
    pub(crate) fn ended_early(&self, now_ns: u64) -> Option<ErrorKind> {
        if self.abandoned.load(Ordering::Relaxed) {
            return Some(ErrorKind::Cancelled);
        }
        if self.plan.link().is_closed() {
            return Some(ErrorKind::Closed);
        }
        self.deadline_ns.filter(|&deadline_ns| deadline_ns <= now_ns).map(|_| ErrorKind::Expired)
    }

    /// A part came back with what failed in it, by request number.
    fn part_back(self: &Arc<Self>, failures: Vec<(usize, Error)>) {
        let mut shared = self.lock();
        match shared.life.part_back(failures) {
            Next::Wait => {}
            Next::Announce => {
                let announce = shared.announce.take().expect("an event has its announcement");
                drop(shared);
                announce(Portion::new(self.clone(), EVENT..=EVENT));
            }
            Next::Record => {
                let record = shared.recording.record.take();
                drop(shared);
                let portion = Portion::new(self.clone(), EVENT..=EVENT);
                record.expect("an event has what records it")(portion);
            }
            Next::Finish => {
                let over = self.over(shared.life.failures());
                self.note_end(&over, shared.life.failures());
                shared.life.over = Some(over);
                let waker = shared.waker.take();
                let wakers = std::mem::take(&mut shared.recording.wakers);
                self.plan.landed();
                drop(shared);
                wakers.into_iter().for_each(Waker::wake);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
        }
    }

    /// What logs call it.
    #[cfg(feature = "rdma")]
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Logs how a part of it ended, by the name that the peer's log has for that part.
    pub(crate) fn note(&self, part: Option<RequestName>, is_event: bool, failed: Option<&Error>) {
        let request = part.map(display);
        match failed {
            Some(error) => {
                tracing::debug!(transfer = self.number, request, %error, "a request has failed");
            }
            None if is_event => {
                tracing::debug!(transfer = self.number, request, "the peer has taken the event");
            }
            None => tracing::trace!(transfer = self.number, request, "a request is done"),
        }
    }

    fn note_end(&self, over: &Over, failures: &[(usize, Error)]) {
        let error = failures.first().map(|(_, error)| display(error));
        tracing::debug!(transfer = self.number, error, lasted = ?over.lasted, "ended");
    }

    /// What is known of a flight that is over, of which this failed.
    fn over(&self, failures: &[(usize, Error)]) -> Over {
        let now = quanta::Instant::now();
        let lasted = now.duration_since(self.started);
        Over { receipt: self.receipt(failures, now), lasted }
    }

    fn receipt(&self, failures: &[(usize, Error)], now: quanta::Instant) -> Receipt {
        let deadline = self.plan.deadline.map(|after| self.started + after);
        let passed = deadline.filter(|deadline| *deadline <= now);
        let since = self.ended.get().copied().into_iter().chain(passed).min();
        let took = now.duration_since(since.unwrap_or(self.started));
        if failures.is_empty() {
            self.plan.counted();
        }
        if failures.is_empty() && since.is_none() {
            return Receipt::success(self.path, took);
        }
        let slices = self.plan.slices_of_requests();
        let receipt = Receipt::sum(self.path, failures, &slices, took);
        metrics::receipt(self.path, &receipt);
        receipt
    }

    /// By whose word a slice of it is over that didn't fail.
    fn done(&self) -> Fenced {
        Receipt::success(self.path, Duration::ZERO).fenced
    }

    pub(crate) fn poll(&self, context: &mut Context<'_>) -> Poll<Landing> {
        let mut shared = self.lock();
        if shared.life.is_done() {
            return Poll::Ready(
                shared
                    .life
                    .landing(self.plan.requests(), self.done(), || self.plan.slices_of_requests()),
            );
        }
        shared.waker = Some(context.waker().clone());
        Poll::Pending
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Numbers that logs call flights by.
fn next_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

#[cfg(test)]
mod tests;
