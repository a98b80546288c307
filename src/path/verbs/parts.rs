//! Parts of transfers on a shard's rails: from slices to an order, and from an order's ending to
//! what their flight is told.

use std::sync::Arc;

use kvrail_reactors::verbs::Status;
use tracing::field::display;

use super::reach::Reach;
use crate::flight::{EVENT, Portion};
use crate::memory::grant;
use crate::metrics::Carried;
use crate::path::asking::RequestName;
use crate::path::rdma::{self, Ending, Event, Incarnation, Order, RdmaSlice, SliceEnd};
use crate::receipt::Fenced;
use crate::{Error, ErrorKind, Landed, PathKind};

/// A part of a transfer, to be carried over rails.
pub(crate) struct Carry {
    pub(crate) portion: Portion,
    /// The peer's number.
    pub(crate) peer: u64,
    pub(crate) reach: Arc<Reach>,
    /// Each with its request's number.
    pub(crate) slices: Vec<(usize, RdmaSlice)>,
    pub(crate) event: Option<Event>,
}

/// What is kept of a part while it is under way. Dropped, it fails.
pub(super) struct Part {
    portion: Portion,
    reach: Arc<Reach>,
    requests: Vec<(usize, usize)>,
    has_event: bool,
    is_reading: bool,
    /// It has ended, but a silent NIC may still touch its memory.
    ending: Option<Ending>,
}

impl Part {
    pub(super) fn new(carry: Carry, id: u64) -> (Self, Order) {
        let Carry { portion, peer, reach, slices, event } = carry;
        let deadline_ns = portion.flight().deadline_ns;
        let requests = slices.iter().map(|(request, slice)| (*request, slice.local.len()));
        let part = Self {
            requests: requests.collect(),
            has_event: event.is_some(),
            is_reading: slices.iter().all(|(_, slice)| !slice.is_write) && event.is_none(),
            ending: None,
            reach: reach.clone(),
            portion,
        };
        let slices = slices.into_iter().map(|(_, slice)| slice).collect();
        let target = reach.incarnation.map(Incarnation);
        let order = Order { id, peer, slices, target, guard: None, event, deadline_ns };
        (part, order)
    }

    pub(super) fn slices(&self) -> usize {
        self.requests.len()
    }

    /// Why it should end early, if so.
    pub(super) fn ended_early(&self, now_ns: u64) -> Option<ErrorKind> {
        self.portion.flight().ended_early(now_ns)
    }

    /// It ended so, but its memory here isn't quiet yet.
    pub(super) fn keep(&mut self, ending: Ending) {
        self.ending = Some(ending);
    }

    pub(super) fn take_ending(&mut self) -> Option<Ending> {
        self.ending.take()
    }

    /// It never was on its way.
    pub(super) fn refused(self, kind: ErrorKind) {
        let error = self.error(kind, None, &[]).with_fence(Fenced::Unposted);
        let ends = vec![Some(error.clone()); self.slices()];
        let event = (self.has_event && ends.is_empty()).then_some(error);
        self.finish(ends, event);
    }

    /// It has ended, and its memory here is quiet. `nics` are the names of ours.
    pub(super) fn ended(self, ending: &Ending, nics: &[&str]) {
        self.note(ending);
        let fence = fenced(ending.fenced, self.is_reading);
        let error = |kind, landed| {
            let fence = if landed == Landed::No { Fenced::Unposted } else { fence };
            let error = self.error(kind, ending.culprit.as_ref(), nics);
            error.with_landed(landed).with_fence(fence)
        };
        let of_slice =
            |end: &Result<(), SliceEnd>| end.err().map(|end| error(end.kind, end.landed));
        let ends: Vec<_> = ending.slices.iter().map(of_slice).collect();
        let is_event = self.has_event && ends.iter().all(Option::is_none);
        let event = ending.kind.filter(|_| is_event).map(|kind| error(kind, Landed::Maybe));
        self.finish(ends, event);
    }

    /// By the names that the peer's log has for it, too.
    fn note(&self, ending: &Ending) {
        let endpoint = ending.culprit.map(|culprit| display(culprit.endpoint));
        let request = ending
            .event
            .map(|(initiator, number)| display(RequestName { lane: initiator.label(), number }));
        let (peer, why) = (&*self.reach.name, ending.kind.map(tracing::field::debug));
        let transfer = self.portion.flight().number();
        tracing::debug!(transfer, request, endpoint, peer, why, "its part on rails has ended");
    }

    /// The end of each slice, none where it went well.
    fn finish(self, ends: Vec<Option<Error>>, event: Option<Error>) {
        let (mut carried, mut failures) = (Carried::default(), Vec::new());
        for (&(request, bytes), end) in self.requests.iter().zip(ends) {
            match end {
                Some(error) => failures.push((request, error)),
                None => carried.add(bytes),
            }
        }
        carried.record(PathKind::Rdma, &failures);
        failures.extend(event.map(|error| (EVENT, error)));
        self.portion.back(failures);
    }

    fn error(&self, kind: ErrorKind, culprit: Option<&rdma::Culprit>, nics: &[&str]) -> Error {
        let rail = culprit.map(|culprit| {
            let rdma::Culprit { ends, status, .. } = culprit;
            let ours = nics.get(usize::from(ends.nic)).copied().unwrap_or("?");
            let theirs = self.reach.nics.get(usize::from(ends.theirs));
            let theirs = theirs.map_or("?", |nic| nic.name.as_str());
            match status {
                // It was our own doing, since nothing came.
                Status::Flushed => format!("rail {ours} to {theirs}: no completion in time"),
                status => format!("rail {ours} to {theirs}: {status}"),
            }
        });
        let rail = rail.unwrap_or_else(|| "no rail leads there".to_owned());
        let error = match kind {
            ErrorKind::Stale => grant::stale(),
            ErrorKind::Lost => Error::lost(format!(
                "the peer is out of reach ({rail}): is it running, and are ports and GIDs of both \
                 sides up?"
            )),
            ErrorKind::Refused if culprit.is_none() => Error::refused(
                "the peer permits no such access to this memory, by its grant or its policy",
            ),
            ErrorKind::Refused => Error::refused(format!(
                "the peer's NIC does not permit this ({rail}): open the peer again if its regions \
                 have changed"
            )),
            ErrorKind::Busy => Error::busy("the peer has no room for another window on this rail"),
            ErrorKind::Closed => Error::closed("the peer or the engine was closed"),
            ErrorKind::Expired => Error::new(kind, "the deadline passed"),
            kind => Error::new(kind, "the transfer was dropped"),
        };
        error.with_peer(self.reach.name.clone()).with_path(PathKind::Rdma)
    }
}

fn fenced(fenced: rdma::Fenced, is_reading: bool) -> Fenced {
    match fenced {
        rdma::Fenced::Unposted => Fenced::Unposted,
        rdma::Fenced::Answered if is_reading => Fenced::Reader,
        rdma::Fenced::Answered => Fenced::Answered,
        rdma::Fenced::Target => Fenced::Target,
        rdma::Fenced::Gone => Fenced::Gone,
        rdma::Fenced::Nobody => Fenced::Nobody,
    }
}
