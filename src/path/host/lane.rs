//! One lane to a peer, from the side that asks: parts of transfers go out as requests, and come
//! back when the peer has copied them. Any thread may post and look for replies, since a caller
//! that waits is faster than a shard that has to be woken.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use kvrail_reactors::doorbell::{Bell, Doorbell};
use kvrail_reactors::host::lane::{Corrupt, REQUEST_WORDS, Requester};
use kvrail_reactors::ticket::{Table, Ticket};

use super::asks::{Ask, Asks};
use super::entry::{self, CopyEntry, Entry, ListEntry, Reply, Verdict};
use crate::flight::{EVENT, Portion};
use crate::limits::{ENDING_MAX_NS, SPIN_TURNS, TURN_BURST};
use crate::memory::grant::stale;
use crate::path::asking::RequestName;
use crate::receipt::Fenced;
use crate::{Error, ErrorKind, Landed, PathKind, metrics};

/// A lane to a peer of this host.
pub(crate) struct Lane {
    peer: Arc<str>,
    /// What both sides' logs call it.
    label: u64,
    state: Mutex<State>,
    bell: Bell,
    /// Of the shard that looks after it.
    home: Arc<Doorbell>,
    /// Parts that are out, for a look without the lock.
    parts_out: AtomicUsize,
    /// Callers that look for replies themselves.
    watchers: AtomicUsize,
}

struct State {
    ring: Requester,
    parts: Table<Part>,
    /// What the ring has no room for yet.
    unsent: VecDeque<[u64; REQUEST_WORDS]>,
    /// The peer's progress as last seen, and when it changed; none before the first look.
    progress: Option<((u64, u64), u64)>,
    /// The engine stops: everything is cancelled.
    is_stopping: bool,
    lost: Option<Error>,
}

struct Part {
    portion: Portion,
    /// None where it is an event.
    asks: Option<Arc<Asks>>,
    /// What failed, by its position among the asks.
    failed: Vec<(usize, Error)>,
    /// Since when it is cancelled, and why.
    cancelled: Option<(u64, ErrorKind)>,
}

/// A part that has ended, with what failed in it.
struct Returned {
    part: u64,
    portion: Portion,
    failures: Vec<(usize, Error)>,
}

/// Parts that have ended, to be taken back without the lock.
type Ended = Vec<Returned>;

impl Lane {
    pub(crate) fn new(
        (peer, label): (Arc<str>, u64),
        ring: Requester,
        bell: Bell,
        home: Arc<Doorbell>,
    ) -> Self {
        let state = State {
            ring,
            parts: Table::default(),
            unsent: VecDeque::new(),
            progress: None,
            is_stopping: false,
            lost: None,
        };
        let (parts_out, watchers) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self { peer, label, state: Mutex::new(state), bell, home, parts_out, watchers }
    }

    /// Asks for the copies of a part.
    pub(crate) fn post(&self, portion: Portion, asks: Arc<Asks>) {
        let entries = |part: u64, unsent: &mut VecDeque<_>| unsent.extend(asks.entries(part));
        let asks = Some(asks.clone());
        self.add(Part { portion, asks, failed: Vec::new(), cancelled: None }, entries);
    }

    /// Delivers an event, whose data is in place.
    pub(crate) fn announce(&self, portion: Portion, body: &[u8]) {
        let entries = |part: u64, unsent: &mut VecDeque<_>| {
            unsent.push_back(Entry::Event { part, len: body.len() as u64 }.encode());
            unsent.extend(entry::body(body).map(|entry| entry.encode()));
        };
        self.add(Part { portion, asks: None, failed: Vec::new(), cancelled: None }, entries);
    }

    fn add(&self, part: Part, entries: impl FnOnce(u64, &mut VecDeque<[u64; REQUEST_WORDS]>)) {
        let mut state = self.lock();
        if let Some(error) = state.lost.clone() {
            drop(state);
            return part.fail(&error.with_landed(Landed::No));
        }
        if state.parts.is_empty() {
            state.progress = None;
        }
        let ticket = state.parts.insert(part);
        entries(ticket.to_raw(), &mut state.unsent);
        self.parts_out.store(state.parts.len(), Ordering::Relaxed);
        if let Err(error) = state.send(&self.bell) {
            drop(state);
            self.lose(&error);
        }
    }

