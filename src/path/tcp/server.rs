//! One connection that a peer opened, as a pure state machine: which bytes are wanted next and
//! where they go, what was received, what is to be answered. Any bytes in any chunks change
//! nothing outside the ranges that [`Served::find`] allows.

use std::collections::VecDeque;
use std::ops::RangeInclusive;

use kvrail_reactors::region::{Region, Slice};
use kvrail_reactors::vector::{Filled, Vector};

use super::granted::{self, Answering, Sink};
use super::steps::{Receiving, Reply, complete};
use super::wire::{
    Event, HEADER_BYTES, Header, KEY_BYTES, LaneName, NAME_BYTES, NAMES_MAX_BYTES,
    PASS_FRAME_BYTES, Status, Verb, Version,
};
use crate::auth::{PeerId, Seal, Visitor};
use crate::limits::{
    EVENT_MAX_BYTES, GRANTED_MAX_BYTES, RECEIVE_MAX_BYTES, REPLIES_MAX, SEND_MAX_BYTES,
    SEND_MAX_PARTS, SMALL_REQUEST_BYTES, SMALL_ROOM_BYTES,
};
use crate::memory::Operation;
use crate::memory::grant::{Key, Use};
use crate::path::asking::{Asking, RequestName};
use crate::path::served::Served;

/// Bytes of a body with names.
const NAMES_BYTES: RangeInclusive<u64> = NAME_BYTES as u64..=NAMES_MAX_BYTES as u64;

/// Bytes of an event's body.
const EVENT_BYTES: RangeInclusive<u64> = 1..=EVENT_MAX_BYTES;

/// A server's side of one connection.
#[derive(Debug)]
pub(crate) struct ServerStream {
    receiving: Receiving,
    /// A header, and the key behind it of a request under a grant.
    header: [u8; HEADER_BYTES + KEY_BYTES],
    header_len: usize,
    /// Bytes that the header has, as far as is known.
    header_room: usize,
    /// Headers that were complete.
    frames: u64,
    /// Grants that the send under way reads under.
    sending: Vec<Use>,
    replies: VecDeque<Reply>,
    /// Received but not looked at yet, since too many replies are waiting.
    backlog: Vec<u8>,
    /// No request is carried out any more; the connection ends when the replies are out.
    closing: bool,
    /// The peer has sent all that it will.
    ended: bool,
    /// It has asked for something that it may have.
    is_known: bool,
    /// What the peer calls this connection.
    name: Option<LaneName>,
    /// Who the peer is.
    visitor: Visitor,
    /// What encrypts all behind the pass, until the socket has it.
    seal: Option<Seal>,
    /// The last request was small: read ahead, since a copy costs less than a system call.
    read_ahead: bool,
}

impl ServerStream {
    /// One of whom this is known before it says anything.
    pub(crate) fn new(visitor: Visitor) -> Self {
        Self {
            receiving: Receiving::Header,
            header: [0; HEADER_BYTES + KEY_BYTES],
            header_len: 0,
            header_room: HEADER_BYTES,
            frames: 0,
            sending: Vec::new(),
            replies: VecDeque::new(),
            backlog: Vec::new(),
            closing: false,
            ended: false,
            is_known: false,
            name: None,
            visitor,
            seal: None,
            read_ahead: false,
        }
    }

    /// Fills in where the next bytes go; nothing where none may be read now.
    pub(crate) fn receive_into(&self, vector: &mut Vector) {
        if self.closing {
            // Unread bytes would reset the connection, and the peer lose replies with it.
            if self.is_lingering() {
                vector.push_room(SMALL_ROOM_BYTES);
            }
            return;
        }
        if !self.backlog.is_empty() || self.replies.len() >= REPLIES_MAX {
            return;
        }
        if let Receiving::Body { target, .. } = &self.receiving {
            let mut next = target.clone();
            next.truncate(RECEIVE_MAX_BYTES);
            let is_last = next.len() == target.len();
            vector.push_memory(next);
            if !is_last {
                return;
            }
        }
        // Bytes behind a body are the next header, so both come with one call.
        vector.push_room(match self.receiving {
            Receiving::Event { .. } | Receiving::Sink(_) => SMALL_ROOM_BYTES,
            // What is behind it may be encrypted.
            Receiving::Name { ref body, len, .. } => len - body.len(),
            _ if self.read_ahead => SMALL_ROOM_BYTES,
            _ => self.header_room - self.header_len,
        });
    }

