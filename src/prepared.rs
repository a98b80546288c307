//! A batch on its way to be posted: checked, cut into slices, and owner of its leases, once or
//! again and again.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kvrail_reactors::region::Slice;

use crate::engine::Inner;
use crate::limits::{EVENT_MAX_BYTES, EVENT_NAME_MAX_BYTES, SLICE_BYTES};
use crate::memory::grant::{Denied, Key};
use crate::memory::{Lease, Operation, Reference};
use crate::path::order::Events;
use crate::path::tcp::Event;
use crate::peer::{Link, Peer, RouteKind};
use crate::plan::{PlannedSlice, plan};
use crate::post::gpu::Kept;
use crate::request::{Asked, Batch, Shape};
use crate::{Error, ErrorKind, Landed, Result};

/// A batch, checked and cut into slices. Owns its leases: they live as long as any flight of it.
pub(crate) struct Plan {
    pub(crate) peer: Peer,
    requests: Vec<Planned>,
    leases: Mutex<Vec<Lease>>,
    pub(crate) slices: Vec<PlannedSlice>,
    /// What GPUs copied at its last posting, where that was all of it.
    kept: Mutex<Option<Arc<Kept>>>,
    bytes: usize,
    pub(crate) event: Option<Event>,
    pub(crate) deadline: Option<Duration>,
    pub(crate) events: Events,
    in_flight: AtomicBool,
    /// Nobody knows that what its reads have left is whole.
    is_doubtful: AtomicBool,
    /// Nobody will ask for the leases: they go back when the flight is over.
    is_orphan: AtomicBool,
}

/// One request's side of this process.
struct Planned {
    memory: Slice,
    operation: Operation,
    /// The grant that it is asked for under, if any.
    under: Option<Reference>,
}

impl Plan {
    pub(crate) fn new(batch: Batch, name: &str) -> Result<Self, (Error, Vec<Lease>)> {
        let Batch { peer, requests, event, deadline, events } = batch;
        let split = |Asked { lease, shape, under }| (lease, (shape, under));
        let (leases, shapes): (Vec<_>, Vec<_>) = requests.into_iter().map(split).unzip();
        let slices = match sliced(&peer, &leases, &shapes) {
            Ok(slices) => slices,
            Err(error) => return Err((error, leases)),
        };
        let event = match checked_event(event, &peer, name) {
            Ok(event) => event,
            Err(error) => return Err((error, leases)),
        };
        let planned = |(lease, (_, under)): (&Lease, &(_, _))| Planned::new(lease, *under);
        let requests = leases.iter().zip(&shapes).map(planned).collect();
        Ok(Self {
            peer,
            requests,
            leases: Mutex::new(leases),
            bytes: slices.iter().map(|slice: &PlannedSlice| slice.len).sum(),
            slices,
            kept: Mutex::default(),
            event,
            deadline,
            events,
            in_flight: AtomicBool::new(false),
            is_doubtful: AtomicBool::new(false),
            is_orphan: AtomicBool::new(false),
        })
    }

    /// What it kept from its last posting.
    pub(crate) fn kept(&self) -> Option<Arc<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// For its next posting, if there is one.
    pub(crate) fn keep(&self, kept: Option<Kept>) {
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = kept.map(Arc::new);
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
        self.settle();
        self.link().landed();
    }

    fn settle(&self) {
        // SeqCst pairs with `abandon`: one of the two sees the other's store.
        self.in_flight.store(false, Ordering::SeqCst);
        if self.is_orphan.load(Ordering::SeqCst) {
            drop(self.take_leases());
        }
    }

    /// Nobody will ask for the leases any more.
    pub(crate) fn abandon(&self) {
        self.is_orphan.store(true, Ordering::SeqCst);
        if !self.in_flight.load(Ordering::SeqCst) {
            drop(self.take_leases());
        }
    }

