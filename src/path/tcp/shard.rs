//! The TCP actor of one shard: it owns a ring, the connections on it and the parts of transfers
//! that they carry. It decides nothing about bytes: streams, lanes and flights do.

use std::collections::HashMap;
use std::net::TcpStream;
use std::sync::Arc;

use kvrail_reactors::Reactor;
use kvrail_reactors::region::Region;
use kvrail_reactors::ticket::{Table, Ticket};
use kvrail_reactors::uring::{Direction, Done, Uring};

use super::client::{Answer, ClientStream, Request};
use super::connection::{Connection, End, Role};
use super::peers::{Lanes, Loss};
use super::server::{Served, ServerStream};
use super::wire::{Event, Status};
use crate::arrivals::Arrivals;
use crate::config::TcpLimits;
use crate::flight::Portion;
use crate::limits::{ENDING_GRACE_NS, ENDING_MAX_NS, TICK_NS};
use crate::memory::{Operation, RegionsView};
use crate::metrics;
use crate::peer::Route;
use crate::{Error, ErrorKind, Landed, PathKind, Result};

/// What a shard's TCP actor is told.
pub(crate) enum Message {
    /// Carry a part of a transfer to a peer.
    Carry { portion: Portion, route: Arc<Route>, requests: Vec<Request> },
    /// A peer connected to our data port.
    Accepted(TcpStream),
    /// The process is out of descriptors: close a stranger's connection, if there is one.
    Crowded,
    /// A connection that was asked for, to the peer with this key.
    Dialed { peer: u64, result: Result<TcpStream> },
    /// End whatever touches this region, then drop the guard.
    Fence { region: Arc<Region>, guard: Guard },
    /// Nobody holds the peer with this key any more.
    Forget { peer: u64 },
}

/// Says by being dropped that a shard has done what it was asked.
pub(crate) type Guard = flume::Sender<()>;

/// Asks the control thread for a connection, to be answered by [`Message::Dialed`].
pub(crate) type Dial = Box<dyn Fn(&Arc<Route>)>;

/// A part of a transfer, from the shard's side.
struct Part {
    portion: Portion,
    outstanding: usize,
    failures: Vec<(usize, Error)>,
}

struct Fence {
    region: Arc<Region>,
    /// When connections that still touch the region are closed.
    patience_ns: u64,
    _guard: Guard,
}

/// One shard's TCP. Dropped with work under way (it panicked, or the time to stop was over), it
/// ends it: the ring goes first and waits until the kernel touches nothing, then the parts fail
/// and the fences' guards go.
pub(crate) struct TcpShard {
    ring: Uring,
    done: Vec<Done>,
    connections: Table<Connection>,
    served: Engine,
    peers: HashMap<u64, Lanes>,
    parts: Table<Part>,
    fences: Vec<Fence>,
    dial: Dial,
    limits: TcpLimits,
    servers: usize,
    next_tick_ns: u64,
    is_stopping: bool,
}

/// What peers' requests reach.
struct Engine {
    regions: RegionsView,
    arrivals: Arc<Arrivals>,
}

impl Served for Engine {
    fn find(
        &mut self,
        addr: u64,
        len: u64,
        operation: Operation,
    ) -> Option<kvrail_reactors::region::Slice> {
        let found = self.regions.current().find(addr, len, operation);
        metrics::served(operation, len, found.is_ok());
        found.inspect_err(|error| tracing::debug!(%error, "refused a peer's request")).ok()
    }

    fn event(&mut self, event: Event) -> Status {
        self.arrivals.event(event)
    }
}

/// Completions taken in one turn: enough to amortise a turn, few enough to stay fair.
const TURN_COMPLETIONS: usize = 32;

impl TcpShard {
    pub(crate) fn new(
        ring: Uring,
        regions: RegionsView,
        arrivals: Arc<Arrivals>,
        dial: Dial,
        limits: TcpLimits,
    ) -> Self {
        Self {
            ring,
            done: Vec::new(),
            connections: Table::default(),
            served: Engine { regions, arrivals },
            peers: HashMap::new(),
            parts: Table::default(),
            fences: Vec::new(),
            dial,
            limits,
            servers: 0,
            next_tick_ns: 0,
            is_stopping: false,
        }
    }

    pub(crate) fn handle(&mut self, message: Message, now_ns: u64) {
        match message {
            Message::Carry { portion, route, requests } => {
                self.carry(portion, route, requests, now_ns);
            }
            Message::Accepted(socket) => self.accept(socket, now_ns),
            Message::Crowded => {
                self.evict(true);
            }
            Message::Dialed { peer, result } => self.dialed(peer, result, now_ns),
            Message::Fence { region, guard } => {
                let patience_ns = now_ns + ENDING_GRACE_NS;
                self.fences.push(Fence { region, patience_ns, _guard: guard });
                self.check_fences(now_ns);
            }
            Message::Forget { peer } => self.forget(peer),
        }
    }