    /// The first `count` bytes of `vector` were received.
    pub(crate) fn received(&mut self, vector: &Vector, count: usize, served: &mut impl Served) {
        for filled in vector.filled(count) {
            match filled {
                Filled::Memory(len) => self.stored(len),
                Filled::Bytes(bytes) => self.read(bytes, served),
            }
        }
    }

    /// Moves waiting replies into `vector`, as many as one send takes.
    pub(crate) fn send_into(&mut self, vector: &mut Vector) {
        while vector.parts() < SEND_MAX_PARTS && vector.len() < SEND_MAX_BYTES {
            match self.replies.pop_front() {
                None => return,
                Some(Reply::Status(status)) => vector.push_bytes(&status.encode()),
                Some(Reply::Memory(mut slice)) => {
                    let mut now = slice.clone();
                    now.truncate(SEND_MAX_BYTES - vector.len());
                    slice.advance(now.len());
                    vector.push_memory(now);
                    if !slice.is_empty() {
                        self.replies.push_front(Reply::Memory(slice));
                    }
                }
                Some(Reply::Granted(mut answering)) => {
                    if let Some(used) = answering.send_into(vector) {
                        self.sending.push(used);
                    }
                    if !answering.is_over() {
                        // Its status is known once these bytes are out.
                        return self.replies.push_front(Reply::Granted(answering));
                    }
                }
            }
        }
    }

    /// Replies were sent: looks at what was put off.
    pub(crate) fn sent(&mut self, served: &mut impl Served) {
        self.sending.clear();
        if self.replies.len() < REPLIES_MAX && !self.backlog.is_empty() {
            let backlog = std::mem::take(&mut self.backlog);
            self.read(&backlog, served);
        }
    }

    /// Lets go of replies that their grants do not permit any more.
    pub(crate) fn let_replies_go(&mut self) {
        for reply in &mut self.replies {
            if let Reply::Granted(answering) = reply {
                answering.let_go();
            }
        }
    }

    /// The same for the body that is being received, while no receive is under way.
    pub(crate) fn let_body_go(&mut self) {
        if let Receiving::Body { target, used: Some(used), .. } = &self.receiving
            && used.is_struck()
        {
            let status = self.struck();
            self.receiving = Receiving::Sink(Sink::new(target.len() as u64, status));
        }
    }

    /// Whether the receive under way stores under a grant that was taken back.
    pub(crate) fn stores_struck(&self) -> bool {
        matches!(&self.receiving, Receiving::Body { used: Some(used), .. } if used.is_struck())
    }

    /// Whether the send under way reads under a grant that was taken back.
    pub(crate) fn sends_struck(&self) -> bool {
        self.sending.iter().any(Use::is_struck)
    }

    /// The peer sends nothing more: the connection ends when the replies are out.
    pub(crate) fn close(&mut self) {
        self.closing = true;
        self.ended = true;
    }

    /// Whether all replies are out behind a refusal and only the peer's own end is missing; what
    /// it sends until then is dropped.
    pub(crate) fn is_lingering(&self) -> bool {
        self.closing && !self.ended && self.replies.is_empty()
    }

