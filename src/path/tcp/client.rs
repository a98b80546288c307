//! One connection to a peer, as a pure state machine: requests are pipelined in order and
//! answered in order.
//!
//! Version 1 never answers a WRITE. Its servers handle one connection strictly in order, so a
//! one-byte READ behind the WRITEs proves them stored: any byte that comes back answers all
//! WRITEs before it. (Observed with Mooncake 0.3.11.post1 and 0.3.13.post1; Mooncake's own
//! initiator reports success before anything is stored.)

use std::collections::VecDeque;
use std::sync::Arc;

use kvrail_reactors::region::Slice;
use kvrail_reactors::vector::{Filled, Vector};

use super::wire::{
    BUSY_CODE, Header, LaneName, NAME_BYTES, STALE_CODE, STATUS_BYTES, Status, Verb, Version,
};
use crate::auth::Pass;
use crate::limits::{
    LANE_WINDOW_BYTES, LANE_WINDOW_REQUESTS, RECEIVE_MAX_BYTES, SEND_MAX_BYTES, SEND_MAX_PARTS,
};
use crate::memory::Operation;
use crate::memory::grant::Key;
use crate::path::asking::RequestName;
use crate::receipt::Fenced;
use crate::window::Window;
use crate::{Error, Landed};

/// One slice of a transfer on its way, or the event behind it.
#[derive(Debug)]
pub(crate) struct Request {
    /// The part of a transfer it belongs to.
    pub(crate) part: u64,
    /// The user's request within that transfer.
    pub(crate) index: usize,
    pub(crate) action: Action,
    /// Where at the peer.
    pub(crate) addr: u64,
    /// The grant that it is asked for under, if any.
    pub(crate) key: Option<Key>,
    /// How often it has been sent before.
    pub(crate) attempts: u32,
    /// Whether bytes of an earlier attempt may have landed.
    pub(crate) landed: Landed,
    /// By whose word nothing more of earlier attempts lands.
    pub(crate) fenced: Fenced,
    /// What both sides' logs call its last attempt, where the lane has a name.
    pub(crate) name: Option<RequestName>,
}

#[derive(Debug)]
pub(crate) enum Action {
    Write(Slice),
    Read(Slice),
    Event(Arc<[u8]>),
}

impl Request {
    /// Payload bytes, in whichever direction.
    pub(crate) fn len(&self) -> usize {
        match &self.action {
            Action::Write(slice) | Action::Read(slice) => slice.len(),
            Action::Event(body) => body.len(),
        }
    }

    /// Whether it stores anything at the peer.
    pub(crate) fn stores(&self) -> bool {
        !matches!(self.action, Action::Read(_))
    }

    /// Its error while it is not on its way: what is known of the attempts before.
    pub(crate) fn at_rest(&self, error: Error) -> Error {
        match self.landed {
            Landed::No => error.with_landed(Landed::No),
            landed => error.with_landed(landed).with_fence(self.fence(self.fenced)),
        }
    }

    /// By whose word it is over at the peer, where what it stores there is so by `fenced`.
    pub(crate) fn fence(&self, fenced: Fenced) -> Fenced {
        if self.stores() { fenced } else { Fenced::Reader }
    }

    fn header(&self, version: Version) -> Header {
        let verb = match (&self.action, self.key) {
            (Action::Write(_), None) => Verb::Transfer(Operation::Write),
            (Action::Write(_), Some(_)) => Verb::Granted(Operation::Write),
            (Action::Read(_), None) => Verb::Transfer(Operation::Read),
            (Action::Read(_), Some(_)) => Verb::Granted(Operation::Read),
            (Action::Event(_), _) => Verb::Event,
        };
        Header { len: self.len() as u64, addr: self.addr, verb, version }
    }
}

/// How the peer answered a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Done,
    Refused,
    Busy,
    /// The grant does not hold, or not any more.
    Stale,
    /// A status code that no version defines.
    Failed(u32),
}

/// Why a connection can't go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Broken {
    #[error("the peer refused a request and closes this connection")]
    Rejected,
    #[error("the peer's answer is not a version 2 status")]
    NotAStatus,
    #[error("the peer sent bytes that nobody asked for")]
    Unasked,
    #[error("the GPU that the answer is for does not take it")]
    Memory,
}

