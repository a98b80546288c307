//! What the passing of time and the end of connections ask of a shard: stalled peers, fences,
//! requests whose transfer is over, and lanes that died.

use kvrail_reactors::ticket::{Table, Ticket};
use tracing::field::display;

use super::client::Request;
use super::connection::{Connection, End, Role};
use super::peers::{Fencing, Lanes, Loss};
use super::shard::{Part, TcpShard};
use super::wire::LaneName;
use crate::canary::{self, Canary};
use crate::limits::{ENDING_GRACE_NS, ENDING_MAX_NS, FENCE_PATIENCE_NS, TICK_NS};
use crate::receipt::Fenced;
use crate::{Error, ErrorKind, Landed, PathKind};

impl TcpShard {
    /// Takes a connection down once it has ended and nothing is under way on it.
    pub(super) fn reap_if_over(&mut self, ticket: Ticket<Connection>, now_ns: u64) {
        if !self.connections.get(ticket).is_some_and(Connection::is_over) {
            return;
        }
        let Some(connection) = self.connections.remove(ticket) else { return };
        match connection.role {
            Role::Server(_) => self.servers = self.servers.saturating_sub(1),
            Role::Client { stream, peer, round } => {
                let loss = Loss {
                    end: connection.end.unwrap_or(End::Ours),
                    was_careful: stream.is_careful(),
                    was_rejected: connection.rejected,
                    name: stream.name(),
                    was_ready: stream.is_ready(),
                    round,
                };
                self.lane_lost(ticket, peer, loss, stream.into_unanswered(), now_ns);
            }
        }
    }

    pub(super) fn lane_lost(
        &mut self,
        lane: Ticket<Connection>,
        key: u64,
        loss: Loss,
        unanswered: Vec<Request>,
        now_ns: u64,
    ) {
        let Some(lanes) = self.peers.get_mut(&key) else {
            for request in unanswered {
                self.ended(request, Err(Error::closed("the peer was closed")));
            }
            return;
        };
        if !unanswered.is_empty() {
            let (peer, requests) = (&lanes.route.name, unanswered.len());
            let first = unanswered[0].name.map(display);
            tracing::debug!(%peer, end = ?loss.end, requests, first, "lost a lane");
        }
        lanes.lanes.retain(|other| *other != lane);
        if !lanes.may_retry(&loss) {
            let error = lanes.lost(&loss);
            let waiting: Vec<_> = lanes.waiting.drain(..).collect();
            for request in waiting {
                let error = request.at_rest(error.clone());
                self.ended(request, Err(error));
            }
            return;
        }
        if canary::is_on(Canary::LocalFence) {
            return self.settle(key, &loss, unanswered, Fenced::Lane, now_ns);
        }
        match Lanes::must_fence(&loss, &unanswered).filter(|_| !self.is_stopping) {
            Some(name) => {
                (self.errands.fence)(&lanes.route, name);
                let patience_ns = now_ns + FENCE_PATIENCE_NS;
                lanes.fencing.push(Fencing { loss, unanswered, patience_ns });
                self.dispatch(key, now_ns);
            }
            None => self.settle(key, &loss, unanswered, Fenced::Nobody, now_ns),
        }
    }

    /// The peer has said what it knows of a lane that it was asked to end.
    pub(super) fn fenced(&mut self, key: u64, lane: LaneName, fenced: Fenced, now_ns: u64) {
        self.settle_fencing(key, fenced, now_ns, |fencing| fencing.loss.name == Some(lane));
    }

    /// Settles what waits for the peer's word on those lanes that `which` picks.
    pub(super) fn settle_fencing(
        &mut self,
        key: u64,
        fenced: Fenced,
        now_ns: u64,
        which: impl Fn(&Fencing) -> bool,
    ) {
        let Some(lanes) = self.peers.get_mut(&key) else { return };
        let settled: Vec<_> = lanes.fencing.extract_if(.., |fencing| which(fencing)).collect();
        for Fencing { loss, unanswered, .. } in settled {
            self.settle(key, &loss, unanswered, fenced, now_ns);
        }
    }

    fn settle(
        &mut self,
        key: u64,
        loss: &Loss,
        unanswered: Vec<Request>,
        fenced: Fenced,
        now_ns: u64,
    ) {
        let Some(lanes) = self.peers.get_mut(&key) else { return };
        let failed = lanes.settle(loss, unanswered, fenced);
        for (request, error) in failed {
            // The user's own end of the transfer explains more than the lane's.
            let error = match ended_early(&self.parts, &request, now_ns) {
                Some(kind) => Error::new(kind, "the transfer ended while this was under way")
                    .with_path(PathKind::Tcp)
                    .with_landed(Landed::Maybe)
                    .with_fence(error.fenced()),
                None => error,
            };
            self.ended(request, Err(error));
        }
        if !self.is_stopping {
            self.dispatch(key, now_ns);
        }
    }