    /// Moves everything forward; returns how much there was to do.
    pub(crate) fn poll(&mut self, now_ns: u64) -> usize {
        let mut done = std::mem::take(&mut self.done);
        let polled = self.ring.poll(TURN_COMPLETIONS, &mut done);
        for done in done.drain(..) {
            self.completed(done, now_ns);
        }
        self.done = done;
        if now_ns >= self.next_tick_ns {
            self.tick(now_ns);
        } else if polled > 0 && !self.fences.is_empty() {
            self.check_fences(now_ns);
        }
        polled
    }

    /// Before parking: `false` where something is ready already.
    pub(crate) fn arm(&mut self, now_ns: u64) -> bool {
        if self.has_clocks() {
            self.ring.set_alarm(now_ns + TICK_NS, now_ns);
        }
        self.ring.arm()
    }

    /// Ends everything; `true` when nothing is left under way.
    pub(crate) fn stopping(&mut self, now_ns: u64) -> bool {
        if !self.is_stopping {
            self.is_stopping = true;
            for (_, connection) in self.connections.iter_mut() {
                connection.close(&mut self.ring, End::Ours);
            }
            let keys: Vec<u64> = self.peers.keys().copied().collect();
            keys.into_iter().for_each(|key| self.fail_waiting(key, |_, _| Some(ErrorKind::Closed)));
            self.reap_quiet(now_ns);
        }
        self.connections.is_empty() && self.parts.is_empty()
    }

    fn carry(
        &mut self,
        portion: Portion,
        route: Arc<Route>,
        mut requests: Vec<Request>,
        now_ns: u64,
    ) {
        let outstanding = requests.len();
        let part = self.parts.insert(Part { portion, outstanding, failures: Vec::new() });
        requests.iter_mut().for_each(|request| request.part = part.to_raw());
        let key = route.key;
        let lanes = self.peers.entry(key).or_insert_with(|| Lanes::new(route));
        lanes.waiting.extend(requests);
        if self.is_stopping {
            return self.fail_waiting(key, |_, _| Some(ErrorKind::Closed));
        }
        self.dispatch(key, now_ns);
    }

    /// Offers a peer's waiting requests to its lanes, and asks for more lanes where they pay.
    fn dispatch(&mut self, key: u64, now_ns: u64) {
        let Some(lanes) = self.peers.get_mut(&key) else { return };
        for lane in lanes.lanes.clone() {
            self.start(lane, now_ns);
        }
        let Some(lanes) = self.peers.get_mut(&key) else { return };
        for _ in 0..lanes.missing() {
            lanes.dialing += 1;
            (self.dial)(&lanes.route);
        }
    }

    fn dialed(&mut self, key: u64, result: Result<TcpStream>, now_ns: u64) {
        let Some(lanes) = self.peers.get_mut(&key) else { return };
        lanes.dialing = lanes.dialing.saturating_sub(1);
        match result.and_then(in_blocking_mode) {
            Ok(socket) if !self.is_stopping => {
                let (version, careful) = lanes.framing();
                let stream = ClientStream::new(version, careful);
                let role = Role::Client { stream, peer: key };
                let lane = self.connections.insert(Connection::new(socket, role, now_ns));
                lanes.lanes.push(lane);
                self.start(lane, now_ns);
            }
            Ok(_) => {}
            // As long as another lane lives or is being made, it carries what waits.
            Err(error) if lanes.lanes.is_empty() && lanes.dialing == 0 => {
                let failed: Vec<Request> = lanes.waiting.drain(..).collect();
                let error = lanes.blame(error);
                for request in failed {
                    self.ended(request, Err(error.clone()));
                }
            }
            Err(_) => {}
        }
    }

    fn accept(&mut self, socket: TcpStream, now_ns: u64) {
        if self.is_stopping {
            return;
        }
        let connections_max = self.limits.connections_max;
        if self.servers >= connections_max && !self.evict(false) {
            tracing::warn!(connections_max, "refused a data connection: all are busy");
            return;
        }
        let Ok(socket) = in_blocking_mode(socket) else { return };
        self.servers += 1;
        let role = Role::Server(ServerStream::default());
        let connection = self.connections.insert(Connection::new(socket, role, now_ns));
        self.start(connection, now_ns);
    }

