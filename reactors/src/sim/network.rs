//! A network of simulated TCP connections: bounded pipes whose bytes move a piece at a time, in a
//! seeded order, and whose operations complete when the world says so.

use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;
use std::sync::{Arc, Mutex, PoisonError};

use slab::Slab;

use super::stream::{Stream, Streams};
use crate::stream::{Direction, Done, Socket, Work};
use crate::ticket::{Table, Ticket};

/// Bytes on the way in one direction at most: small, so that both sides wait for each other.
const PIPE_BYTES: usize = 2_048;

/// Bytes that one move carries at most.
const MOVE_MAX_BYTES: usize = 1_024;

/// One send in so many completes short of its vector, as a kernel's may.
const SHORT_SEND_ONE_IN: usize = 16;

/// All connections of a world. Clones are the same network.
#[derive(Debug, Clone)]
pub struct Network {
    net: Arc<Mutex<Net>>,
}

/// What one call of [`Network::step`] did, for a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moved {
    /// Bytes left this connection's end.
    Sent(usize, usize),
    /// Bytes arrived at this connection's end, and lie in their memory.
    Stored(usize, usize),
    /// An operation on this connection's end has failed or was fenced.
    Failed(usize),
}

#[derive(Debug)]
pub(super) struct Net {
    rng: fastrand::Rng,
    ends: Slab<End>,
    ops: Table<Op>,
    reactors: Vec<Reactor>,
    /// Sockets of operations that ended: their last holder closes them, without our lock.
    released: Vec<Arc<Socket>>,
}

/// One shard's side.
#[derive(Debug)]
struct Reactor {
    /// Operations at a time.
    capacity: usize,
    under_way: usize,
    /// Completions that it has not taken yet.
    done: VecDeque<Done>,
    alarm_ns: Option<u64>,
    /// The next completion ends its shard's sleep.
    is_armed: bool,
    /// Its process does not run: nothing of it moves.
    is_paused: bool,
}

/// One side of a connection.
#[derive(Debug)]
struct End {
    /// The other side; none once it is gone.
    peer: Option<usize>,
    /// Bytes on their way to this side.
    inbox: VecDeque<u8>,
    /// Nothing comes behind the inbox.
    is_ended: bool,
    /// We have shut down our sending side.
    is_shut: bool,
    is_reset: bool,
    is_stalled: bool,
    sends: VecDeque<Ticket<Op>>,
    receives: VecDeque<Ticket<Op>>,
}

#[derive(Debug)]
pub(super) struct Op {
    work: Work,
    end: usize,
    reactor: usize,
    moved: usize,
    is_fenced: bool,
}

impl Network {
    /// A network without connections.
    pub fn new(seed: u64) -> Self {
        let net = Net {
            rng: fastrand::Rng::with_seed(seed),
            ends: Slab::new(),
            ops: Table::default(),
            reactors: Vec::new(),
            released: Vec::new(),
        };
        Self { net: Arc::new(Mutex::new(net)) }
    }

    /// A reactor of `capacity` operations for one shard, and its number.
    pub fn reactor(&self, capacity: usize) -> (usize, Streams) {
        let reactor = self.with(|net| {
            net.reactors.push(Reactor::new(capacity));
            net.reactors.len() - 1
        });
        (reactor, Streams::new(self.clone(), reactor))
    }

    /// A connection's two sides.
    pub fn connect(&self) -> (Stream, Stream) {
        let (near, far) = self.with(Net::connect);
        (Stream::new(self.clone(), near), Stream::new(self.clone(), far))
    }

    /// Moves one piece of something that can move; none where nothing can.
    pub fn step(&self) -> Option<Moved> {
        self.with(Net::step)
    }

    /// Whether anything can move.
    pub fn is_moving(&self) -> bool {
        self.with(|net| !net.movable().is_empty())
    }

    /// Both sides of every connection that somebody holds.
    pub fn ends(&self) -> Vec<usize> {
        self.with(|net| net.ends.iter().map(|(end, _)| end).collect())
    }

    /// Cuts a connection: both sides fail, what is on the way is lost.
    pub fn reset(&self, end: usize) {
        self.with(|net| net.reset(end));
    }

    /// Whether bytes on their way to this side keep waiting.
    pub fn stall(&self, end: usize, is_stalled: bool) {
        self.with(|net| net.ends.get_mut(end).map(|end| end.is_stalled = is_stalled));
    }

    /// Whether nothing of a reactor's moves, since its process does not run.
    pub fn pause(&self, reactor: usize, is_paused: bool) {
        self.with(|net| net.reactors[reactor].is_paused = is_paused);
    }

    /// Whether a reactor ends its shard's sleep at `now_ns`: by a completion, or by its alarm.
    pub fn rings(&self, reactor: usize, now_ns: u64) -> bool {
        self.with(|net| net.reactors[reactor].rings(now_ns))
    }