    /// The peer has taken its event: where steps of counters can follow the data on rails, this
    /// one can from now on.
    pub(crate) fn counted(&self) {
        let counter = self.event.as_ref().and_then(|event| event.count);
        if let (Some((counter, _)), Some(reach)) = (counter, self.link().reach()) {
            reach.counts(counter);
        }
    }

    pub(crate) fn link(&self) -> &Link {
        &self.peer.inner.link
    }

    /// It is under way from here on, until it has landed.
    ///
    /// # Errors
    /// Busy: it is under way. Draining, Closed: its peer is, or this engine.
    pub(crate) fn take_off(&self) -> Result<()> {
        self.seize()?;
        self.link().take_off().inspect_err(|_| self.settle())?;
        self.is_doubtful.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Nobody else posts it, or has its leases.
    fn seize(&self) -> Result<()> {
        match self.in_flight.swap(true, Ordering::SeqCst) {
            false => Ok(()),
            true => Err(Error::busy("this prepared batch is still under way; wait for its end")),
        }
    }

    pub(crate) fn take_leases(&self) -> Vec<Lease> {
        std::mem::take(&mut *self.leases.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Its last posting ended so.
    pub(crate) fn ended(&self, statuses: &[Result<()>]) {
        self.is_doubtful.store(statuses.iter().any(may_have_written), Ordering::Relaxed);
    }

    /// Its leases after its only posting, which ended so.
    pub(crate) fn leases_after(&self, statuses: &[Result<()>]) -> Vec<Lease> {
        let judged = |(lease, status): (Lease, _)| match may_have_written(status) {
            true => lease.undefined(),
            false => lease,
        };
        self.take_leases().into_iter().zip(statuses).map(judged).collect()
    }

    pub(crate) fn memory(&self, slice: &PlannedSlice) -> Slice {
        self.requests[slice.request]
            .memory
            .part(slice.offset, slice.len)
            .expect("the planner checked it against the lease")
    }

    pub(crate) fn operation(&self, slice: &PlannedSlice) -> Operation {
        self.requests[slice.request].operation
    }

    /// The grant that a slice is asked for under, if any.
    pub(crate) fn key(&self, slice: &PlannedSlice) -> Option<Key> {
        self.requests[slice.request].under.map(|reference| reference.key)
    }

    /// The error of a slice that its grant does not cover, or not any more.
    pub(crate) fn denied(&self, slice: &PlannedSlice, denied: Denied) -> Error {
        let what = self.requests[slice.request].under.map(|reference| reference.what());
        let what = what.unwrap_or_default();
        let verb = self.operation(slice).label();
        match denied {
            Denied::Stale => Error::new(
                ErrorKind::Stale,
                format!("{what} was taken back: ask its owner for a new reference"),
            ),
            Denied::Refused => Error::refused(format!(
                "{what} does not permit this peer to {verb} {} bytes at {:#x}",
                slice.len, slice.addr
            )),
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many slices each request was cut into.
    pub(crate) fn slices_of_requests(&self) -> Vec<usize> {
        let mut counts = vec![0; self.requests.len()];
        self.slices.iter().for_each(|slice| counts[slice.request] += 1);
        counts
    }
}

/// Whether a read that ended so leaves undefined bytes.
fn may_have_written(status: &Result<()>) -> bool {
    status.as_ref().is_err_and(|error| error.landed() != Landed::No)
}

/// The slices of all requests, each inside of what it is asked for under.
fn sliced(
    peer: &Peer,
    leases: &[Lease],
    shapes: &[(Shape, Option<Reference>)],
) -> Result<Vec<PlannedSlice>> {
    let mut slices = Vec::new();
    for (number, (lease, (shape, under))) in leases.iter().zip(shapes).enumerate() {
        let first = slices.len();
        plan(number, lease.memory().len(), shape, SLICE_BYTES, &mut slices)?;
        let Some(reference) = under else { continue };
        if matches!(&peer.inner.link.route.kind, RouteKind::Tcp(tcp) if !tcp.takes_grants()) {
            return Err(Error::refused("the peer knows no grants: it is Mooncake's, or older"));
        }
        let is_inside = |slice: &PlannedSlice| reference.holds(slice.addr, slice.len as u64);
        if let Some(slice) = slices[first..].iter().find(|slice| !is_inside(slice)) {
            return Err(Error::refused(format!(
                "request {number}: {} bytes at {:#x} are outside of {}",
                slice.len,
                slice.addr,
                reference.what()
            )));
        }
    }
    Ok(slices)
}

impl Planned {
    fn new(lease: &Lease, under: Option<Reference>) -> Self {
        let operation = match lease {
            Lease::Shared(_) => Operation::Write,
            Lease::Exclusive(_) | Lease::Undefined(_) => Operation::Read,
        };
        Self { memory: lease.memory().clone(), operation, under }
    }
}

/// An event that this peer can take, signed with our name; none where there is nothing to say.
fn checked_event(mut event: Event, peer: &Peer, name: &str) -> Result<Option<Event>> {
    if event == Event::default() {
        return Ok(None);
    }
    if let Some((from, message)) = &mut event.message {
        *from = name.to_owned();
        if message.len() as u64 > EVENT_MAX_BYTES - EVENT_NAME_MAX_BYTES {
            return Err(Error::refused(format!(
                "a notification of {} bytes, of {} at most",
                message.len(),
                EVENT_MAX_BYTES - EVENT_NAME_MAX_BYTES
            )));
        }
    }
    let takes_events = match &peer.inner.link.route.kind {
        RouteKind::Tcp(tcp) => tcp.takes_events(),
        RouteKind::Local => true,
    };
    let text = event.message.as_ref().map(|(_, message)| std::str::from_utf8(message));
    if !takes_events && event.count.is_some() {
        return Err(Error::refused(
            "a Mooncake peer, or one spoken to in version 1, has no counters; notify it instead",
        ));
    }
    if !takes_events && matches!(text, Some(Err(_))) {
        return Err(Error::refused(
            "a Mooncake peer, or one spoken to in version 1, is notified in UTF-8 text only",
        ));
    }
    Ok(Some(event))
}

/// A batch that was checked and planned, to be posted again and again.
///
/// Who has its leases back can't post it any more:
/// ```compile_fail,E0382
/// # fn wrong(engine: kvrail::Engine, prepared: kvrail::Prepared) {
/// let leases = prepared.into_leases();
/// let transfer = engine.post(&prepared);
/// # }
/// ```
pub struct Prepared {
    pub(crate) plan: Arc<Plan>,
}

impl Prepared {
    pub(crate) fn new(engine: &Inner, batch: Batch) -> Result<Self> {
        match Plan::new(batch, engine.name()) {
            Ok(plan) => Ok(Self { plan: Arc::new(plan) }),
            Err((error, _)) => Err(error),
        }
    }

    /// Bytes that one posting moves.
    pub fn bytes(&self) -> usize {
        self.plan.bytes()
    }

    /// Gives the leases back, in the order of the requests; those of reads as undefined, where
    /// nobody saw the last posting end well.
    ///
    /// # Errors
    /// Busy, with the batch, while it is under way.
    pub fn into_leases(self) -> Result<Vec<Lease>, (Error, Self)> {
        match self.plan.seize() {
            Ok(()) => {
                let leases = self.plan.take_leases().into_iter();
                let is_doubtful = self.plan.is_doubtful.load(Ordering::Relaxed);
                let judged = |lease: Lease| if is_doubtful { lease.undefined() } else { lease };
                Ok(leases.map(judged).collect())
            }
            Err(error) => Err((error, self)),
        }
    }
}

impl fmt::Debug for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { peer, requests, bytes, .. } = &*self.plan;
        let (peer, requests) = (peer.name(), requests.len());
        write!(f, "Prepared({requests} requests of {bytes} bytes, {peer})")
    }
}

impl Drop for Prepared {
    /// The leases are back at once, or when the posting that is under way has ended.
    fn drop(&mut self) {
        self.plan.abandon();
    }
}