    /// Closes a server connection, or only a stranger's, to make room; `false` where all are busy.
    fn evict(&mut self, only_strangers: bool) -> bool {
        let ring = &mut self.ring;
        let candidates = self.connections.iter_mut().filter_map(|(_, connection)| {
            connection.eviction_order().map(|order| (order, connection))
        });
        let first = candidates
            .filter(|((is_known, _), _)| !(only_strangers && *is_known))
            .min_by_key(|(order, _)| *order);
        first.map(|(_, connection)| connection.close(ring, End::Ours)).is_some()
    }

    /// Posts what a connection can take.
    fn start(&mut self, ticket: Ticket<Connection>, now_ns: u64) {
        let Some(connection) = self.connections.get_mut(ticket) else { return };
        let mut none = std::collections::VecDeque::new();
        let waiting = match &connection.role {
            Role::Client { peer, .. } => self.peers.get_mut(peer).map(|lanes| &mut lanes.waiting),
            Role::Server(_) => None,
        };
        let parts = &self.parts;
        let unwanted = |request: &Request| ended_early(parts, request, now_ns).is_some();
        let dropped = connection.start(
            ticket.to_raw(),
            now_ns,
            &mut self.ring,
            waiting.unwrap_or(&mut none),
            unwanted,
        );
        for request in dropped {
            self.end_unsent(request, now_ns);
        }
        self.reap_if_over(ticket, now_ns);
    }

    fn completed(&mut self, done: Done, now_ns: u64) {
        let ticket = Ticket::from_raw(done.tag);
        let Some(connection) = self.connections.get_mut(ticket) else { return };
        match done.direction {
            Direction::Send => {
                let tag = done.tag;
                connection.sent(tag, done, &mut self.ring, now_ns, &mut self.served);
            }
            Direction::Receive => self.received(ticket, done, now_ns),
        }
        self.start(ticket, now_ns);
    }

    fn received(&mut self, ticket: Ticket<Connection>, done: Done, now_ns: u64) {
        let Some(connection) = self.connections.get_mut(ticket) else { return };
        let Some((vector, count)) = connection.received(done, &mut self.ring, now_ns) else {
            return;
        };
        let mut answered = Vec::new();
        match &mut connection.role {
            // Bytes behind a refusal mean nothing; the connection is read only for its end.
            _ if connection.rejected => {}
            Role::Server(stream) => stream.received(&vector, count, &mut self.served),
            Role::Client { stream, .. } => {
                let push = |request, answer| answered.push((request, answer));
                match stream.received(&vector, count, push) {
                    Ok(()) => {}
                    Err(super::client::Broken::Rejected) => connection.rejected = true,
                    Err(broken) => connection.close(&mut self.ring, End::Broken(broken)),
                }
            }
        }
        connection.recycle(vector);
        for (request, answer) in answered {
            self.answered(request, answer);
        }
    }

    fn answered(&mut self, request: Request, answer: Answer) {
        let what = match answer {
            Answer::Done => return self.ended(request, Ok(())),
            Answer::Refused => Error::refused(format!(
                "the peer has no region that permits {} bytes at {:#x}",
                request.len(),
                request.addr
            )),
            Answer::Busy => Error::busy("the peer's queue of notifications is full"),
            Answer::Failed(code) => Error::refused(format!("the peer answered status {code}")),
        };
        let name = self.part(&request).map(|part| part.portion.flight().plan.peer_name());
        let error = name.into_iter().fold(what, |error, name| error.with_peer(name));
        self.ended(request, Err(error.with_path(PathKind::Tcp).with_landed(Landed::No)));
    }

    fn part(&self, request: &Request) -> Option<&Part> {
        self.parts.get(Ticket::from_raw(request.part))
    }

    /// A request has ended and its memory is quiet. The last one of a part takes the part back.
    fn ended(&mut self, request: Request, result: Result<()>) {
        let ticket = Ticket::from_raw(request.part);
        let Some(part) = self.parts.get_mut(ticket) else { return };
        metrics::carried(PathKind::Tcp, request.len(), result.as_ref().err());
        if let Err(error) = result {
            part.failures.push((request.index, error));
        }
        drop(request);
        part.outstanding -= 1;
        if part.outstanding == 0
            && let Some(part) = self.parts.remove(ticket)
        {
            part.portion.back(part.failures);
        }
    }

    /// A request that is not sent, since its transfer has ended.
    fn end_unsent(&mut self, request: Request, now_ns: u64) {
        let kind = ended_early(&self.parts, &request, now_ns).unwrap_or(ErrorKind::Cancelled);
        let error = Error::new(kind, "the transfer ended before this was sent")
            .with_path(PathKind::Tcp)
            .with_landed(request.landed());
        self.ended(request, Err(error));
    }

