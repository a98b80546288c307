//! What a peer's header asks for, and what comes of it.

use std::ops::RangeInclusive;

use kvrail_reactors::region::Slice;

use super::ServerStream;
use crate::limits::{EVENT_MAX_BYTES, GRANTED_MAX_BYTES};
use crate::memory::Operation;
use crate::memory::grant::Key;
use crate::path::served::Served;
use crate::path::tcp::granted::{self, Answering, Sink};
use crate::path::tcp::steps::{Receiving, Reply};
use crate::path::tcp::wire::{
    Event, HEADER_BYTES, Header, KEY_BYTES, LaneName, NAME_BYTES, NAMES_MAX_BYTES,
    PASS_FRAME_BYTES, Status, Verb, Version,
};

/// Bytes of a body with names.
const NAMES_BYTES: RangeInclusive<u64> = NAME_BYTES as u64..=NAMES_MAX_BYTES as u64;

/// Bytes of an event's body.
const EVENT_BYTES: RangeInclusive<u64> = 1..=EVENT_MAX_BYTES;

impl ServerStream {
    /// A header is complete, or all of it but the key.
    pub(super) fn begin(&mut self, served: &mut impl Served) {
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
        self.read_ahead.begin(header.len, header.verb.is_read());
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

    /// A client that means another process is refused: this one has got its predecessor's port.
    fn may_be_named(&self, header: &Header, served: &impl Served) -> bool {
        let is_well_formed = match header.verb {
            Verb::Pass => header.len == PASS_FRAME_BYTES as u64,
            _ => NAMES_BYTES.contains(&header.len),
        };
        is_well_formed && self.name.is_none() && served.is_process(header.addr)
    }

    fn transfer(&mut self, operation: Operation, memory: Slice, version: Version) {
        self.is_known = true;
        match operation {
            Operation::Write => {
                self.storing.begin(&memory);
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
                self.storing.begin(&target);
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
    pub(super) fn introduced(&mut self, body: &[u8], has_pass: bool, served: &mut impl Served) {
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

    pub(super) fn deliver(&mut self, body: &[u8], served: &mut impl Served) {
        // It tells of what came before.
        self.land(served.landing());
        let event = Event::decode(body);
        let status = event.map_or(Status::Refused, |event| served.event(&self.asking(), event));
        self.is_known |= status == Status::Ok;
        self.acknowledge(Version::V2, status);
    }
}
