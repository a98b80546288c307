//! Socket sends and receives where there is no io_uring: tried at once, and again when epoll says
//! that it may work now. The kernel touches memory only inside a call, so nothing is ever in
//! flight between two of them.
//!
//! Sockets are registered once, edge-triggered, and their readiness is kept here: a transfer in
//! full swing costs one system call a send or receive, and none of epoll's.

mod op;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::{Arc, Weak};
use std::time::Duration;

use self::op::Op;
use crate::Reactor;
use crate::doorbell::Doorbell;
use crate::epoll::{EDGES, Epoll, Event, LEVEL, Timer};
use crate::stream::{Direction, Done, Manner, Socket, Work};
use crate::ticket::{Table, Ticket};

/// Token of the alarm. Tickets start at generation 1, so no socket has it.
const ALARM: u64 = 0;

/// Events taken by one call: a shard's busy connections, at 12 bytes each.
const EVENTS: usize = 64;

/// Polls between two looks at epoll. A look costs as much as some turns of a hot loop without one
/// (200 ns or more), so this halves what it adds to them, and delays an event by as much.
const LOOK_POLLS: u32 = 4;

/// Sockets by readiness. Belongs to the thread that made it.
pub struct Sockets {
    epoll: Epoll,
    timer: Timer,
    /// When the timer rings.
    alarm_ns: Option<u64>,
    seats: Table<Seat>,
    by_fd: HashMap<RawFd, Ticket<Seat>>,
    ops: Table<Op>,
    capacity: usize,
    /// Lanes to try, each at most once ([`Lane::is_listed`]).
    runnable: VecDeque<(Ticket<Seat>, Direction)>,
    /// Work that ended without a try.
    ended: VecDeque<Done>,
    /// Polls since the last look.
    polls: u32,
    /// Room for one call's.
    iovecs: Vec<libc::iovec>,
    events: Box<[Event]>,
}

/// A registered socket. Weak: whoever works with it keeps it open, not we; and while we hold this,
/// no other socket is taken for it, whatever its number.
struct Seat {
    socket: Weak<Socket>,
    sending: Lane,
    receiving: Lane,
    /// The peer sends nothing more: a short receive is not the last word.
    is_over: bool,
}

/// One direction of a socket.
#[derive(Default)]
struct Lane {
    /// Work in the order of submission; only the first is tried.
    queue: VecDeque<Ticket<Op>>,
    /// No try has failed since the last event.
    is_ready: bool,
    is_listed: bool,
}

impl Seat {
    fn new(socket: &Arc<Socket>) -> Self {
        let lane = || Lane { is_ready: true, ..Lane::default() };
        let socket = Arc::downgrade(socket);
        Self { socket, sending: lane(), receiving: lane(), is_over: false }
    }

    fn is_of(&self, socket: &Arc<Socket>) -> bool {
        std::ptr::eq(self.socket.as_ptr(), Arc::as_ptr(socket))
    }

    fn lane(&mut self, direction: Direction) -> &mut Lane {
        match direction {
            Direction::Send => &mut self.sending,
            Direction::Receive => &mut self.receiving,
        }
    }
}

impl Sockets {
    /// A reactor for at most `capacity` operations at a time, whose completions end the wait of
    /// `doorbell`'s sleeper.
    ///
    /// # Errors
    /// The system's own where it is out of descriptors; Unsupported when the doorbell watches no
    /// other descriptors ([`Doorbell::with_sources`]).
    pub fn new(capacity: usize, doorbell: &Doorbell) -> io::Result<Self> {
        let (epoll, timer) = (Epoll::new()?, Timer::new()?);
        epoll.add(timer.as_fd(), ALARM, LEVEL)?;
        doorbell.watch(epoll.as_fd())?;
        Ok(Self {
            epoll,
            timer,
            alarm_ns: None,
            seats: Table::default(),
            by_fd: HashMap::new(),
            ops: Table::default(),
            capacity,
            runnable: VecDeque::new(),
            ended: VecDeque::new(),
            polls: 0,
            iovecs: Vec::new(),
            events: vec![Event { events: 0, u64: 0 }; EVENTS].into(),
        })
    }

    /// Ends the sleeper's wait at `at_ns` at the latest, where both times are of the caller's
    /// clock.
    pub fn set_alarm(&mut self, at_ns: u64, now_ns: u64) {
        if self.alarm_ns.is_some_and(|alarm_ns| alarm_ns <= at_ns) {
            return;
        }
        self.alarm_ns = Some(at_ns);
        self.timer.set(Duration::from_nanos(at_ns.saturating_sub(now_ns)));
    }

    /// As [`Reactor::submit`], in a manner.
    pub(crate) fn submit_as(&mut self, work: Work, manner: Manner) -> Result<u64, Work> {
        if self.ops.len() + self.ended.len() >= self.capacity {
            return Err(work);
        }
        let direction = work.direction;
        match self.seat(&work.socket) {
            Ok(seat) => {
                let name = self.ops.insert(Op::new(work, manner, seat));
                self.seats.get_mut(seat).into_iter().for_each(|seat| {
                    let lane = seat.lane(direction);
                    lane.queue.push_back(name);
                    // It asks whether there is something, so it is tried whatever was heard.
                    lane.is_ready |= manner == Manner::Now;
                });
                self.list(seat, direction);
                Ok(name.to_raw())
            }
            Err(error) => {
                let nowhere = Ticket::from_raw(ALARM);
                let name = self.ops.insert(Op::new(work, manner, nowhere));
                self.ended.extend(self.ops.remove(name).map(|op| op.finish(Err(error))));
                Ok(name.to_raw())
            }
        }
    }