    /// When the first alarm of a reactor that runs is due.
    pub fn alarm_ns(&self) -> Option<u64> {
        let due = |net: &mut Net| {
            let running = net.reactors.iter().filter(|reactor| !reactor.is_paused);
            running.filter_map(|reactor| reactor.alarm_ns).min()
        };
        self.with(due)
    }

    /// Operations under way.
    pub fn operations(&self) -> usize {
        self.with(|net| net.ops.len())
    }

    pub(super) fn with<T>(&self, what: impl FnOnce(&mut Net) -> T) -> T {
        let mut net = self.net.lock().unwrap_or_else(PoisonError::into_inner);
        let value = what(&mut net);
        let released = std::mem::take(&mut net.released);
        drop(net);
        drop(released);
        value
    }
}

impl Net {
    fn connect(&mut self) -> (usize, usize) {
        let (near, far) = (self.ends.insert(End::new()), self.ends.insert(End::new()));
        self.ends[near].peer = Some(far);
        self.ends[far].peer = Some(near);
        (near, far)
    }

    /// Gives the work back where the reactor is full.
    pub(super) fn submit(&mut self, reactor: usize, end: usize, work: Work) -> Result<u64, Work> {
        let own = &mut self.reactors[reactor];
        if own.under_way >= own.capacity {
            return Err(work);
        }
        own.under_way += 1;
        let direction = work.direction;
        let op = self.ops.insert(Op { work, end, reactor, moved: 0, is_fenced: false });
        self.ends[end].queue(direction).push_back(op);
        Ok(op.to_raw())
    }

    /// Takes up to `budget` completions, a random number of those that are there.
    pub(super) fn take(&mut self, reactor: usize, budget: usize, done: &mut Vec<Done>) -> usize {
        let ready = self.reactors[reactor].done.len().min(budget);
        if ready == 0 {
            return 0;
        }
        let count = self.rng.usize(1..=ready);
        done.extend(self.reactors[reactor].done.drain(..count));
        count
    }

    pub(super) fn arm(&mut self, reactor: usize) -> bool {
        let reactor = &mut self.reactors[reactor];
        reactor.is_armed = reactor.done.is_empty();
        reactor.is_armed
    }

    pub(super) fn set_alarm(&mut self, reactor: usize, at_ns: u64) {
        let alarm_ns = &mut self.reactors[reactor].alarm_ns;
        *alarm_ns = Some(alarm_ns.map_or(at_ns, |known| known.min(at_ns)));
    }

    pub(super) fn fence(&mut self, name: u64) {
        if let Some(op) = self.ops.get_mut(Ticket::from_raw(name)) {
            op.is_fenced = true;
        }
    }

    /// A reactor went away: its operations end with it, and touch nothing any more.
    pub(super) fn drop_reactor(&mut self, reactor: usize) -> Vec<Done> {
        let own = self.ops.iter().filter(|(_, op)| op.reactor == reactor);
        let tickets: Vec<_> = own.map(|(ticket, _)| ticket).collect();
        for ticket in tickets {
            self.finish(ticket, Err(cancelled()));
        }
        self.reactors[reactor].alarm_ns = None;
        self.reactors[reactor].done.drain(..).collect()
    }

    /// What can move now: each end whose first send or receive has something to do.
    fn movable(&self) -> Vec<(usize, Direction)> {
        let directions = [Direction::Send, Direction::Receive];
        let lanes = self.ends.iter().flat_map(|(end, _)| directions.map(|way| (end, way)));
        lanes.filter(|(end, direction)| self.can_move(*end, *direction)).collect()
    }

    fn can_move(&self, number: usize, direction: Direction) -> bool {
        let end = &self.ends[number];
        let queue = if direction == Direction::Send { &end.sends } else { &end.receives };
        let Some(op) = queue.front().and_then(|ticket| self.ops.get(*ticket)) else { return false };
        if self.reactors[op.reactor].is_paused {
            return false;
        }
        if op.is_fenced || end.is_reset || end.peer.is_none() {
            return true;
        }
        match direction {
            Direction::Send => end.is_shut || self.room(end) > 0,
            Direction::Receive => !end.is_stalled && (end.is_ended || !end.inbox.is_empty()),
        }
    }

    fn room(&self, end: &End) -> usize {
        let taken = end.peer.map_or(PIPE_BYTES, |peer| self.ends[peer].inbox.len());
        PIPE_BYTES - taken.min(PIPE_BYTES)
    }

    fn step(&mut self) -> Option<Moved> {
        let movable = self.movable();
        let &(end, direction) = self.rng.choice(&movable)?;
        Some(match direction {
            Direction::Send => self.send(end),
            Direction::Receive => self.receive(end),
        })
    }