    /// Fails those waiting requests of a peer for which `why` has a reason.
    pub(super) fn fail_waiting(
        &mut self,
        key: u64,
        why: impl Fn(&Table<Part>, &Request) -> Option<ErrorKind>,
    ) {
        let Some(lanes) = self.peers.get_mut(&key) else { return };
        let waiting = std::mem::take(&mut lanes.waiting);
        let mut failed = Vec::new();
        for request in waiting {
            match why(&self.parts, &request) {
                Some(kind) => {
                    let error = lanes.unsent(&request, kind);
                    failed.push((request, error));
                }
                None => lanes.waiting.push_back(request),
            }
        }
        for (request, error) in failed {
            self.ended(request, Err(error));
        }
    }

    /// Lets those go on who wait until no peer's request is under way.
    pub(super) fn rest_if_quiet(&mut self) {
        let serves =
            |connection: &Connection| connection.serves_somebody() && connection.is_mid_request();
        if !self.resting.is_empty() && !self.connections.iter().any(|(_, other)| serves(other)) {
            self.resting.clear();
        }
    }

    /// Whether anything depends on the passing of time.
    pub(super) fn has_clocks(&self) -> bool {
        !self.parts.is_empty()
            || !self.fences.is_empty()
            || self.connections.iter().any(|(_, connection)| connection.is_mid_request())
    }

    pub(super) fn tick(&mut self, now_ns: u64) {
        self.next_tick_ns = now_ns + TICK_NS;
        self.end_stalled(now_ns);
        let ring = &mut self.ring;
        self.connections.iter_mut().for_each(|(_, connection)| connection.cut_off(ring, now_ns));
        let keys: Vec<u64> = self.peers.keys().copied().collect();
        for key in keys {
            self.fail_waiting(key, |parts, request| ended_early(parts, request, now_ns));
            self.relax_if_answered(key);
            let is_late = |fencing: &Fencing| fencing.patience_ns <= now_ns;
            self.settle_fencing(key, Fenced::Nobody, now_ns, is_late);
        }
        self.check_fences(now_ns);
        self.reap_quiet(now_ns);
    }

    /// A peer that owes nothing any more is trusted again; not sooner, or a request that it closes
    /// at could go out again and again beside others.
    fn relax_if_answered(&mut self, key: u64) {
        let Some(lanes) = self.peers.get_mut(&key) else { return };
        let owes = |lane| self.connections.get(lane).is_some_and(Connection::is_mid_request);
        if lanes.waiting.is_empty() && !lanes.lanes.iter().any(|&lane| owes(lane)) {
            lanes.relax();
        }
    }

    /// Closes connections whose peer owes progress and makes none: sooner where the transfer that
    /// waits for it has ended already.
    pub(super) fn end_stalled(&mut self, now_ns: u64) {
        let parts = &self.parts;
        for (_, connection) in self.connections.iter_mut() {
            if connection.end.is_some() || !connection.is_mid_request() {
                continue;
            }
            let is_given_up = |request: &Request| ended_early(parts, request, now_ns).is_some();
            let silent_ns = now_ns.saturating_sub(connection.progress_ns);
            let end = match connection.given_up_ns(now_ns, is_given_up) {
                Some(since_ns)
                    if silent_ns > ENDING_GRACE_NS || now_ns - since_ns > ENDING_MAX_NS =>
                {
                    End::GivenUp
                }
                _ if silent_ns > self.limits.progress_ns
                    || connection.has_lingered(now_ns)
                    || connection.is_late_to_be_let_in(now_ns) =>
                {
                    End::Stalled
                }
                _ => continue,
            };
            connection.close(&mut self.ring, end);
        }
    }

    /// Lets go of fences that nothing touches any more, and hurries those out of patience.
    pub(super) fn check_fences(&mut self, now_ns: u64) {
        let (connections, ring) = (&mut self.connections, &mut self.ring);
        self.fences.retain(|fence| {
            let mut is_touched = false;
            for (_, connection) in connections.iter_mut() {
                if connection.touches(&fence.region) {
                    is_touched = true;
                    if now_ns >= fence.patience_ns {
                        connection.close(ring, End::Ours);
                    }
                }
            }
            is_touched
        });
    }

    pub(super) fn reap_quiet(&mut self, now_ns: u64) {
        let over: Vec<_> = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.is_over())
            .map(|(ticket, _)| ticket)
            .collect();
        over.into_iter().for_each(|ticket| self.reap_if_over(ticket, now_ns));
    }
}

/// Why a request's transfer has ended early, if it has.
pub(super) fn ended_early(
    parts: &Table<Part>,
    request: &Request,
    now_ns: u64,
) -> Option<ErrorKind> {
    parts.get(Ticket::from_raw(request.part))?.portion.flight().ended_early(now_ns)
}
