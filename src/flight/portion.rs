//! Parts of a flight that are out, none of which can get lost.

use std::ops::RangeInclusive;
use std::sync::Arc;

use super::{EVENT, Flight};
use crate::{Error, Landed};

/// A part of a flight that is out. Dropped before it came back (its shard panicked, or ended with
/// it in the inbox), it fails its requests as Closed: nobody waits for it for ever.
pub(crate) struct Portion {
    flight: Arc<Flight>,
    /// The requests that have slices in it.
    requests: RangeInclusive<usize>,
    is_back: bool,
}

impl Portion {
    pub(crate) fn new(flight: Arc<Flight>, requests: RangeInclusive<usize>) -> Self {
        Self { flight, requests, is_back: false }
    }

    /// Keeps the flight from ending before all of its parts are out.
    pub(crate) fn gate(flight: &Arc<Flight>) -> Self {
        let requests = match flight.plan.requests() {
            0 => EVENT..=EVENT,
            requests => 0..=requests - 1,
        };
        Self::new(flight.clone(), requests)
    }

    pub(crate) fn flight(&self) -> &Arc<Flight> {
        &self.flight
    }

    /// Whether it is the event behind the data.
    pub(crate) fn is_event(&self) -> bool {
        *self.requests.start() == EVENT
    }

    /// All of it fails, and nothing of it was begun.
    pub(crate) fn fail_all(self, error: &Error) {
        let requests = self.requests.clone();
        self.back(requests.map(|request| (request, error.clone())).collect());
    }

    /// The caller's event of a GPU was to be recorded, and now is, if it can be.
    pub(crate) fn back_recorded(self) {
        let is_recorded = self.flight.is_recorded();
        let failed = || (EVENT, Error::refused("the event could not be recorded on its GPU"));
        let failures = (!is_recorded).then(failed).into_iter().collect();
        self.back(failures);
    }

    /// Every slice of it has ended and its memory is quiet; with what failed, by request number.
    pub(crate) fn back(mut self, failures: Vec<(usize, Error)>) {
        self.is_back = true;
        self.flight.part_back(failures);
    }
}

impl Drop for Portion {
    fn drop(&mut self) {
        if !self.is_back {
            let error = Error::closed("the shard ended under it").with_landed(Landed::Maybe);
            let requests = self.requests.clone();
            self.flight.part_back(requests.map(|request| (request, error.clone())).collect());
        }
    }
}