    /// Sends what waits and takes replies; returns how much there was to do. Where somebody else
    /// does so already there is nothing: waiting for them would only hold both up.
    pub(crate) fn progress(&self) -> usize {
        if self.is_idle() {
            return 0;
        }
        match self.state.try_lock() {
            Ok(state) => self.take_replies(state),
            Err(TryLockError::Poisoned(poisoned)) => self.take_replies(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => 0,
        }
    }

    fn take_replies(&self, mut state: MutexGuard<'_, State>) -> usize {
        let mut ended = Vec::new();
        let moved = state.advance(&self.bell, &mut ended);
        self.parts_out.store(state.parts.len(), Ordering::Relaxed);
        drop(state);
        self.take_back(ended);
        moved.unwrap_or_else(|error| {
            self.lose(&error);
            1
        })
    }

    /// Looks at the clocks: cancels what has ended early, and gives a peer up that owes progress
    /// and makes none for `limit_ns`.
    pub(crate) fn tick(&self, now_ns: u64, limit_ns: u64) {
        let mut state = self.lock();
        let mut ended = Vec::new();
        state.cancel_ended(now_ns, &mut ended);
        let patience = state.patience(now_ns, limit_ns);
        let sent = state.send(&self.bell);
        self.parts_out.store(state.parts.len(), Ordering::Relaxed);
        drop(state);
        self.take_back(ended);
        if let Err(error) = patience.and(sent) {
            self.lose(&error);
        }
    }

    /// The engine stops: cancels everything that is out.
    pub(crate) fn stop(&self, now_ns: u64) {
        self.lock().is_stopping = true;
        self.tick(now_ns, u64::MAX);
    }

    /// Before its shard parks: `false` where a reply is there already. Replies ring the shard's
    /// doorbell from here on, unless a caller looks for them itself.
    pub(crate) fn arm(&self) -> bool {
        // Also while nothing is out: whoever posts next may be no shard.
        let is_quiet = self.watchers.load(Ordering::SeqCst) > 0 || self.lock().sleep();
        if !is_quiet {
            self.take_replies(self.lock());
        }
        is_quiet
    }

    /// Nobody else looks after what is out: the shard must, and mind its clocks.
    pub(crate) fn entrust(&self) {
        if !self.is_idle() {
            self.home.ring();
        }
    }

    /// Whether nothing is out.
    pub(crate) fn is_idle(&self) -> bool {
        self.parts_out.load(Ordering::Relaxed) == 0
    }

    /// Whether it is of no use any more.
    pub(crate) fn is_lost(&self) -> bool {
        self.lock().lost.is_some()
    }

    /// Ends the lane: the peer starts nothing more of it, and what is out fails. What the peer was
    /// copying from our memory may end up in its own; it is never told that this is complete.
    pub(crate) fn lose(&self, error: &Error) {
        let mut state = self.lock();
        state.ring.close();
        let error = error.clone().with_peer(self.peer.clone()).with_path(PathKind::Host);
        state.lost.get_or_insert_with(|| error.clone());
        state.unsent.clear();
        let parts: Vec<_> = state.parts.drain().collect();
        self.parts_out.store(0, Ordering::Relaxed);
        drop(state);
        self.bell.ring();
        // It lets go of the lane.
        self.home.ring();
        let error = error.with_landed(Landed::Maybe);
        for (ticket, part) in parts {
            let name = self.name(ticket.to_raw());
            part.portion.flight().note(name, part.asks.is_none(), Some(&error));
            part.fail(&error);
        }
    }

    fn take_back(&self, ended: Ended) {
        for Returned { part, portion, failures } in ended {
            let blame = |error: Error| error.with_peer(self.peer.clone()).with_path(PathKind::Host);
            let failed = failures.first().map(|(_, error)| error);
            portion.flight().note(self.name(part), portion.is_event(), failed);
            portion.back(failures.into_iter().map(|(k, error)| (k, blame(error))).collect());
        }
    }

    /// What both sides' logs call a part.
    fn name(&self, part: u64) -> Option<RequestName> {
        Some(RequestName { lane: self.label, number: part })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks for replies on the caller's own thread until `is_over`: it costs no wake. Then hands the
/// lanes back to their shards.
pub(crate) fn watch(lanes: &[Arc<Lane>], is_over: impl Fn() -> bool) {
    for lane in lanes {
        lane.watchers.fetch_add(1, Ordering::SeqCst);
        lane.lock().ring.wake();
    }
    let mut turns = 0u32;
    while !is_over() {
        let done: usize = lanes.iter().map(|lane| lane.progress()).sum();
        turns = if done > 0 { 0 } else { turns.wrapping_add(1) };
        if turns.is_multiple_of(SPIN_TURNS) {
            std::thread::yield_now();
        }
        std::hint::spin_loop();
    }
    for lane in lanes {
        lane.watchers.fetch_sub(1, Ordering::SeqCst);
        while !lane.arm() {}
        lane.entrust();
    }
}

fn broken(corrupt: Corrupt) -> Error {
    Error::lost("the peer broke the protocol").with_source(corrupt)
}

impl State {
    /// Announces that nobody looks for replies; `false` where one is to be taken. What a lane that
    /// is lost still holds is for nobody.
    fn sleep(&self) -> bool {
        self.lost.is_some() || self.ring.sleep()
    }

    fn advance(&mut self, bell: &Bell, ended: &mut Ended) -> Result<usize, Error> {
        if self.ring.is_closed() {
            return Err(Error::lost("the peer ended the connection"));
        }
        let mut done = self.send(bell)?;
        while done < TURN_BURST {
            let Some(words) = self.ring.receive().map_err(broken)? else { break };
            let reply = Reply::decode(&words).ok_or_else(|| broken(Corrupt))?;
            ended.extend(self.replied(reply).map_err(broken)?);
            done += 1;
        }
        Ok(done)
    }

    /// Sends what fits; returns how much.
    fn send(&mut self, bell: &Bell) -> Result<usize, Error> {
        if self.unsent.is_empty() {
            return Ok(0);
        }
        let (sent, must_ring) = self.ring.send(self.unsent.iter()).map_err(broken)?;
        self.unsent.drain(..sent);
        if must_ring {
            bell.ring();
        }
        Ok(sent)
    }

    /// Takes a reply, to a part that is out; returns the part if it is over.
    fn replied(&mut self, reply: Reply) -> Result<Option<Returned>, Corrupt> {
        match reply {
            Reply::Failed { part, index, count, verdict } => {
                let part = self.parts.get_mut(Ticket::from_raw(part)).ok_or(Corrupt)?;
                part.fail_some(index, count, verdict)?;
                Ok(None)
            }
            Reply::Done { part: raw, ended, verdict } => {
                let part = self.parts.remove(Ticket::from_raw(raw)).ok_or(Corrupt)?;
                let ended = usize::try_from(ended).unwrap_or(usize::MAX);
                Ok(Some(part.done(raw, ended, verdict)))
            }
        }
    }

    /// Asks the peer to stop what nobody waits for any more. Parts of which it knows nothing yet
    /// are over at once: it could not say when.
    fn cancel_ended(&mut self, now_ns: u64, ended: &mut Ended) {
        let stopped = self.is_stopping.then_some(ErrorKind::Closed);
        let mut unsent_of = HashMap::new();
        for (ticket, part) in self.parts.iter_mut().filter(|(_, part)| part.cancelled.is_none()) {
            if let Some(kind) = part.portion.flight().ended_early(now_ns).or(stopped) {
                part.cancelled = Some((now_ns, kind));
                unsent_of.insert(ticket.to_raw(), 0);
            }
        }
        if unsent_of.is_empty() {
            return;
        }
        // What is listed goes with its list; of one that was begun it must be sent.
        let mut drops_list = false;
        self.unsent.retain(|words| {
            let (part, copies) = match Entry::decode(words) {
                Some(Entry::Copy(CopyEntry { part, .. })) => (part, 1),
                Some(Entry::List(ListEntry { part, count, .. })) => (part, count as usize),
                Some(Entry::Listed(_)) => return !drops_list,
                _ => return true,
            };
            let unsent = unsent_of.get_mut(&part);
            drops_list = unsent.is_some();
            unsent.map(|unsent| *unsent += copies).is_none()
        });
        for (raw, unsent) in unsent_of {
            self.cancel(raw, unsent, ended);
        }
    }

    /// Cancels a part of whose copies so many were not sent.
    fn cancel(&mut self, raw: u64, unsent: usize, ended: &mut Ended) {
        let ticket = Ticket::from_raw(raw);
        if unsent > 0 && self.parts.get(ticket).is_some_and(|part| part.asks().len() == unsent) {
            ended.extend(self.parts.remove(ticket).map(|part| part.done(raw, 0, Verdict::Ended)));
            return;
        }
        // An event in mid-body or a list goes first: its entries follow each other.
        let in_body = |words: &&[u64; REQUEST_WORDS]| {
            matches!(Entry::decode(words), Some(Entry::Body(_) | Entry::Listed(_)))
        };
        let at = self.unsent.iter().take_while(in_body).count();
        self.unsent.insert(at, Entry::Cancel { part: raw }.encode());
    }

    /// Whether the peer may be waited for still.
    fn patience(&mut self, now_ns: u64, limit_ns: u64) -> Result<(), Error> {
        if self.parts.is_empty() {
            self.progress = None;
            return Ok(());
        }
        let overdue = |(since, _)| now_ns.saturating_sub(since) > ENDING_MAX_NS;
        if self.parts.iter().any(|(_, part)| part.cancelled.is_some_and(overdue)) {
            return Err(Error::lost("the peer did not stop a transfer that had ended"));
        }
        let seen = self.ring.progress();
        match self.progress {
            Some((last, since_ns)) if last == seen => {
                if now_ns.saturating_sub(since_ns) > limit_ns {
                    return Err(Error::lost("the peer made no progress for too long"));
                }
            }
            _ => self.progress = Some((seen, now_ns)),
        }
        Ok(())
    }
}

impl Part {
    fn asks(&self) -> &[Ask] {
        self.asks.as_ref().map_or(&[], |asks| asks.as_slice())
    }

    /// The peer failed so many copies.
    fn fail_some(&mut self, index: u64, count: u32, verdict: Verdict) -> Result<(), Corrupt> {
        let start = usize::try_from(index).map_err(|_| Corrupt)?;
        let end = start.checked_add(count as usize).ok_or(Corrupt)?;
        // No more failures than copies, however often the peer says so.
        if count == 0 || self.failed.len() + count as usize > self.asks().len() {
            return Err(Corrupt);
        }
        let failed = self.asks().get(start..end).ok_or(Corrupt)?;
        let errors = failed.iter().map(|ask| self.error(verdict, Some(*ask)));
        let failed: Vec<_> = (start..).zip(errors).collect();
        self.failed.extend(failed);
        Ok(())
    }

    fn fail(self, error: &Error) {
        // The user's own end of the transfer explains more than the lane's.
        let error = match self.cancelled {
            Some((_, kind)) => Error::new(kind, "the transfer ended while this was under way")
                .with_path(PathKind::Host)
                .with_landed(error.landed()),
            None => error.clone(),
        };
        let failures = match self.asks() {
            [] => vec![(EVENT, error)],
            asks => asks.iter().map(|ask| (ask.request, error.clone())).collect(),
        };
        self.portion.back(failures);
    }

    /// The peer is done with it, of which it has looked at `ended` copies.
    fn done(mut self, part: u64, ended: usize, verdict: Verdict) -> Returned {
        let Some(asks) = self.asks.clone() else {
            let failed = (verdict != Verdict::Ok).then(|| (EVENT, self.error(verdict, None)));
            let failures = failed.into_iter().collect();
            return Returned { part, portion: self.portion, failures };
        };
        let copies = asks.as_slice();
        for index in ended.min(copies.len())..copies.len() {
            let error = self.error(Verdict::Ended, None).with_landed(Landed::No);
            self.failed.push((index, error));
        }
        self.failed.sort_unstable_by_key(|(index, _)| *index);
        self.failed.dedup_by_key(|(index, _)| *index);
        let failed_bytes: u64 = self.failed.iter().map(|(index, _)| copies[*index].len).sum();
        let mut carried = metrics::Carried::default();
        let bytes = asks.bytes().saturating_sub(failed_bytes);
        carried.add_all(copies.len() - self.failed.len(), bytes as usize);
        carried.record(PathKind::Host, &self.failed);
        let request = |(index, error): (usize, Error)| (copies[index].request, error);
        let failures = self.failed.into_iter().map(request).collect();
        Returned { part, portion: self.portion, failures }
    }

    fn error(&self, verdict: Verdict, ask: Option<Ask>) -> Error {
        match (verdict, ask) {
            (Verdict::Refused, Some(Ask { addr, len, key: Some(_), .. })) => Error::refused(
                format!("the peer's grant does not permit us to write {len} bytes at {addr:#x}"),
            ),
            (Verdict::Refused, Some(Ask { addr, len, .. })) => Error::refused(format!(
                "the peer has no region that permits writing {len} bytes at {addr:#x}"
            )),
            (Verdict::Stale, _) => stale().with_landed(Landed::Maybe).with_fence(Fenced::Copier),
            (Verdict::Refused, None) => {
                Error::refused("nobody at the peer has opened this counter")
            }
            (Verdict::Busy, _) => Error::busy("the peer's queue of notifications is full"),
            (Verdict::Gpu, _) => Error::lost("the peer's GPU did not make the copy: see its log")
                .with_landed(Landed::Maybe)
                .with_fence(Fenced::Copier),
            (Verdict::Unreadable, _) => {
                Error::lost("the peer could not read this process's memory")
                    .with_landed(Landed::Maybe)
                    .with_fence(Fenced::Copier)
            }
            (Verdict::Ok | Verdict::Ended, _) => match self.cancelled {
                Some((_, kind)) => Error::new(kind, "the transfer ended while this was under way"),
                None => Error::new(ErrorKind::Closed, "the peer took the region back"),
            }
            .with_landed(Landed::Maybe)
            .with_fence(Fenced::Copier),
        }
    }
}
