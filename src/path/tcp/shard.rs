//! The TCP actor of one shard: it owns a reactor, the connections on it and the parts of transfers
//! that they carry. It decides nothing about bytes: streams, lanes and flights do.

use std::collections::BTreeMap;
use std::sync::Arc;

use kvrail_reactors::Reactor;
use kvrail_reactors::region::Region;
use kvrail_reactors::stream::{Direction, Done, Socket, Streams};
use kvrail_reactors::ticket::{Table, Ticket};

use super::client::{Answer, Request};
use super::connection::{Connection, End, Role};
use super::dialed::{Dialed, made_ready};
use super::peers::Lanes;
use super::server::ServerStream;
use super::sweep::ended_early;
use super::wire::LaneName;
use crate::auth::PeerId;
use crate::config::TcpLimits;
use crate::flight::Portion;
use crate::limits::{ENDING_GRACE_NS, OUTSTANDING_MAX, TICK_NS};
use crate::memory::grant;
use crate::metrics;
use crate::path::served::{Served, Service};
use crate::peer::Route;
use crate::receipt::Fenced;
use crate::{Error, ErrorKind, Landed, PathKind, Result};

/// What a shard's TCP actor is told.
pub(crate) enum Message {
    /// Carry a part of a transfer to a peer.
    Carry { portion: Portion, route: Arc<Route>, requests: Vec<Request> },
    /// A peer connected to our data port.
    Accepted(Socket),
    /// The process is out of descriptors: close a stranger's connection, if there is one.
    Crowded,
    /// A connection that was asked for, to the peer with this key.
    Dialed { peer: u64, result: Result<Dialed> },
    /// End whatever touches this region, then drop the guard.
    Fence { region: Arc<Region>, guard: Guard },
    /// A peer asks to end the connection that it calls so: drop the guard once nothing is stored
    /// from it any more.
    EndLane { peer: PeerId, lane: LaneName, guard: Guard },
    /// What the peer says of a lane that it was asked to end.
    Fenced { peer: u64, lane: LaneName, fenced: Fenced },
    /// Nobody holds the peer with this key any more.
    Forget { peer: u64 },
    /// Take nothing more from our own side, end what is under way and have peers say that they
    /// store nothing of it any more; then drop the guard.
    Leave { guard: Guard },
    /// Drop the guard when no peer's request is under way.
    Rest { guard: Guard },
}

/// Says by being dropped that a shard has done what it was asked.
pub(crate) type Guard = flume::Sender<()>;

type Dial = Box<dyn Fn(&Arc<Route>) + Send>;
type AskFence = Box<dyn Fn(&Arc<Route>, LaneName) + Send>;

/// What a shard has others do, which know names and time-outs.
pub(crate) struct Errands {
    /// This engine's own name, which its connections say.
    pub(crate) own: Arc<str>,
    /// Asks for a connection, to be answered by [`Message::Dialed`].
    pub(crate) dial: Dial,
    /// Asks the peer to end a lane, to be answered by [`Message::Fenced`].
    pub(crate) fence: AskFence,
}

/// A part of a transfer, from the shard's side.
pub(super) struct Part {
    pub(super) portion: Portion,
    pub(super) outstanding: usize,
    pub(super) failures: Vec<(usize, Error)>,
    carried: metrics::Carried,
}

pub(super) struct Fence {
    pub(super) region: Arc<Region>,
    /// When connections that still touch the region are closed.
    pub(super) patience_ns: u64,
    _guard: Guard,
}

/// One shard's TCP. Dropped with work under way (it panicked, or the time to stop was over), it
/// ends it: the ring goes first and waits until the kernel touches nothing, then the parts fail
/// and the fences' guards go.
pub(crate) struct TcpShard {
    pub(super) ring: Streams,
    pub(super) done: Vec<Done>,
    pub(super) connections: Table<Connection>,
    pub(super) served: Service,
    /// In an order that a seed repeats.
    pub(super) peers: BTreeMap<u64, Lanes>,
    pub(super) parts: Table<Part>,
    pub(super) fences: Vec<Fence>,
    /// Connections with bodies on their way to a GPU, and whether more has come in this turn.
    pub(super) landing: Vec<(Ticket<Connection>, bool)>,
    pub(super) errands: Errands,
    pub(super) limits: TcpLimits,
    pub(super) servers: usize,
    /// Requests of all parts that have not ended.
    outstanding: usize,
    pub(super) next_tick_ns: u64,
    pub(super) is_stopping: bool,
    /// Whether our own side's requests are over, which comes before the shard is.
    is_leaving: bool,
    /// Who waits for the last of them.
    leaving: Vec<Guard>,
    /// Those who wait for peers' requests to end.
    pub(super) resting: Vec<Guard>,
}

