//! One connection that a peer opened, as a pure state machine: which bytes are wanted next and
//! where they go, what was received, what is to be answered. Any bytes in any chunks change
//! nothing outside the ranges that [`Served::find`] allows.

mod requests;

use std::collections::VecDeque;

use kvrail_reactors::cuda::{Failure, Landing};
use kvrail_reactors::region::{Region, Slice};
use kvrail_reactors::vector::{Filled, Vector};

use super::granted::Sink;
use super::read_ahead::ReadAhead;
use super::steps::{Receiving, Reply, complete};
use super::storing::{Came, Storing};
use super::wire::{HEADER_BYTES, KEY_BYTES, LaneName, Status, Version};
use crate::auth::{PeerId, Seal, Visitor};
use crate::limits::{
    RECEIVE_MAX_BYTES, REPLIES_MAX, SEND_MAX_BYTES, SEND_MAX_PARTS, SMALL_ROOM_BYTES,
};
use crate::memory::grant::Use;
use crate::path::asking::{Asking, RequestName};
use crate::path::served::Served;

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
    /// The same, where it came in a block.
    put_off: Option<Slice>,
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
    read_ahead: ReadAhead,
    storing: Box<Storing>,
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
            put_off: None,
            closing: false,
            ended: false,
            is_known: false,
            name: None,
            visitor,
            seal: None,
            read_ahead: ReadAhead::default(),
            storing: Box::default(),
        }
    }

    /// Has the next receive go to a block, where what comes is for a GPU. What goes to a GPU's
    /// memory for want of one stands behind what is on its way there.
    pub(crate) fn lend(&mut self, landing: &mut Landing) {
        let target = match &self.receiving {
            Receiving::Body { target, .. } => Some(target),
            Receiving::Header => None,
            _ => return,
        };
        self.storing.lend(target, landing);
        let is_on_gpu = target.is_some_and(|target| target.driver().is_some());
        if is_on_gpu && self.storing.block().is_none() {
            self.land(landing);
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
        if self.has_backlog() || self.replies.len() >= REPLIES_MAX {
            return;
        }
        if let Some(block) = self.storing.block() {
            return vector.push_memory(block.clone());
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
            _ => self.read_ahead.room_bytes().unwrap_or(self.header_room - self.header_len),
        });
    }

    /// The first `count` bytes of `vector` were received.
    pub(crate) fn received(&mut self, vector: &Vector, count: usize, served: &mut impl Served) {
        self.read_ahead.received(count);
        if let Some(block) = self.storing.received(count) {
            return self.read(Came::Block(block), served);
        }
        for filled in vector.filled(count) {
            match filled {
                Filled::Memory(len) => self.stored(len, None),
                Filled::Bytes(bytes) => self.read(Came::Bytes(bytes), served),
            }
        }
    }

    /// Whether receives to come take so much room.
    pub(crate) fn has_use_for(&self, room_bytes: usize) -> bool {
        room_bytes <= self.read_ahead.room_bytes().unwrap_or(SMALL_ROOM_BYTES)
    }

    /// Moves waiting replies into `vector`, as many as one send takes.
    pub(crate) fn send_into(&mut self, vector: &mut Vector) {
        let waiting = self.replies.len();
        let most = self.storing.sendable();
        while vector.parts() < SEND_MAX_PARTS
            && vector.len() < SEND_MAX_BYTES
            && waiting - self.replies.len() < most
        {
            match self.replies.pop_front() {
                None => break,
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
                        self.replies.push_front(Reply::Granted(answering));
                        break;
                    }
                }
            }
        }
        self.storing.sent(waiting - self.replies.len());
    }

    /// Replies were sent: looks at what was put off.
    pub(crate) fn sent(&mut self, served: &mut impl Served) {
        self.sending.clear();
        if self.replies.len() >= REPLIES_MAX {
            return;
        }
        if let Some(block) = self.put_off.take() {
            self.read(Came::Block(block), served);
        } else if !self.backlog.is_empty() {
            let backlog = std::mem::take(&mut self.backlog);
            self.read(Came::Bytes(&backlog), served);
        }
    }

    fn has_backlog(&self) -> bool {
        !self.backlog.is_empty() || self.put_off.is_some()
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
    pub(crate) fn let_body_go(&mut self, landing: &mut Landing) {
        if !self.stores_struck() {
            return;
        }
        // Its status says that nothing more of it is stored.
        self.land(landing);
        if let Receiving::Body { target, .. } = &self.receiving {
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
            || self.is_landing()
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

    /// Whether bodies are on their way to a GPU.
    pub(crate) fn is_landing(&self) -> bool {
        self.storing.is_under_way()
    }

    /// Whether a request under way reads from or writes to `region`.
    pub(crate) fn touches(&self, region: &Region) -> bool {
        let is_in = |slice: &Slice| std::ptr::eq(&**slice.region(), region);
        let receiving = matches!(&self.receiving, Receiving::Body { target, .. } if is_in(target));
        receiving
            || self.storing.touches(region)
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

    /// `len` bytes of the body are in place, or on their way there by `landing`.
    fn stored(&mut self, len: usize, landing: Option<&Landing>) {
        let Receiving::Body { target, version, used } = &mut self.receiving else { return };
        target.advance(len);
        if !target.is_empty() {
            return;
        }
        let (version, used) = (*version, used.take());
        self.receiving = Receiving::Header;
        let is_struck = used.as_ref().is_some_and(Use::is_struck);
        let status = if is_struck { self.struck() } else { Status::Ok };
        if let Some(landing) = landing {
            self.storing.await_landing((version, self.replies.len()), used, landing);
        }
        self.acknowledge(version, status);
    }

    fn acknowledge(&mut self, version: Version, status: Status) {
        if version == Version::V2 {
            self.replies.push_back(Reply::Status(status));
        }
    }

    fn read(&mut self, mut came: Came<'_>, served: &mut impl Served) {
        while !came.is_empty() && !self.closing {
            if self.replies.len() >= REPLIES_MAX {
                self.put_off(came);
                break;
            }
            let used = self.step(&came, served);
            came.advance(used);
        }
        let is_enough = self.storing.is_enough();
        if self.has_backlog() || self.closing {
            self.land(served.landing());
        } else if is_enough {
            let begun = self.storing.launch(served.landing());
            begun.unwrap_or_else(|failure| self.not_landed(&failure));
        }
    }

    fn put_off(&mut self, came: Came<'_>) {
        match came {
            Came::Bytes(bytes) => self.backlog.extend_from_slice(bytes),
            Came::Block(block) => self.put_off = Some(block),
        }
    }

    /// Looks at the first bytes; returns how many.
    fn step(&mut self, came: &Came<'_>, served: &mut impl Served) -> usize {
        self.let_body_go(served.landing());
        match &mut self.receiving {
            Receiving::Header => {
                let used = came.copy_to(&mut self.header[self.header_len..self.header_room]);
                self.header_len += used;
                if self.header_len == self.header_room {
                    self.begin(served);
                }
                used
            }
            Receiving::Sink(sink) => {
                let (used, status) = sink.swallow(came.len());
                if let Some(status) = status {
                    self.receiving = Receiving::Header;
                    self.acknowledge(Version::V2, status);
                }
                used
            }
            Receiving::Body { target, .. } => {
                let used = came.len().min(target.len());
                if target.driver().is_some() {
                    return self.bring(came, used, served);
                }
                came.store(target, used);
                self.stored(used, None);
                used
            }
            Receiving::Name { body, len, has_pass } => {
                let ((used, whole), has_pass) = (complete(body, *len, came), *has_pass);
                if let Some(body) = whole {
                    self.receiving = Receiving::Header;
                    self.introduced(&body, has_pass, served);
                }
                used
            }
            Receiving::Event { body, len } => {
                let (used, whole) = complete(body, *len, came);
                if let Some(body) = whole {
                    self.receiving = Receiving::Header;
                    self.deliver(&body, served);
                }
                used
            }
        }
    }

    /// Has a GPU take the first `count` bytes; none where it fails.
    fn bring(&mut self, came: &Came<'_>, count: usize, served: &mut impl Served) -> usize {
        let Receiving::Body { target, .. } = &self.receiving else { return 0 };
        let mut target = target.clone();
        target.truncate(count);
        match self.storing.bring(came, target, served.landing()) {
            Ok(()) => {
                self.stored(count, Some(served.landing()));
                count
            }
            Err(failure) => {
                self.not_landed(&failure);
                0
            }
        }
    }

    /// What has come is in its place when this returns, or refused.
    pub(crate) fn land(&mut self, landing: &mut Landing) {
        if !self.is_landing() {
            return;
        }
        let landed = self.storing.land(landing);
        landed.unwrap_or_else(|failure| self.not_landed(&failure));
    }

    /// The GPU that holds bodies fails: nobody knows which of them are in place.
    fn not_landed(&mut self, failure: &Failure) {
        tracing::warn!(%failure, "a GPU did not take what a peer wrote");
        for (before, has_answer) in self.storing.give_up() {
            if has_answer {
                self.replies[before] = Reply::Status(Status::Refused);
            } else {
                // What stands behind it would tell of success.
                self.replies.truncate(before);
                self.closing = true;
                break;
            }
        }
        match &self.receiving {
            Receiving::Body { target, version, .. } if target.driver().is_some() => match version {
                Version::V1 => self.closing = true,
                Version::V2 => {
                    let sink = Sink::new(target.len() as u64, Status::Refused);
                    self.receiving = Receiving::Sink(sink);
                }
            },
            _ => {}
        }
    }
}

#[cfg(any(fuzzing, test))]
impl Default for ServerStream {
    /// Where nobody has to prove anything.
    fn default() -> Self {
        Self::new(Visitor::anyone(""))
    }
}
