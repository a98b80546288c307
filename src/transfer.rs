//! From a batch to its outcome: planning once, posting parts to shards, waiting.

use std::ops::Range;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use kvrail_reactors::copy::CopyWork;
use kvrail_reactors::region::Slice;

use crate::engine::{Inner, not_taken};
use crate::flight::{Announce, EVENT, Flight, Landing, Portion};
use crate::limits::{COPY_GROUP_BYTES, COPY_INLINE_MAX_BYTES, SLICE_BYTES, TCP_GROUP_BYTES};
use crate::memory::{Lease, Operation, Visit};
use crate::path::local::{Copies, Job};
use crate::path::tcp::{Action, Event, Message, Request};
use crate::peer::{Peer, RouteKind};
use crate::plan::{PlannedSlice, plan, share_out};
use crate::request::Batch;
use crate::{Error, ErrorKind, PathKind, Result, metrics};

/// A batch, checked and cut into slices. Owns its leases: they live as long as any flight of it.
pub(crate) struct Plan {
    pub(crate) peer: Peer,
    requests: Vec<Planned>,
    leases: Mutex<Vec<Lease>>,
    slices: Vec<PlannedSlice>,
    event: Option<Event>,
    deadline: Option<Duration>,
    in_flight: AtomicBool,
    /// Nobody will ask for the leases: they go back when the flight is over.
    is_orphan: AtomicBool,
}

/// One request's side of this process.
struct Planned {
    memory: Slice,
    operation: Operation,
}

impl Plan {
    pub(crate) fn new(batch: Batch, name: &str) -> Result<Self, (Error, Vec<Lease>)> {
        let Batch { peer, requests, event, deadline } = batch;
        let (leases, shapes): (Vec<_>, Vec<_>) = requests.into_iter().unzip();
        let mut slices = Vec::new();
        for (number, (lease, shape)) in leases.iter().zip(&shapes).enumerate() {
            let len = lease.memory().len();
            if let Err(error) = plan(number, len, shape, SLICE_BYTES, &mut slices) {
                return Err((error, leases));
            }
        }
        let event = match checked_event(event, &peer, name) {
            Ok(event) => event,
            Err(error) => return Err((error, leases)),
        };
        let requests = leases.iter().map(Planned::new).collect();
        Ok(Self {
            peer,
            requests,
            leases: Mutex::new(leases),
            slices,
            event,
            deadline,
            in_flight: AtomicBool::new(false),
            is_orphan: AtomicBool::new(false),
        })
    }

    /// How many requests the user made.
    pub(crate) fn requests(&self) -> usize {
        self.requests.len()
    }

    pub(crate) fn peer_name(&self) -> Arc<str> {
        self.peer.inner.link.route.name.clone()
    }

    /// The flight is over and its memory quiet: it may be posted again.
    pub(crate) fn landed(&self) {
        // SeqCst pairs with `abandon`: one of the two sees the other's store.
        self.in_flight.store(false, Ordering::SeqCst);
        if self.is_orphan.load(Ordering::SeqCst) {
            drop(self.take_leases());
        }
    }

    /// Nobody will ask for the leases any more.
    fn abandon(&self) {
        self.is_orphan.store(true, Ordering::SeqCst);
        if !self.in_flight.load(Ordering::SeqCst) {
            drop(self.take_leases());
        }
    }

    fn take_off(&self) -> Result<()> {
        match self.in_flight.swap(true, Ordering::SeqCst) {
            false => Ok(()),
            true => Err(Error::busy("this prepared batch is still under way; wait for its end")),
        }
    }