/// Completions taken in one turn: enough to amortise a turn, few enough to stay fair.
const TURN_COMPLETIONS: usize = 32;

impl TcpShard {
    pub(crate) fn new(ring: Streams, served: Service, errands: Errands, limits: TcpLimits) -> Self {
        Self {
            ring,
            done: Vec::new(),
            connections: Table::default(),
            served,
            peers: BTreeMap::new(),
            parts: Table::default(),
            fences: Vec::new(),
            landing: Vec::new(),
            errands,
            limits,
            servers: 0,
            outstanding: 0,
            next_tick_ns: 0,
            is_stopping: false,
            is_leaving: false,
            leaving: Vec::new(),
            resting: Vec::new(),
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
                self.served.refresh();
                let patience_ns = now_ns + ENDING_GRACE_NS;
                self.fences.push(Fence { region, patience_ns, _guard: guard });
                self.check_fences(now_ns);
            }
            Message::EndLane { peer, lane, guard } => self.end_lane(&peer, lane, &guard, now_ns),
            Message::Fenced { peer, lane, fenced } => self.fenced(peer, lane, fenced, now_ns),
            Message::Forget { peer } => self.forget(peer),
            Message::Leave { guard } => self.leave(guard, now_ns),
            Message::Rest { guard } => self.resting.push(guard),
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
        self.land(now_ns);
        if now_ns >= self.next_tick_ns {
            self.served.record();
            self.tick(now_ns);
        } else if polled > 0 && !self.fences.is_empty() {
            self.check_fences(now_ns);
        }
        if self.parts.is_empty() {
            self.leaving.clear();
        }
        self.rest_if_quiet();
        polled
    }

    /// Before parking: `false` where something is ready already.
    pub(crate) fn arm(&mut self, now_ns: u64) -> bool {
        self.served.record();
        if self.has_clocks() || self.ring.awaits_gpus() {
            self.ring.set_alarm(now_ns + TICK_NS, now_ns);
        }
        self.landing.is_empty() && self.ring.arm()
    }

    /// Ends everything; `true` when nothing is left under way.
    pub(crate) fn stopping(&mut self, now_ns: u64) -> bool {
        if !self.is_stopping {
            self.is_stopping = true;
            for (_, connection) in self.connections.iter_mut() {
                connection.close(&mut self.ring, End::Ours);
            }
            let keys: Vec<u64> = self.peers.keys().copied().collect();
            for key in keys {
                self.fail_waiting(key, |_, _| Some(ErrorKind::Closed));
                self.settle_fencing(key, Fenced::Nobody, now_ns, |_| true);
            }
            self.reap_quiet(now_ns);
        }
        self.connections.is_empty() && self.parts.is_empty()
    }

    /// What waits fails now; what is on a lane when the lane is gone and the peer has said what it
    /// knows of it. Peers' own requests go on.
    fn leave(&mut self, guard: Guard, now_ns: u64) {
        self.is_leaving = true;
        self.leaving.push(guard);
        for (_, connection) in self.connections.iter_mut() {
            if matches!(connection.role, Role::Client { .. }) {
                connection.close(&mut self.ring, End::Ours);
            }
        }
        let keys: Vec<u64> = self.peers.keys().copied().collect();
        keys.into_iter().for_each(|key| self.fail_waiting(key, |_, _| Some(ErrorKind::Closed)));
        self.reap_quiet(now_ns);
    }

    fn carry(
        &mut self,
        portion: Portion,
        route: Arc<Route>,
        mut requests: Vec<Request>,
        now_ns: u64,
    ) {
        let outstanding = requests.len();
        if self.outstanding + outstanding > OUTSTANDING_MAX {
            let error =
                Error::busy(format!("{OUTSTANDING_MAX} slices are under way on this shard"))
                    .with_peer(route.name.clone())
                    .with_path(PathKind::Tcp);
            let failures = requests.iter().map(|r| (r.index, error.clone())).collect();
            drop(requests);
            return portion.back(failures);
        }
        self.outstanding += outstanding;
        let part = self.parts.insert(Part {
            portion,
            outstanding,
            failures: Vec::new(),
            carried: Default::default(),
        });
        requests.iter_mut().for_each(|request| request.part = part.to_raw());
        let key = route.key;
        let lanes = self.peers.entry(key).or_insert_with(|| Lanes::new(route));
        lanes.waiting.extend(requests);
        if self.is_leaving || self.is_stopping {
            return self.fail_waiting(key, |_, _| Some(ErrorKind::Closed));
        }
        self.dispatch(key, now_ns);
    }