    /// Whether the connection is to be closed once nothing is left to send.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing
    }

    /// Whether there is something to send.
    pub(crate) fn has_replies(&self) -> bool {
        !self.replies.is_empty()
    }

    /// Whether a request is under way: a peer that pauses now is stalling, not idle.
    pub(crate) fn is_mid_request(&self) -> bool {
        self.closing
            || self.header_len > 0
            || !matches!(self.receiving, Receiving::Header)
            || self.has_replies()
    }

    /// A client that means another process is refused: this one has got its predecessor's port.
    fn may_be_named(&self, header: &Header, served: &impl Served) -> bool {
        let is_well_formed = match header.verb {
            Verb::Pass => header.len == PASS_FRAME_BYTES as u64,
            _ => NAMES_BYTES.contains(&header.len),
        };
        is_well_formed && self.name.is_none() && served.is_process(header.addr)
    }

    /// What encrypts everything from here on, once: nothing behind the pass was received yet, and
    /// nothing sent.
    pub(crate) fn take_seal(&mut self) -> Option<Seal> {
        self.seal.take()
    }

    /// What the peer calls this connection.
    pub(crate) fn name(&self) -> Option<LaneName> {
        self.name
    }

    /// Whether it is this peer's.
    pub(crate) fn is_of(&self, peer: &PeerId) -> bool {
        self.visitor.is(peer)
    }

    /// The request under way, where the connection has a name; the peer counts frames, too.
    fn request(&self) -> Option<RequestName> {
        let lane = self.name?.label();
        Some(RequestName { lane, number: self.frames.saturating_sub(1) })
    }

    fn asking(&self) -> Asking<'_> {
        Asking { visitor: &self.visitor, request: self.request() }
    }

    fn struck(&self) -> Status {
        self.asking().note_struck();
        Status::Stale
    }

    /// Whether it needs no pass, or has shown a good one.
    pub(crate) fn is_let_in(&self) -> bool {
        self.visitor.is_in()
    }

    /// Whether it has never asked for anything that it may have.
    pub(crate) fn is_stranger(&self) -> bool {
        !self.is_known
    }

    /// Whether a request under way reads from or writes to `region`.
    pub(crate) fn touches(&self, region: &Region) -> bool {
        let is_in = |slice: &Slice| std::ptr::eq(&**slice.region(), region);
        let receiving = matches!(&self.receiving, Receiving::Body { target, .. } if is_in(target));
        receiving
            || self.replies.iter().any(|reply| match reply {
                Reply::Status(_) => false,
                Reply::Memory(slice) => is_in(slice),
                Reply::Granted(answering) => answering.memory().is_some_and(is_in),
            })
    }

    /// Replies that wait, for tests of their bound.
    #[cfg(any(fuzzing, test))]
    pub(crate) fn waiting_replies(&self) -> usize {
        self.replies.len()
    }

    /// Bytes that are put off, for tests of their bound.
    #[cfg(any(fuzzing, test))]
    pub(crate) fn backlog_bytes(&self) -> usize {
        self.backlog.len()
    }

    /// `len` bytes of the body are in place.
    fn stored(&mut self, len: usize) {
        if let Receiving::Body { target, version, used } = &mut self.receiving {
            target.advance(len);
            let is_struck = used.as_ref().is_some_and(Use::is_struck);
            if target.is_empty() {
                let version = *version;
                self.receiving = Receiving::Header;
                let status = if is_struck { self.struck() } else { Status::Ok };
                self.acknowledge(version, status);
            }
        }
    }

    fn acknowledge(&mut self, version: Version, status: Status) {
        if version == Version::V2 {
            self.replies.push_back(Reply::Status(status));
        }
    }

    fn read(&mut self, mut bytes: &[u8], served: &mut impl Served) {
        while !bytes.is_empty() && !self.closing {
            if self.replies.len() >= REPLIES_MAX {
                self.backlog.extend_from_slice(bytes);
                return;
            }
            let used = self.step(bytes, served);
            bytes = &bytes[used..];
        }
    }

    /// Looks at the first bytes; returns how many.
    fn step(&mut self, bytes: &[u8], served: &mut impl Served) -> usize {
        self.let_body_go();
        match &mut self.receiving {
            Receiving::Header => {
                let used = bytes.len().min(self.header_room - self.header_len);
                self.header[self.header_len..][..used].copy_from_slice(&bytes[..used]);
                self.header_len += used;
                if self.header_len == self.header_room {
                    self.begin(served);
                }
                used
            }
            Receiving::Sink(sink) => {
                let (used, status) = sink.swallow(bytes.len());
                if let Some(status) = status {
                    self.receiving = Receiving::Header;
                    self.acknowledge(Version::V2, status);
                }
                used
            }
            Receiving::Body { target, version, .. } => {
                let used = bytes.len().min(target.len());
                match (target.write(0, &bytes[..used]), version) {
                    (Ok(()), _) => {
                        self.stored(used);
                        return used;
                    }
                    // The GPU that holds it fails.
                    (Err(_), Version::V2) => {
                        let sink = Sink::new(target.len() as u64, Status::Refused);
                        self.receiving = Receiving::Sink(sink);
                    }
                    (Err(_), Version::V1) => self.closing = true,
                }
                0
            }
            Receiving::Name { body, len, has_pass } => {
                let ((used, whole), has_pass) = (complete(body, *len, bytes), *has_pass);
                if let Some(body) = whole {
                    self.receiving = Receiving::Header;
                    self.introduced(&body, has_pass, served);
                }
                used
            }
            Receiving::Event { body, len } => {
                let (used, whole) = complete(body, *len, bytes);
                if let Some(body) = whole {
                    self.receiving = Receiving::Header;
                    self.deliver(&body, served);
                }
                used
            }
        }
    }

    /// A header is complete, or all of it but the key.
    fn begin(&mut self, served: &mut impl Served) {
        let (header, key) = granted::split(&self.header);
        let header = match Header::decode(header) {
            Ok(header) => header,
            Err(unknown) => return self.refuse(unknown.0),
        };
        let is_granted = matches!(header.verb, Verb::Granted(_));
        if is_granted && self.header_room == HEADER_BYTES {
            self.header_room += KEY_BYTES;
            return;
        }
        let key = Key::decode(key);
        self.frames += 1;
        (self.header_len, self.header_room) = (0, HEADER_BYTES);
        self.read_ahead = header.len <= SMALL_REQUEST_BYTES;
        match header.verb {
            Verb::Event if self.visitor.is_in() && EVENT_BYTES.contains(&header.len) => {
                self.receiving = Receiving::Event { body: Vec::new(), len: header.len as usize };
            }
            // A connection has one name, for good.
            Verb::Name | Verb::Pass if self.may_be_named(&header, served) => {
                let (len, has_pass) = (header.len as usize, header.verb == Verb::Pass);
                self.receiving = Receiving::Name { body: Vec::new(), len, has_pass };
            }
            Verb::Event | Verb::Name | Verb::Pass => self.refuse(header.version),
            Verb::Granted(operation) => self.granted(operation, &header, key, served),
            Verb::Transfer(operation) => {
                match served.find(&self.asking(), header.addr, header.len, operation) {
                    None => self.refuse(header.version),
                    Some(memory) => self.transfer(operation, memory, header.version),
                }
            }
        }
    }

    fn transfer(&mut self, operation: Operation, memory: Slice, version: Version) {
        self.is_known = true;
        match operation {
            Operation::Write => {
                self.receiving = Receiving::Body { target: memory, version, used: None };
            }
            Operation::Read => {
                self.acknowledge(version, Status::Ok);
                self.replies.push_back(Reply::Memory(memory));
            }
        }
    }

    /// What is denied goes on with the connection too: its bytes come and go, for nothing.
    fn granted(
        &mut self,
        operation: Operation,
        header: &Header,
        key: Key,
        served: &mut impl Served,
    ) {
        let Header { addr, len, version, .. } = *header;
        if !self.visitor.is_in() || !(1..=GRANTED_MAX_BYTES).contains(&len) {
            return self.refuse(version);
        }
        let found = served.find_granted(&self.asking(), key, addr, len, operation);
        self.is_known |= found.is_ok();
        match (operation, found) {
            (Operation::Write, Ok((target, used))) => {
                self.receiving = Receiving::Body { target, version, used: Some(used) };
            }
            (Operation::Write, Err(denied)) => {
                self.receiving = Receiving::Sink(Sink::new(len, granted::status(denied)));
            }
            (Operation::Read, found) => {
                self.replies.push_back(Reply::Granted(Answering::new(found, len, self.request())));
            }
        }
    }

    /// Mooncake's way: a status where the peer understands one, then the connection ends.
    fn refuse(&mut self, version: Version) {
        self.acknowledge(version, Status::Refused);
        self.closing = true;
    }

    /// The peer says its own name and that of the connection, or shows a pass for it.
    fn introduced(&mut self, body: &[u8], has_pass: bool, served: &mut impl Served) {
        let known = match has_pass {
            true => LaneName::with_pass(body)
                .and_then(|(lane, pass)| Some((lane, served.admit(&pass, lane)?))),
            false => LaneName::split(body).and_then(|(lane, engine)| {
                let mut visitor = self.visitor.clone();
                visitor.says(engine).then_some((lane, (visitor, None)))
            }),
        };
        let Some((name, (visitor, seal))) = known else { return self.refuse(Version::V2) };
        (self.name, self.visitor, self.seal) = (Some(name), visitor, seal);
        self.is_known |= has_pass;
        let (lane, peer) = (name.label(), &self.visitor);
        tracing::debug!(lane = %format_args!("{lane:08x}"), %peer, "a peer opens a lane");
        self.acknowledge(Version::V2, Status::Ok);
    }

    fn deliver(&mut self, body: &[u8], served: &mut impl Served) {
        let event = Event::decode(body);
        let status = event.map_or(Status::Refused, |event| served.event(&self.asking(), event));
        self.is_known |= status == Status::Ok;
        self.acknowledge(Version::V2, status);
    }
}

#[cfg(any(fuzzing, test))]
impl Default for ServerStream {
    /// Where nobody has to prove anything.
    fn default() -> Self {
        Self::new(Visitor::anyone(""))
    }
}