    fn send(&mut self, number: usize) -> Moved {
        let end = &self.ends[number];
        let (ticket, peer) = (end.sends[0], end.peer);
        let is_down = end.is_reset || end.is_shut;
        let room = self.room(end).min(MOVE_MAX_BYTES);
        let Some(op) = self.ops.get_mut(ticket) else { return Moved::Failed(number) };
        let Some(peer) = peer.filter(|_| !is_down) else {
            return self.fail(number, ticket, io::ErrorKind::BrokenPipe.into());
        };
        // A fence may come too late for some bytes.
        if room == 0 || op.is_fenced && self.rng.bool() {
            return self.fail(number, ticket, cancelled());
        }
        let count = self.rng.usize(1..=room).min(op.work.vector.len() - op.moved);
        let sent = op.work.vector.copy_out(op.moved + count).split_off(op.moved);
        op.moved += count;
        let (moved, is_whole) = (op.moved, op.moved == op.work.vector.len());
        self.ends[peer].inbox.extend(sent);
        if is_whole || self.rng.usize(..SHORT_SEND_ONE_IN) == 0 {
            self.finish(ticket, Ok(moved));
        }
        Moved::Sent(number, count)
    }

    fn receive(&mut self, number: usize) -> Moved {
        let end = &mut self.ends[number];
        let ticket = end.receives[0];
        let Some(op) = self.ops.get_mut(ticket) else { return Moved::Failed(number) };
        if end.is_reset {
            return self.fail(number, ticket, io::ErrorKind::ConnectionReset.into());
        }
        let ready = end.inbox.len().min(MOVE_MAX_BYTES);
        // Bytes may arrive in the moment of the fence.
        if op.is_fenced && self.rng.bool() || (ready == 0 && !end.is_ended && end.peer.is_some()) {
            return self.fail(number, ticket, cancelled());
        }
        if ready == 0 {
            self.finish(ticket, Ok(0));
            return Moved::Stored(number, 0);
        }
        let offered = self.rng.usize(1..=ready);
        let count = op.work.vector.store(&end.inbox.make_contiguous()[..offered]);
        end.inbox.drain(..count);
        self.finish(ticket, Ok(count));
        Moved::Stored(number, count)
    }

    /// Ends an operation without more bytes; those that moved before count.
    fn fail(&mut self, number: usize, ticket: Ticket<Op>, error: io::Error) -> Moved {
        let moved = self.ops.get(ticket).map_or(0, |op| op.moved);
        self.finish(ticket, if moved > 0 { Ok(moved) } else { Err(error) });
        Moved::Failed(number)
    }

    fn finish(&mut self, ticket: Ticket<Op>, result: io::Result<usize>) {
        let Some(op) = self.ops.remove(ticket) else { return };
        let Work { tag, socket, direction, vector } = op.work;
        self.ends[op.end].queue(direction).retain(|other| *other != ticket);
        self.released.push(socket);
        let done = Done { tag, direction, result, vector };
        // Connections have no order among each other.
        let reactor = &mut self.reactors[op.reactor];
        reactor.under_way -= 1;
        let at = self.rng.usize(..=reactor.done.len());
        reactor.done.insert(at, done);
    }

    pub(super) fn shutdown(&mut self, number: usize, how: Shutdown) {
        let end = &mut self.ends[number];
        if how != Shutdown::Read {
            end.is_shut = true;
            let peer = end.peer;
            if let Some(peer) = peer {
                self.ends[peer].is_ended = true;
            }
        }
        if how != Shutdown::Write {
            self.ends[number].is_ended = true;
        }
    }

    /// Nobody holds this side any more. Unread bytes reset the connection, as a kernel does.
    pub(super) fn close(&mut self, number: usize) {
        let end = self.ends.remove(number);
        let Some(peer) = end.peer else { return };
        let peer = &mut self.ends[peer];
        (peer.peer, peer.is_ended) = (None, true);
        if !end.inbox.is_empty() {
            peer.is_reset = true;
            peer.inbox.clear();
        }
    }

    fn reset(&mut self, number: usize) {
        let Some(end) = self.ends.get(number) else { return };
        for number in [Some(number), end.peer].into_iter().flatten() {
            let end = &mut self.ends[number];
            end.is_reset = true;
            end.inbox.clear();
        }
    }
}

fn cancelled() -> io::Error {
    io::Error::from_raw_os_error(libc::ECANCELED)
}

impl Reactor {
    fn new(capacity: usize) -> Self {
        Self {
            capacity,
            under_way: 0,
            done: VecDeque::new(),
            alarm_ns: None,
            is_armed: false,
            is_paused: false,
        }
    }

    fn rings(&mut self, now_ns: u64) -> bool {
        if self.alarm_ns.is_some_and(|alarm_ns| alarm_ns <= now_ns) {
            self.alarm_ns = None;
            return true;
        }
        self.is_armed && !self.done.is_empty()
    }
}

impl End {
    fn new() -> Self {
        Self {
            peer: None,
            inbox: VecDeque::new(),
            is_ended: false,
            is_shut: false,
            is_reset: false,
            is_stalled: false,
            sends: VecDeque::new(),
            receives: VecDeque::new(),
        }
    }

    fn queue(&mut self, direction: Direction) -> &mut VecDeque<Ticket<Op>> {
        match direction {
            Direction::Send => &mut self.sends,
            Direction::Receive => &mut self.receives,
        }
    }
}