    /// Offers a peer's waiting requests to its lanes, and asks for more lanes where they pay.
    pub(super) fn dispatch(&mut self, key: u64, now_ns: u64) {
        let Some(lanes) = self.peers.get_mut(&key) else { return };
        for lane in lanes.lanes.clone() {
            self.start(lane, now_ns);
        }
        let Some(lanes) = self.peers.get_mut(&key) else { return };
        for _ in 0..lanes.missing() {
            lanes.dialing += 1;
            (self.errands.dial)(&lanes.route);
        }
    }

    fn dialed(&mut self, key: u64, result: Result<Dialed>, now_ns: u64) {
        let Some(lanes) = self.peers.get_mut(&key) else { return };
        lanes.dialing = lanes.dialing.saturating_sub(1);
        match result.and_then(Dialed::made_ready) {
            Ok(Dialed { socket, entry }) if !self.is_leaving && !self.is_stopping => {
                let stream = lanes.stream(entry, &self.errands.own);
                let role = Role::Client { stream, peer: key, round: lanes.round };
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

    fn accept(&mut self, socket: Socket, now_ns: u64) {
        if self.is_stopping {
            return;
        }
        let connections_max = self.limits.connections_max;
        if self.servers >= connections_max && !self.evict(false) {
            tracing::warn!(connections_max, "refused a data connection: all are busy");
            return;
        }
        let Ok(socket) = made_ready(socket) else { return };
        self.servers += 1;
        let role = Role::Server(ServerStream::new(self.served.newcomer()));
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
    pub(super) fn start(&mut self, ticket: Ticket<Connection>, now_ns: u64) {
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
            self.served.landing(),
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
        self.note_landing(ticket);
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
        connection.recycle_received(vector);
        for (request, answer) in answered {
            self.answered(request, answer);
        }
    }

    fn answered(&mut self, request: Request, answer: Answer) {
        // Nobody knows what a code that no version defines means for the bytes.
        let is_known = !matches!(answer, Answer::Failed(_));
        let what = match answer {
            Answer::Done => return self.ended(request, Ok(())),
            Answer::Stale => grant::stale(),
            Answer::Refused if request.key.is_some() => Error::refused(format!(
                "the peer's grant does not permit {} bytes at {:#x}",
                request.len(),
                request.addr
            )),
            Answer::Refused if matches!(request.action, super::Action::Event(_)) => {
                Error::refused("nobody at the peer has opened this counter")
            }
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
        let error = error.with_path(PathKind::Tcp);
        let error = match is_known {
            // The peer may have stored some of it, and stores nothing more.
            true if answer == Answer::Stale => {
                error.with_landed(Landed::Maybe).with_fence(request.fence(Fenced::Answered))
            }
            true => request.at_rest(error),
            false => error.with_landed(Landed::Maybe),
        };
        self.ended(request, Err(error));
    }

    fn part(&self, request: &Request) -> Option<&Part> {
        self.parts.get(Ticket::from_raw(request.part))
    }

    /// A request has ended and its memory is quiet. The last one of a part takes the part back.
    pub(super) fn ended(&mut self, request: Request, result: Result<()>) {
        let ticket = Ticket::from_raw(request.part);
        let Some(part) = self.parts.get_mut(ticket) else { return };
        let is_event = matches!(request.action, super::Action::Event(_));
        part.portion.flight().note(request.name, is_event, result.as_ref().err());
        match result {
            Ok(()) => part.carried.add(request.len()),
            Err(error) => part.failures.push((request.index, error)),
        }
        drop(request);
        part.outstanding -= 1;
        self.outstanding -= 1;
        if part.outstanding == 0
            && let Some(part) = self.parts.remove(ticket)
        {
            part.carried.record(PathKind::Tcp, &part.failures);
            part.portion.back(part.failures);
        }
    }

    /// A request that was never sent, since its transfer has ended.
    fn end_unsent(&mut self, request: Request, now_ns: u64) {
        let kind = ended_early(&self.parts, &request, now_ns).unwrap_or(ErrorKind::Cancelled);
        let error =
            Error::new(kind, "the transfer ended before this was sent").with_path(PathKind::Tcp);
        let error = request.at_rest(error);
        self.ended(request, Err(error));
    }

    /// Ends the connection that a peer calls so; the guard goes with it, when it is quiet.
    fn end_lane(&mut self, peer: &PeerId, lane: LaneName, guard: &Guard, now_ns: u64) {
        for (_, connection) in self.connections.iter_mut() {
            if connection.is_called(lane) {
                connection.end_for(peer, &mut self.ring, guard.clone());
            }
        }
        self.reap_quiet(now_ns);
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
}

impl Drop for TcpShard {
    fn drop(&mut self) {
        for (_, connection) in self.connections.iter_mut() {
            connection.close(&mut self.ring, End::Ours);
        }
        // Connections say by their end that nothing more is stored for them.
        self.served.landing().wait();
    }
}