/// A client's side of one connection.
#[derive(Debug)]
pub(crate) struct ClientStream {
    version: Version,
    unanswered: VecDeque<Unanswered>,
    /// Answers that have come.
    answers: u64,
    window: Window,
    /// One request at a time, so that a peer that closes without a word names the culprit.
    careful: bool,
    naming: Naming,
    /// This engine's name, said with that of the connection.
    own: Arc<str>,
}

/// Whether the peer knows what we call the connection. Nothing else is sent before, so a
/// connection that the peer knows by no name has stored nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Naming {
    /// It has no name.
    Nameless,
    /// The process that is meant, as its descriptor calls it, and a pass where one has to be shown.
    Unsent(LaneName, u64, Option<Pass>),
    Sent(LaneName),
    Known(LaneName),
}

#[derive(Debug)]
struct Unanswered {
    /// None: the one-byte READ that proves the WRITEs before it, or our name for the connection.
    request: Option<Request>,
    is_name: bool,
    status: [u8; STATUS_BYTES],
    status_len: usize,
    received: usize,
}

impl ClientStream {
    pub(crate) fn new(version: Version, careful: bool) -> Self {
        let window = if careful { 1 } else { LANE_WINDOW_REQUESTS };
        Self {
            version,
            unanswered: VecDeque::new(),
            answers: 0,
            window: Window::new(window, LANE_WINDOW_BYTES),
            careful,
            naming: Naming::Nameless,
            own: "".into(),
        }
    }

    /// One that has a name, for this process and no other, of an engine that is called `own`, and
    /// shows a pass where it has one.
    pub(crate) fn named(
        self,
        name: Option<(LaneName, u64)>,
        pass: Option<Pass>,
        own: &Arc<str>,
    ) -> Self {
        let naming = name.map_or(Naming::Nameless, |(name, to)| Naming::Unsent(name, to, pass));
        Self { naming, own: own.clone(), ..self }
    }

    /// One whose pass was shown before: the peer's answer is still to come.
    pub(crate) fn entered(self, name: LaneName) -> Self {
        let mut stream = Self { naming: Naming::Sent(name), ..self };
        stream.await_name();
        stream
    }

    /// What the peer knows it by.
    pub(crate) fn name(&self) -> Option<LaneName> {
        match self.naming {
            Naming::Known(name) => Some(name),
            _ => None,
        }
    }

    /// Whether it carries requests.
    pub(crate) fn is_ready(&self) -> bool {
        matches!(self.naming, Naming::Nameless | Naming::Known(_))
    }

    pub(crate) fn is_careful(&self) -> bool {
        self.careful
    }

    /// Whether the peer owes an answer.
    pub(crate) fn has_unanswered(&self) -> bool {
        !self.unanswered.is_empty()
    }

    /// Moves requests from `queue` into `vector`, as many as one send and the window take. Those
    /// that `unwanted` picks are left out and returned.
    pub(crate) fn send_into(
        &mut self,
        vector: &mut Vector,
        queue: &mut VecDeque<Request>,
        mut unwanted: impl FnMut(&Request) -> bool,
    ) -> Vec<Request> {
        self.send_name(vector);
        let mut dropped = Vec::new();
        if !self.is_ready() {
            return dropped;
        }
        let mut unproven = None;
        while vector.parts() < SEND_MAX_PARTS && vector.len() < SEND_MAX_BYTES {
            let Some(request) = queue.front() else { break };
            if unwanted(request) {
                dropped.extend(queue.pop_front());
                continue;
            }
            if !self.window.take(request.len()) {
                break;
            }
            unproven = self.needs_proof(request).then_some(request.addr);
            let request = queue.pop_front().expect("just looked at");
            self.send(request, vector);
        }
        if let Some(addr) = unproven {
            self.send_proof(addr, vector);
        }
        dropped
    }

    /// Fills in where the next answers go. Never empty: an end of the stream is to be noticed.
    pub(crate) fn receive_into(&self, vector: &mut Vector) {
        for entry in &self.unanswered {
            if vector.parts() >= SEND_MAX_PARTS || vector.len() >= RECEIVE_MAX_BYTES {
                break;
            }
            if self.version == Version::V2 && !entry.ends_with_status() {
                vector.push_room(STATUS_BYTES - entry.status_len);
            }
            match &entry.request {
                None if entry.is_name => {}
                None => vector.push_room(1),
                Some(Request { action: Action::Read(slice), .. }) => {
                    let mut rest = slice.clone();
                    rest.advance(entry.received);
                    rest.truncate(RECEIVE_MAX_BYTES);
                    let is_last = entry.received + rest.len() == slice.len();
                    vector.push_memory(rest);
                    if !is_last {
                        break;
                    }
                }
                Some(_) => {}
            }
            if entry.ends_with_status() {
                vector.push_room(STATUS_BYTES - entry.status_len);
            }
        }
        if vector.is_empty() {
            vector.push_room(STATUS_BYTES);
        }
    }