    fn take_leases(&self) -> Vec<Lease> {
        std::mem::take(&mut *self.leases.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn memory(&self, slice: &PlannedSlice) -> Slice {
        self.requests[slice.request]
            .memory
            .part(slice.offset, slice.len)
            .expect("the planner checked it against the lease")
    }

    fn operation(&self, slice: &PlannedSlice) -> Operation {
        self.requests[slice.request].operation
    }

    fn bytes(&self) -> usize {
        self.slices.iter().map(|slice| slice.len).sum()
    }
}

impl Planned {
    fn new(lease: &Lease) -> Self {
        let operation = match lease {
            Lease::Shared(_) => Operation::Write,
            Lease::Exclusive(_) => Operation::Read,
        };
        Self { memory: lease.memory().clone(), operation }
    }
}

/// An event that this peer can take, signed with our name; none where there is nothing to say.
fn checked_event(mut event: Event, peer: &Peer, name: &str) -> Result<Option<Event>> {
    if event == Event::default() {
        return Ok(None);
    }
    if let Some((from, message)) = &mut event.message {
        *from = name.to_owned();
        if message.len() as u64 + 1024 > crate::limits::EVENT_MAX_BYTES {
            return Err(Error::refused(format!("a notification of {} bytes", message.len())));
        }
    }
    let is_mooncake =
        matches!(&peer.inner.link.route.kind, RouteKind::Tcp(tcp) if !tcp.takes_events());
    let text = event.message.as_ref().map(|(_, message)| std::str::from_utf8(message));
    if is_mooncake && event.count.is_some() {
        return Err(Error::refused(
            "a Mooncake peer, or one that is spoken to in version 1, has no counters; notify it instead",
        ));
    }
    if is_mooncake && matches!(text, Some(Err(_))) {
        return Err(Error::refused(
            "a Mooncake peer, or one that is spoken to in version 1, is notified in UTF-8 text only",
        ));
    }
    Ok(Some(event))
}

/// A batch that was checked and planned, to be posted again and again.
pub struct Prepared {
    plan: Arc<Plan>,
}

impl Prepared {
    /// Bytes that one posting moves.
    pub fn bytes(&self) -> usize {
        self.plan.bytes()
    }

    /// Gives the leases back, in the order of the requests.
    ///
    /// # Errors
    /// Busy, with the batch, while it is under way.
    pub fn into_leases(self) -> Result<Vec<Lease>, (Error, Self)> {
        match self.plan.take_off() {
            Ok(()) => Ok(self.plan.take_leases()),
            Err(error) => Err((error, self)),
        }
    }
}

impl Drop for Prepared {
    /// The leases are back at once, or when the posting that is under way has ended.
    fn drop(&mut self) {
        self.plan.abandon();
    }
}

/// How a batch ended.
#[derive(Debug)]
pub struct Outcome {
    statuses: Vec<Result<()>>,
    leases: Vec<Lease>,
}

impl Outcome {
    /// Each request's end, in the order of the requests.
    pub fn statuses(&self) -> &[Result<()>] {
        &self.statuses
    }

    /// The leases, in the order of the requests; none of a prepared batch, which keeps its own.
    pub fn into_leases(self) -> Vec<Lease> {
        self.leases
    }
}

/// A batch of which a request or the event failed; its outcome holds the leases and every request's status.
#[derive(Debug)]
pub struct Failed {
    error: Error,
    outcome: Outcome,
}

impl Failed {
    /// The first thing that failed.
    pub fn error(&self) -> &Error {
        &self.error
    }

    /// Statuses and leases.
    pub fn into_outcome(self) -> Outcome {
        self.outcome
    }
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for Failed {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}

impl From<Failed> for Error {
    fn from(failed: Failed) -> Self {
        failed.error
    }
}

/// A batch under way. Dropping it is safe: leases come back when nothing touches their memory.
#[must_use = "a transfer that is dropped at once is abandoned"]
pub struct Transfer {
    state: State,
    path: PathKind,
    started: quanta::Instant,
    returns_leases: bool,
}

enum State {
    Flying(Arc<Flight>),
    /// It never took off.
    Refused(Error, Vec<Lease>, usize),
    Done,
}

impl Future for Transfer {
    type Output = Result<Outcome, Failed>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let (landing, leases) = match std::mem::replace(&mut self.state, State::Done) {
            State::Done => panic!("a transfer was polled after its end"),
            State::Refused(error, leases, requests) => {
                let statuses = vec![Err(error.clone()); requests];
                (Landing { statuses, first_error: Some(error) }, leases)
            }
            State::Flying(flight) => match flight.poll(context) {
                Poll::Pending => {
                    self.state = State::Flying(flight);
                    return Poll::Pending;
                }
                Poll::Ready(landing) if self.returns_leases => (landing, flight.plan.take_leases()),
                Poll::Ready(landing) => (landing, Vec::new()),
            },
        };
        metrics::batch_ended(self.path, self.started.elapsed());
        let Landing { statuses, first_error: error } = landing;
        let outcome = Outcome { statuses, leases };
        Poll::Ready(match error {
            None => Ok(outcome),
            Some(error) => Err(Failed { error, outcome }),
        })
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        if let State::Flying(flight) = &self.state {
            flight.abandon();
            if self.returns_leases {
                flight.plan.abandon();
            }
        }
    }
}

impl Inner {
    pub(crate) fn transfer(self: &Arc<Self>, batch: Batch) -> Transfer {
        let started = quanta::Instant::now();
        let path = batch.peer.path();
        let requests = batch.len();
        let state = match Plan::new(batch, self.name()) {
            Err((error, leases)) => State::Refused(error, leases, requests),
            Ok(plan) => {
                let plan = Arc::new(plan);
                match plan.take_off().and_then(|()| self.post(&plan)) {
                    Ok(flight) => State::Flying(flight),
                    Err(error) => State::Refused(error, plan.take_leases(), requests),
                }
            }
        };
        Transfer { state, path, started, returns_leases: true }
    }

    pub(crate) fn prepare(&self, batch: Batch) -> Result<Prepared> {
        match Plan::new(batch, self.name()) {
            Ok(plan) => Ok(Prepared { plan: Arc::new(plan) }),
            Err((error, _)) => Err(error),
        }
    }

    pub(crate) fn post_prepared(self: &Arc<Self>, prepared: &Prepared) -> Transfer {
        let started = quanta::Instant::now();
        let path = prepared.plan.peer.path();
        let posted = prepared.plan.take_off().and_then(|()| self.post(&prepared.plan));
        let state = match posted {
            Ok(flight) => State::Flying(flight),
            Err(error) => State::Refused(error, Vec::new(), prepared.plan.requests()),
        };
        Transfer { state, path, started, returns_leases: false }
    }

    fn post(self: &Arc<Self>, plan: &Arc<Plan>) -> Result<Arc<Flight>> {
        match plan.peer.inner.link.route.kind {
            RouteKind::Local => self.post_local(plan),
            RouteKind::Tcp(_) => Ok(self.post_tcp(plan)),
        }
    }

    fn flight(
        &self,
        plan: &Arc<Plan>,
        parts: usize,
        announce: Option<Announce>,
        visits: Vec<Visit>,
    ) -> Arc<Flight> {
        let now_ns = self.now_ns();
        let deadline_ns = plan.deadline.map(|after| {
            now_ns.saturating_add(u64::try_from(after.as_nanos()).unwrap_or(u64::MAX))
        });
        // A batch without data has one part, which is back at once.
        let flight = Flight::new(plan.clone(), parts.max(1), announce, deadline_ns, visits);
        if parts == 0 {
            Portion::new(flight.clone(), EVENT..=EVENT).back(Vec::new());
        }
        flight
    }

    fn post_tcp(self: &Arc<Self>, plan: &Arc<Plan>) -> Arc<Flight> {
        let shards = self.shards();
        let groups = share_out(&plan.slices, shards.len(), TCP_GROUP_BYTES);
        let announce = plan.event.clone().map(|event| self.announce_tcp(event));
        let flight = self.flight(plan, groups.len(), announce, Vec::new());
        let first = self.next_shard();
        for (position, group) in groups.into_iter().enumerate() {
            let requests =
                plan.slices[group].iter().map(|slice| tcp_request(plan, slice)).collect();
            self.carry(flight.clone(), first + position, requests);
        }
        flight
    }

    /// Gives requests of a flight, in their order, to a shard; one that does not take them fails
    /// them.
    fn carry(&self, flight: Arc<Flight>, shard: usize, requests: Vec<Request>) {
        let index = |request: Option<&Request>| request.map_or(EVENT, |request| request.index);
        let span = index(requests.first())..=index(requests.last());
        self.carry_portion(Portion::new(flight, span), shard, requests);
    }

    fn carry_portion(&self, portion: Portion, shard: usize, requests: Vec<Request>) {
        let shards = self.shards();
        let route = portion.flight().plan.peer.inner.link.route.clone();
        let message = Message::Carry { portion, route, requests };
        if let Err(error) = shards[shard % shards.len()].send(message) {
            let what = not_taken(&error).with_path(PathKind::Tcp);
            if let Message::Carry { portion, requests, .. } = error.into_inner() {
                let failures = requests.iter().map(|r| (r.index, what.clone())).collect();
                drop(requests);
                portion.back(failures);
            }
        }
    }

    /// Between kvrail peers the event follows on a data connection; a Mooncake peer is notified
    /// through its control daemon.
    fn announce_tcp(self: &Arc<Self>, event: Event) -> Announce {
        let engine = Arc::downgrade(self);
        Box::new(move |portion: Portion| {
            let Some(engine) = engine.upgrade() else {
                let error = Error::new(ErrorKind::Closed, "the engine was dropped");
                return portion.back(vec![(EVENT, error)]);
            };
            match &portion.flight().plan.peer.inner.link.route.kind {
                RouteKind::Tcp(tcp) if !tcp.takes_events() => engine.notify_peer(portion, event),
                _ => {
                    let action = Action::Event(event.encode().into());
                    let request = Request { part: 0, index: EVENT, action, addr: 0, attempts: 0 };
                    engine.carry_portion(portion, engine.next_shard(), vec![request]);
                }
            }
        })
    }

    fn notify_peer(&self, portion: Portion, event: Event) {
        let control = self.control().clone();
        let text = event.message.map(|(_, message)| message).unwrap_or_default();
        self.control().detach(async move {
            let text = String::from_utf8_lossy(&text);
            let sent = control.notify(portion.flight().plan.peer.name(), &text).await;
            portion.back(sent.err().map(|error| (EVENT, error)).into_iter().collect());
        });
    }

    fn post_local(self: &Arc<Self>, plan: &Arc<Plan>) -> Result<Arc<Flight>> {
        let (jobs, visits) = self.local_jobs(plan).inspect_err(|_| plan.landed())?;
        let announce = plan.event.clone().map(|event| self.announce_local(event));
        if plan.bytes() <= COPY_INLINE_MAX_BYTES {
            let parts = usize::from(!jobs.is_empty());
            let flight = self.flight(plan, parts, announce, visits);
            if parts > 0 {
                Copies::new(flight.clone(), jobs).run();
            }
            return Ok(flight);
        }
        let groups = share_out(&plan.slices, self.copies().len(), COPY_GROUP_BYTES);
        let flight = self.flight(plan, groups.len(), announce, visits);
        self.spread_copies(&flight, jobs, &groups);
        Ok(flight)
    }

    fn spread_copies(&self, flight: &Arc<Flight>, mut jobs: Vec<Job>, groups: &[Range<usize>]) {
        let actors = self.copies();
        let first = self.next_shard();
        // From the back, so that each group is split off the end.
        for (position, group) in groups.iter().enumerate().rev() {
            let copies = Copies::new(flight.clone(), jobs.split_off(group.start));
            if let Err(error) = actors[(first + position) % actors.len()].send(copies) {
                let what = not_taken(&error).with_path(PathKind::Local);
                error.into_inner().fail(&what);
            }
        }
    }

    /// Finds both ends of every slice in this process, and counts the flight in as a visitor of
    /// the regions at the far end, which may not go meanwhile.
    fn local_jobs(&self, plan: &Plan) -> Result<(Vec<Job>, Vec<Visit>)> {
        let regions = self.regions().current();
        let mut visits: Vec<Visit> = Vec::new();
        let mut jobs = Vec::with_capacity(plan.slices.len());
        for slice in &plan.slices {
            let (region, far) = regions
                .find_own(slice.addr, slice.len as u64)
                .map_err(|error| error.with_path(PathKind::Local))?;
            if visits.last().is_none_or(|visit| !visit.is_of(region)) {
                visits.push(region.visit()?);
            }
            let near = plan.memory(slice);
            let (source, target) = match plan.operation(slice) {
                Operation::Write => (near, far),
                Operation::Read => (far, near),
            };
            jobs.push(Job { request: slice.request, work: CopyWork { tag: 0, source, target } });
        }
        Ok((jobs, visits))
    }

    fn announce_local(self: &Arc<Self>, event: Event) -> Announce {
        let arrivals = self.arrivals().clone();
        Box::new(move |portion: Portion| {
            use crate::path::tcp::Status;
            let error = match arrivals.event(event) {
                Status::Ok => None,
                Status::Busy => Some(Error::busy("the queue of notifications is full")),
                _ => Some(Error::refused("nobody has opened this counter")),
            };
            let failed = error.map(|error| (EVENT, error.with_path(PathKind::Local)));
            portion.back(failed.into_iter().collect());
        })
    }
}

fn tcp_request(plan: &Plan, slice: &PlannedSlice) -> Request {
    let memory = plan.memory(slice);
    let action = match plan.operation(slice) {
        Operation::Write => Action::Write(memory),
        Operation::Read => Action::Read(memory),
    };
    Request { part: 0, index: slice.request, action, addr: slice.addr, attempts: 0 }
}
