//! What peers' requests reach of an engine, whichever path they came by.

use std::sync::Arc;

use kvrail_reactors::region::Slice;

use super::tcp::{Event, Status};
use crate::arrivals::Arrivals;
use crate::memory::grant::{Denied, Grants, Key, Use};
use crate::memory::{Operation, RegionsView};
use crate::metrics;

/// What a connection asks of its engine.
pub(crate) trait Served {
    /// The memory that a request may touch; none where it is refused.
    fn find(&mut self, addr: u64, len: u64, operation: Operation) -> Option<Slice>;
    /// The same under a grant, for a peer of this name: the memory, and the use that the request
    /// makes of the grant until it drops it.
    fn find_granted(
        &mut self,
        key: Key,
        holder: &str,
        addr: u64,
        len: u64,
        operation: Operation,
    ) -> Result<(Slice, Use), Denied>;
    /// Counts and queues an event; answers Ok, Busy or Refused.
    fn event(&mut self, event: Event) -> Status;
    /// Whether the engine is this incarnation of its name.
    fn is_process(&self, incarnation: u64) -> bool;
}

/// One shard's way to the engine's regions, grants, counters and notifications.
pub(crate) struct Service {
    regions: RegionsView,
    grants: Arc<Grants>,
    arrivals: Arc<Arrivals>,
    serving: metrics::Serving,
    incarnation: u64,
}

impl Service {
    /// What the engine of this incarnation serves.
    pub(crate) fn new(
        regions: RegionsView,
        grants: Arc<Grants>,
        arrivals: Arc<Arrivals>,
        incarnation: u64,
    ) -> Self {
        Self { regions, grants, arrivals, serving: Default::default(), incarnation }
    }

    /// Lets go of regions that were unregistered: until the next request, nobody else would.
    pub(crate) fn refresh(&mut self) {
        self.regions.current();
    }

    /// Records what was asked since the last time.
    pub(crate) fn record(&mut self) {
        self.serving.record();
    }
}

impl Served for Service {
    fn find(&mut self, addr: u64, len: u64, operation: Operation) -> Option<Slice> {
        let found = self.regions.current().find(addr, len, operation);
        self.serving.add(operation, len, found.is_ok());
        found.inspect_err(|error| tracing::debug!(%error, "refused a peer's request")).ok()
    }

    fn find_granted(
        &mut self,
        key: Key,
        holder: &str,
        addr: u64,
        len: u64,
        operation: Operation,
    ) -> Result<(Slice, Use), Denied> {
        let found = self.grants.find(key, holder, addr, len, operation);
        self.serving.add(operation, len, found.is_ok());
        found.inspect_err(|denied| tracing::debug!(?key, holder, ?denied, "a peer's request"))
    }

    fn event(&mut self, event: Event) -> Status {
        self.arrivals.event(event)
    }

    fn is_process(&self, incarnation: u64) -> bool {
        self.incarnation == incarnation
    }
}