    /// The first `count` bytes of `vector` were received; answered requests go to `answered`.
    pub(crate) fn received(
        &mut self,
        vector: &Vector,
        count: usize,
        mut answered: impl FnMut(Request, Answer),
    ) -> Result<(), Broken> {
        for filled in vector.filled(count) {
            match filled {
                Filled::Memory(len) => {
                    self.skip_proven(&mut answered);
                    self.data(len, None, &mut answered)?;
                }
                Filled::Bytes(mut bytes) => {
                    while !bytes.is_empty() {
                        self.skip_proven(&mut answered);
                        let used = self.bytes(bytes, &mut answered)?;
                        bytes = &bytes[used..];
                    }
                }
            }
        }
        Ok(())
    }

    /// Requests that were sent and not answered, in order, each with the number of its answer.
    pub(crate) fn numbered(&self) -> impl Iterator<Item = (u64, &Request)> {
        let entries = (self.answers..).zip(&self.unanswered);
        entries.filter_map(|(number, entry)| Some((number, entry.request.as_ref()?)))
    }

    /// Ends the stream: the requests that were sent and not answered, in order.
    pub(crate) fn into_unanswered(self) -> Vec<Request> {
        self.unanswered.into_iter().filter_map(|entry| entry.request).collect()
    }

    fn send_name(&mut self, vector: &mut Vector) {
        let Naming::Unsent(name, to, pass) = self.naming else { return };
        let (verb, rest) = match &pass {
            Some(pass) => (Verb::Pass, &pass.0[..]),
            None => (Verb::Name, self.own.as_bytes()),
        };
        let (len, version) = ((NAME_BYTES + rest.len()) as u64, self.version);
        vector.push_bytes(&Header { len, addr: to, verb, version }.encode());
        vector.push_bytes(&name.to_bytes());
        vector.push_bytes(rest);
        self.await_name();
        self.naming = Naming::Sent(name);
    }

    fn await_name(&mut self) {
        self.unanswered.push_back(Unanswered { is_name: true, ..Unanswered::new(None) });
    }

    fn needs_proof(&self, request: &Request) -> bool {
        self.version == Version::V1 && matches!(request.action, Action::Write(_))
    }

    fn send(&mut self, mut request: Request, vector: &mut Vector) {
        let number = self.answers + self.unanswered.len() as u64;
        request.name = self.name().map(|lane| RequestName { lane: lane.label(), number });
        vector.push_bytes(&request.header(self.version).encode());
        if let Some(key) = request.key {
            vector.push_bytes(&key.encode());
        }
        match &request.action {
            Action::Write(slice) => vector.push_memory(slice.clone()),
            Action::Event(body) => vector.push_bytes(body),
            Action::Read(_) => {}
        }
        self.unanswered.push_back(Unanswered::new(Some(request)));
    }

    /// Reads back the first byte of the last WRITE.
    fn send_proof(&mut self, addr: u64, vector: &mut Vector) {
        let verb = Verb::Transfer(Operation::Read);
        vector.push_bytes(&Header { len: 1, addr, verb, version: self.version }.encode());
        self.unanswered.push_back(Unanswered::new(None));
    }

    /// Version 1: more bytes prove every WRITE that was sent before what they answer.
    fn skip_proven(&mut self, answered: &mut impl FnMut(Request, Answer)) {
        while self
            .unanswered
            .front()
            .and_then(|entry| entry.request.as_ref())
            .is_some_and(|request| self.needs_proof(request))
        {
            self.finish(Answer::Done, answered);
        }
    }

