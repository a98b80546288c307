//! What peers' requests reach of an engine, whichever path they came by.

use std::sync::Arc;

use kvrail_reactors::cuda::Landing;
use kvrail_reactors::region::Slice;
use tracing::field::display;

use super::asking::{Asking, RequestName};
use super::tcp::{Event, LaneName, Status};
use crate::arrivals::Arrivals;
use crate::auth::{Entrance, Gate, Pass, Seal, Visitor};
use crate::memory::grant::{Denied, Grants, Key, Use};
use crate::memory::{Operation, RegionsView};
use crate::metrics;

/// What a connection asks of its engine.
pub(crate) trait Served {
    /// The memory that a visitor's request may touch; none where it is refused.
    fn find(
        &mut self,
        asking: &Asking<'_>,
        addr: u64,
        len: u64,
        operation: Operation,
    ) -> Option<Slice>;
    /// The same under a grant: the memory, and the use that the request makes of the grant until
    /// it drops it.
    fn find_granted(
        &mut self,
        asking: &Asking<'_>,
        key: Key,
        addr: u64,
        len: u64,
        operation: Operation,
    ) -> Result<(Slice, Use), Denied>;
    /// All of the memory that several requests touch, if they may, under a grant or without; none
    /// where each is to be looked at by itself. Nothing is counted before `took_all`.
    fn find_all(
        &mut self,
        asking: &Asking<'_>,
        key: Option<Key>,
        addr: u64,
        len: u64,
        operation: Operation,
    ) -> Option<(Slice, Option<Use>)>;
    /// Counts what was found so.
    fn took_all(&mut self, asking: &Asking<'_>, bytes: u64, operation: Operation);
    /// Counts and queues an event; answers Ok, Busy or Refused.
    fn event(&mut self, asking: &Asking<'_>, event: Event) -> Status;
    /// Whether the engine is this incarnation of its name.
    fn is_process(&self, incarnation: u64) -> bool;
    /// Who shows a pass for the connection that it calls so, and what encrypts the connection
    /// behind it, if anything does; none where it is no good.
    fn admit(&mut self, pass: &Pass, lane: LaneName) -> Option<(Visitor, Option<Seal>)>;
    /// What brings bytes to GPUs that came by a socket.
    fn landing(&mut self) -> &mut Landing;
}

/// One shard's way to the engine's regions, grants, counters and notifications.
pub(crate) struct Service {
    regions: RegionsView,
    grants: Arc<Grants>,
    arrivals: Arc<Arrivals>,
    gate: Arc<Gate>,
    serving: metrics::Serving,
    incarnation: u64,
    landing: Landing,
}

impl Service {
    /// What the engine of this incarnation serves.
    pub(crate) fn new(
        regions: RegionsView,
        grants: Arc<Grants>,
        arrivals: Arc<Arrivals>,
        incarnation: u64,
    ) -> Self {
        let (gate, serving, landing) = Default::default();
        Self { regions, grants, arrivals, gate, serving, incarnation, landing }
    }

    /// The same, whose GPUs' launches take so many multiprocessors at most.
    pub(crate) fn with_sm_budget(self, sm_budget: u32) -> Self {
        Self { landing: Landing::new(sm_budget), ..self }
    }

    /// The same behind a gate.
    pub(crate) fn behind(self, gate: Arc<Gate>) -> Self {
        Self { gate, ..self }
    }

    /// Whoever connects by TCP.
    pub(crate) fn newcomer(&self) -> Visitor {
        self.gate.tcp_newcomer()
    }

    /// How TCP connections of this engine's get in where it is their peer, and elsewhere too: what
    /// it asks for it also does.
    pub(crate) fn entrance(&self) -> Entrance {
        if self.gate.encrypts_tcp() { Entrance::SealedTcp } else { Entrance::Tcp }
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
    fn find(
        &mut self,
        asking: &Asking<'_>,
        addr: u64,
        len: u64,
        operation: Operation,
    ) -> Option<Slice> {
        let Asking { visitor, request } = *asking;
        let found = self.regions.current().find_for(visitor, addr, len, operation);
        self.serving.add(operation, len, found.is_ok());
        match &found {
            Ok(_) => served(request, visitor, len, operation),
            Err(error) => tracing::debug!(
                request = request.map(display), peer = %visitor, %error, "refused a peer's request"
            ),
        }
        found.ok()
    }

    fn find_granted(
        &mut self,
        asking: &Asking<'_>,
        key: Key,
        addr: u64,
        len: u64,
        operation: Operation,
    ) -> Result<(Slice, Use), Denied> {
        let Asking { visitor, request } = *asking;
        let regions = self.regions.current();
        let found = self.grants.find_for(visitor, regions, key, addr, len, operation);
        self.serving.add(operation, len, found.is_ok());
        match &found {
            Ok(_) => served(request, visitor, len, operation),
            Err(denied) => tracing::debug!(
                request = request.map(display), peer = %visitor, ?key, ?denied,
                "refused a peer's request under a grant"
            ),
        }
        found
    }

    fn find_all(
        &mut self,
        asking: &Asking<'_>,
        key: Option<Key>,
        addr: u64,
        len: u64,
        operation: Operation,
    ) -> Option<(Slice, Option<Use>)> {
        let (visitor, regions) = (asking.visitor, self.regions.current());
        let Some(key) = key else {
            let found = regions.find_for(visitor, addr, len, operation);
            return found.ok().map(|found| (found, None));
        };
        let found = self.grants.find_for(visitor, regions, key, addr, len, operation);
        found.ok().map(|(found, used)| (found, Some(used)))
    }

    fn took_all(&mut self, asking: &Asking<'_>, bytes: u64, operation: Operation) {
        let Asking { visitor, request } = *asking;
        self.serving.add(operation, bytes, true);
        served(request, visitor, bytes, operation);
    }

    fn event(&mut self, asking: &Asking<'_>, event: Event) -> Status {
        let Asking { visitor, request } = *asking;
        let counter = event.count.map(|(counter, _)| counter);
        // Who may reach nothing has nothing to say about it.
        let status = match visitor.may_something() {
            true => self.arrivals.event(event),
            false => Status::Refused,
        };
        tracing::debug!(
            request = request.map(display), peer = %visitor, counter, ?status, "a peer's event"
        );
        status
    }

    fn is_process(&self, incarnation: u64) -> bool {
        self.incarnation == incarnation
    }

    fn admit(&mut self, pass: &Pass, lane: LaneName) -> Option<(Visitor, Option<Seal>)> {
        self.gate.admit_tcp(pass, lane)
    }

    fn landing(&mut self) -> &mut Landing {
        &mut self.landing
    }
}

fn served(request: Option<RequestName>, visitor: &Visitor, bytes: u64, operation: Operation) {
    let (request, operation) = (request.map(display), operation.label());
    tracing::trace!(request, peer = %visitor, bytes, operation, "serves a peer's request");
}