    /// Takes a connection down once it has ended and nothing is under way on it.
    fn reap_if_over(&mut self, ticket: Ticket<Connection>, now_ns: u64) {
        let over = |c: &Connection| c.end.is_some() && c.is_quiet();
        if !self.connections.get(ticket).is_some_and(over) {
            return;
        }
        let Some(connection) = self.connections.remove(ticket) else { return };
        match connection.role {
            Role::Server(_) => self.servers = self.servers.saturating_sub(1),
            Role::Client { stream, peer } => {
                let loss = Loss {
                    end: connection.end.unwrap_or(End::Ours),
                    was_careful: stream.is_careful(),
                    was_rejected: connection.rejected,
                };
                self.lane_lost(ticket, peer, &loss, stream.into_unanswered(), now_ns);
            }
        }
    }

    fn lane_lost(
        &mut self,
        lane: Ticket<Connection>,
        key: u64,
        loss: &Loss,
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
            tracing::debug!(peer = %lanes.route.name, end = ?loss.end, requests = unanswered.len(), "lost a lane");
        }
        let failed = lanes.lane_lost(lane, loss, unanswered);
        for (request, error) in failed {
            // The user's own end of the transfer explains more than the lane's.
            let error = match ended_early(&self.parts, &request, now_ns) {
                Some(kind) => Error::new(kind, "the transfer ended while this was under way")
                    .with_path(PathKind::Tcp)
                    .with_landed(Landed::Maybe),
                None => error,
            };
            self.ended(request, Err(error));
        }
        if !self.is_stopping {
            self.dispatch(key, now_ns);
        }
    }

    /// Fails those waiting requests of a peer for which `why` has a reason.
    fn fail_waiting(
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

    fn forget(&mut self, key: u64) {
        // Flights keep their peer: nobody holds it, so nothing waits for it.
        if let Some(lanes) = self.peers.remove(&key) {
            for lane in lanes.lanes {
                if let Some(connection) = self.connections.get_mut(lane) {
                    connection.close(&mut self.ring, End::Ours);
                }
            }
        }
    }

    /// Whether anything depends on the passing of time.
    fn has_clocks(&self) -> bool {
        !self.parts.is_empty()
            || !self.fences.is_empty()
            || self.connections.iter().any(|(_, connection)| connection.is_mid_request())
    }

    fn tick(&mut self, now_ns: u64) {
        self.next_tick_ns = now_ns + TICK_NS;
        self.end_stalled(now_ns);
        let keys: Vec<u64> = self.peers.keys().copied().collect();
        for key in keys {
            self.fail_waiting(key, |parts, request| ended_early(parts, request, now_ns));
            if let Some(lanes) = self.peers.get_mut(&key)
                && lanes.waiting.is_empty()
            {
                lanes.relax();
            }
        }
        self.check_fences(now_ns);
        self.reap_quiet(now_ns);
    }

    /// Closes connections whose peer owes progress and makes none: sooner where the transfer that
    /// waits for it has ended already.
    fn end_stalled(&mut self, now_ns: u64) {
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
                _ if silent_ns > self.limits.progress_ns || connection.has_lingered(now_ns) => {
                    End::Stalled
                }
                _ => continue,
            };
            connection.close(&mut self.ring, end);
        }
    }

    /// Lets go of fences that nothing touches any more, and hurries those out of patience.
    fn check_fences(&mut self, now_ns: u64) {
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

    fn reap_quiet(&mut self, now_ns: u64) {
        let over: Vec<_> = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.end.is_some() && connection.is_quiet())
            .map(|(ticket, _)| ticket)
            .collect();
        over.into_iter().for_each(|ticket| self.reap_if_over(ticket, now_ns));
    }
}

impl Drop for TcpShard {
    fn drop(&mut self) {
        for (_, connection) in self.connections.iter_mut() {
            connection.close(&mut self.ring, End::Ours);
        }
    }
}

/// Why a request's transfer has ended early, if it has.
fn ended_early(parts: &Table<Part>, request: &Request, now_ns: u64) -> Option<ErrorKind> {
    parts.get(Ticket::from_raw(request.part))?.portion.flight().ended_early(now_ns)
}

/// io_uring waits on blocking sockets only.
fn in_blocking_mode(socket: TcpStream) -> Result<TcpStream> {
    match socket.set_nonblocking(false) {
        Ok(()) => Ok(socket),
        Err(error) => Err(Error::lost("a new socket failed").with_source(error)),
    }
}