    /// Looks at the first bytes; returns how many.
    fn bytes(
        &mut self,
        bytes: &[u8],
        answered: &mut impl FnMut(Request, Answer),
    ) -> Result<usize, Broken> {
        let version = self.version;
        let entry = self.unanswered.front_mut().ok_or(Broken::Unasked)?;
        let is_data = entry.ends_with_status() && entry.received < entry.expected();
        if version == Version::V2 && !is_data && entry.status_len < STATUS_BYTES {
            let used = bytes.len().min(STATUS_BYTES - entry.status_len);
            entry.status[entry.status_len..][..used].copy_from_slice(&bytes[..used]);
            entry.status_len += used;
            if entry.status_len == STATUS_BYTES {
                self.status(answered)?;
            }
            return Ok(used);
        }
        let used = bytes.len().min(entry.expected() - entry.received);
        self.data(used, Some(&bytes[..used]), answered)?;
        Ok(used)
    }

    fn status(&mut self, answered: &mut impl FnMut(Request, Answer)) -> Result<(), Broken> {
        let entry = self.unanswered.front().ok_or(Broken::Unasked)?;
        let is_read = entry.expected() > entry.received;
        let is_granted = entry.is_granted();
        let is_event = matches!(entry.request, Some(Request { action: Action::Event(_), .. }));
        match Status::decode(&entry.status).map_err(|_| Broken::NotAStatus)? {
            Status::Ok if is_read => {}
            Status::Ok if entry.is_name => self.is_named(answered),
            Status::Ok => self.finish(Answer::Done, answered),
            Status::Busy if is_event => self.finish(Answer::Busy, answered),
            Status::Stale if is_granted => self.finish(Answer::Stale, answered),
            Status::Refused if is_granted => self.finish(Answer::Refused, answered),
            // Nobody knows whether data follows, so nothing behind it can be told apart.
            Status::Busy => {
                self.finish(Answer::Failed(BUSY_CODE), answered);
                return Err(Broken::Rejected);
            }
            Status::Stale => {
                self.finish(Answer::Failed(STALE_CODE), answered);
                return Err(Broken::Rejected);
            }
            // An event asks for a counter that nobody has open; the connection goes on.
            Status::Refused if is_event => self.finish(Answer::Refused, answered),
            Status::Refused => {
                self.finish(Answer::Refused, answered);
                return Err(Broken::Rejected);
            }
            Status::Other(code) => {
                self.finish(Answer::Failed(code), answered);
                return Err(Broken::Rejected);
            }
        }
        Ok(())
    }

    fn is_named(&mut self, answered: &mut impl FnMut(Request, Answer)) {
        if let Naming::Sent(name) = self.naming {
            self.naming = Naming::Known(name);
        }
        self.finish(Answer::Done, answered);
    }

    /// `len` bytes of the front entry's data: in place already, or in `bytes`.
    fn data(
        &mut self,
        len: usize,
        bytes: Option<&[u8]>,
        answered: &mut impl FnMut(Request, Answer),
    ) -> Result<(), Broken> {
        let entry = self.unanswered.front_mut().ok_or(Broken::Unasked)?;
        if len == 0 || len > entry.expected() - entry.received {
            return Err(Broken::Unasked);
        }
        if let (Some(bytes), Some(Request { action: Action::Read(slice), .. })) =
            (bytes, &entry.request)
        {
            slice.write(entry.received, bytes).map_err(|_| Broken::Memory)?;
        }
        entry.received += len;
        if entry.received == entry.expected() && !entry.ends_with_status() {
            self.finish(Answer::Done, answered);
        }
        Ok(())
    }

    fn finish(&mut self, answer: Answer, answered: &mut impl FnMut(Request, Answer)) {
        let entry = self.unanswered.pop_front().expect("the caller looked at it");
        self.answers += 1;
        if let Some(request) = entry.request {
            self.window.give(request.len());
            answered(request, answer);
        }
    }
}

impl Unanswered {
    fn new(request: Option<Request>) -> Self {
        Self { request, is_name: false, status: [0; STATUS_BYTES], status_len: 0, received: 0 }
    }

    fn is_granted(&self) -> bool {
        self.request.as_ref().is_some_and(|request| request.key.is_some())
    }

    /// Whether its status stands behind its data, to tell of a grant that was taken back meanwhile.
    fn ends_with_status(&self) -> bool {
        self.is_granted() && self.expected() > 0
    }

    /// Data bytes that answer it, the status aside.
    fn expected(&self) -> usize {
        match &self.request {
            None => usize::from(!self.is_name),
            Some(Request { action: Action::Read(slice), .. }) => slice.len(),
            Some(_) => 0,
        }
    }
}