    /// The socket's seat, which it gets when it is first seen.
    fn seat(&mut self, socket: &Arc<Socket>) -> io::Result<Ticket<Seat>> {
        let fd = socket.as_raw_fd();
        if let Some(&known) = self.by_fd.get(&fd) {
            if self.seats.get(known).is_some_and(|seat| seat.is_of(socket)) {
                return Ok(known);
            }
            // The number had another socket, which is closed.
            self.seats.remove(known);
        }
        let tcp = socket.tcp()?;
        let ticket = self.seats.insert(Seat::new(socket));
        self.by_fd.insert(fd, ticket);
        self.epoll.add(tcp.as_fd(), ticket.to_raw(), EDGES).inspect_err(|_| {
            self.seats.remove(ticket);
            self.by_fd.remove(&fd);
        })?;
        Ok(ticket)
    }

    /// Has a lane tried soon, if it has work and may do it.
    fn list(&mut self, ticket: Ticket<Seat>, direction: Direction) {
        let Some(seat) = self.seats.get_mut(ticket) else { return };
        let lane = seat.lane(direction);
        if lane.is_ready && !lane.is_listed && !lane.queue.is_empty() {
            lane.is_listed = true;
            self.runnable.push_back((ticket, direction));
        }
    }

    fn look_if_due(&mut self) {
        self.polls += 1;
        let is_waiting = !self.ops.is_empty() || self.alarm_ns.is_some();
        if is_waiting && self.polls >= LOOK_POLLS {
            self.look();
        }
    }

    /// Takes every event; returns whether the alarm was among them.
    fn look(&mut self) -> bool {
        self.polls = 0;
        let mut is_rung = false;
        let mut events = std::mem::take(&mut self.events);
        loop {
            let count = self.epoll.look(&mut events);
            for event in &events[..count] {
                let (token, bits) = (event.u64, event.events);
                is_rung |= token == ALARM;
                match token {
                    ALARM => self.rung(),
                    socket => self.changed(Ticket::from_raw(socket), bits as i32),
                }
            }
            if count < events.len() {
                break;
            }
        }
        self.events = events;
        is_rung
    }

    fn rung(&mut self) {
        self.timer.clear();
        self.alarm_ns = None;
    }

    fn changed(&mut self, ticket: Ticket<Seat>, bits: i32) {
        let Some(seat) = self.seats.get_mut(ticket) else { return };
        // Whoever tries then hears how it ended.
        let ended = bits & (libc::EPOLLERR | libc::EPOLLHUP) != 0;
        seat.is_over |= ended || bits & libc::EPOLLRDHUP != 0;
        seat.sending.is_ready |= ended || bits & libc::EPOLLOUT != 0;
        seat.receiving.is_ready |= seat.is_over || bits & libc::EPOLLIN != 0;
        self.list(ticket, Direction::Send);
        self.list(ticket, Direction::Receive);
    }

    /// Tries the first work of a lane; returns how much was done.
    fn attempt(
        &mut self,
        ticket: Ticket<Seat>,
        direction: Direction,
        done: &mut Vec<Done>,
    ) -> usize {
        let Some(seat) = self.seats.get_mut(ticket) else { return 0 };
        let is_over = seat.is_over;
        let lane = seat.lane(direction);
        lane.is_listed = false;
        let Some(&name) = lane.queue.front() else { return 0 };
        let Some(op) = self.ops.get_mut(name) else { return 0 };
        let tried = op.attempt(&mut self.iovecs);
        // A short receive took all there was; a short send filled the socket's buffer. Behind the
        // last byte no event comes, so there only a try can tell.
        lane.is_ready = tried.was_full || (tried.moved > 0 && is_over);
        if let Some(result) = tried.ended {
            lane.queue.pop_front();
            done.extend(self.ops.remove(name).map(|op| op.finish(result)));
        }
        self.list(ticket, direction);
        tried.did
    }
}

impl Reactor for Sockets {
    type Work = Work;
    type Done = Done;

    fn submit(&mut self, work: Work) -> Result<u64, Work> {
        self.submit_as(work, Manner::Wait)
    }

    fn poll(&mut self, budget: usize, done: &mut Vec<Done>) -> usize {
        self.look_if_due();
        let full = done.len().saturating_add(budget);
        let early = self.ended.len().min(budget);
        done.extend(self.ended.drain(..early));
        let mut did = early;
        // Each lane once, so that none keeps the others waiting.
        for _ in 0..self.runnable.len() {
            if done.len() >= full {
                break;
            }
            let Some((seat, direction)) = self.runnable.pop_front() else { break };
            did += self.attempt(seat, direction, done);
        }
        did
    }

    fn arm(&mut self) -> bool {
        let is_rung = self.look();
        // Whoever is woken has something to look at.
        self.polls = LOOK_POLLS;
        !is_rung && self.runnable.is_empty() && self.ended.is_empty()
    }

    fn fence(&mut self, name: u64) {
        let name = Ticket::from_raw(name);
        let Some(op) = self.ops.remove(name) else { return };
        if let Some(seat) = self.seats.get_mut(op.seat()) {
            seat.lane(op.direction()).queue.retain(|queued| *queued != name);
        }
        self.ended.push_back(op.finish(Err(io::Error::from_raw_os_error(libc::ECANCELED))));
    }
}
