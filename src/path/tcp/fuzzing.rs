//! A server's stream without a kernel: any bytes in any chunks, over real regions, against a
//! reference that reads the whole input at once. Nothing but permitted ranges may change.

use std::ops::ControlFlow;
use std::sync::Arc;

use kvrail_reactors::cuda::Landing;
use kvrail_reactors::region::{self, Slice};
use kvrail_reactors::vector::Vector;

use super::server::ServerStream;
use super::wire::{
    Event, HEADER_BYTES, Header, KEY_BYTES, LaneName, NAME_BYTES, NAMES_MAX_BYTES,
    PASS_FRAME_BYTES, STATUS_BYTES, Status, Verb, Version,
};
use crate::auth::{Pass, Seal, Visitor};
use crate::limits::{
    EVENT_MAX_BYTES, GRANTED_MAX_BYTES, READ_AHEAD_MAX_BYTES, REPLIES_MAX, SEND_MAX_BYTES,
    SEND_MAX_PARTS, SMALL_ROOM_BYTES,
};
use crate::memory::grant::{Denied, Granting, Grants, Key, Use};
use crate::memory::{Access, Grant, Location, Operation, Region, Regions, RegionsView};
use crate::path::asking::Asking;
use crate::path::served::Served;

/// Memory with registered ranges in it and guard bytes around them. Peers name bytes by their
/// offset; addresses outside of it reach the table of regions as they are.
pub(crate) struct World {
    pub(crate) memory: Arc<region::Region>,
    windows: Vec<Window>,
    view: RegionsView,
    grants: Arc<Grants>,
    /// Those of [`GRANTED`], by number, as long as they hold.
    held: Vec<Option<Grant>>,
    /// What was delivered, in order.
    pub(crate) events: Vec<Event>,
    landing: Landing,
}

/// A registered range.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    pub(crate) start: usize,
    pub(crate) len: usize,
    pub(crate) access: Access,
}

/// Every permission once, with gaps, one of them between pages.
pub(crate) const WINDOWS: [Window; 4] = [
    Window { start: 1_000, len: 5_000, access: Access::READ_WRITE },
    Window { start: 6_001, len: 999, access: Access::READ },
    Window { start: 8_192, len: 4_096, access: Access::WRITE },
    Window { start: 13_000, len: 2_000, access: Access::LOCAL },
];

/// Grants inside of what is not published otherwise: to anyone, to one peer, and one that was
/// taken back.
pub(crate) const GRANTED: [Granted; 3] = [
    Granted { start: 13_100, len: 500, access: Access::READ_WRITE, holder: None, holds: true },
    Granted { start: 13_700, len: 300, access: Access::WRITE, holder: Some(PEER), holds: true },
    Granted { start: 14_200, len: 300, access: Access::READ_WRITE, holder: None, holds: false },
];

/// The peer to which something is granted.
pub(crate) const PEER: &str = "peer";

/// The word of every key here, whose slot is a number in [`GRANTED`]: real ones nobody guesses.
pub(crate) const WORD: u64 = 7;

/// A granted range.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Granted {
    pub(crate) start: usize,
    pub(crate) len: usize,
    pub(crate) access: Access,
    pub(crate) holder: Option<&'static str>,
    pub(crate) holds: bool,
}

impl World {
    pub(crate) fn new(len: usize, windows: &[Window]) -> Self {
        let memory = Arc::new(region::Region::allocate(len, None).expect("memory"));
        let regions = Arc::new(Regions::default());
        let grants = Arc::new(Grants::new(None));
        let mut held = Vec::new();
        for window in windows {
            let inner = region::Region::within(&memory, window.start, window.len).expect("room");
            let region = Region::new(inner, window.access, Location::Cpu(None));
            regions.insert(region.clone()).expect("no overlap");
            let end = window.start + window.len;
            let is_in =
                |grant: &&Granted| grant.start >= window.start && grant.start + grant.len <= end;
            let local = GRANTED.iter().filter(|_| window.access == Access::LOCAL).filter(is_in);
            held.extend(local.map(|grant| grant.make(&grants, &region, window.start)));
        }
        let (view, windows) = (RegionsView::new(regions), windows.to_vec());
        let world = Self {
            memory,
            windows,
            view,
            grants,
            held,
            events: Vec::new(),
            landing: Landing::default(),
        };
        let bytes: Vec<u8> = (0..len).map(|at| ((at * 31) >> 3) as u8).collect();
        world.all().write(0, &bytes).expect("all of it");
        world
    }

    /// Takes the grant of this number back.
    #[cfg(test)]
    pub(crate) fn strike(&mut self, number: usize) {
        self.held[number] = None;
    }

    #[cfg(test)]
    pub(crate) fn is_struck(&self, number: usize) -> bool {
        self.held[number].is_none()
    }

    pub(crate) fn all(&self) -> Slice {
        Slice::new(self.memory.clone(), 0, self.memory.len()).expect("all of it")
    }

    pub(crate) fn contents(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.memory.len()];
        self.all().read(0, &mut bytes).expect("all of it");
        bytes
    }
}

impl Granted {
    fn make(&self, grants: &Arc<Grants>, region: &Region, start: usize) -> Option<Grant> {
        let range = self.start - start..self.start - start + self.len;
        let (access, holder) = (self.access, self.holder.map(str::to_owned));
        let granting = Granting { region, range, access, holder, expires_ns: None, generation: 0 };
        Some(grants.add(granting).expect("it is inside")).filter(|_| self.holds)
    }
}

impl Served for World {
    fn find(&mut self, _: &Asking<'_>, addr: u64, len: u64, operation: Operation) -> Option<Slice> {
        let is_ours = addr < self.memory.len() as u64;
        let addr = if is_ours { self.memory.addr() + addr } else { addr };
        self.view.current().find(addr, len, operation).ok()
    }

    fn find_granted(
        &mut self,
        asking: &Asking<'_>,
        key: Key,
        addr: u64,
        len: u64,
        operation: Operation,
    ) -> Result<(Slice, Use), Denied> {
        let held = self.held.get(key.slot as usize).filter(|_| key.word == WORD);
        let reference = held.and_then(Option::as_ref).ok_or(Denied::Stale)?.reference();
        let addr = self.memory.addr().wrapping_add(addr);
        asking.visitor.under_a_name(Denied::Refused, |holder| {
            self.grants.find(reference.key, holder, addr, len, operation)
        })
    }

    fn find_all(
        &mut self,
        asking: &Asking<'_>,
        key: Option<Key>,
        addr: u64,
        len: u64,
        operation: Operation,
    ) -> Option<(Slice, Option<Use>)> {
        match key {
            None => Some((self.find(asking, addr, len, operation)?, None)),
            Some(key) => {
                let found = self.find_granted(asking, key, addr, len, operation).ok();
                found.map(|(found, used)| (found, Some(used)))
            }
        }
    }

    fn took_all(&mut self, _: &Asking<'_>, _: u64, _: Operation) {}

    fn event(&mut self, _: &Asking<'_>, event: Event) -> Status {
        let status = status_of(&event);
        self.events.push(event);
        status
    }

    fn is_process(&self, incarnation: u64) -> bool {
        incarnation == INCARNATION
    }

    fn admit(&mut self, _: &Pass, _: LaneName) -> Option<(Visitor, Option<Seal>)> {
        None
    }

    fn landing(&mut self) -> &mut Landing {
        &mut self.landing
    }
}

/// Which process the world is.
pub(crate) const INCARNATION: u64 = 7;

/// All three answers to events, chosen by the event itself.
fn status_of(event: &Event) -> Status {
    match event.count {
        Some((0, _)) => Status::Refused,
        Some((1, _)) => Status::Busy,
        _ => Status::Ok,
    }
}

/// What a server owes for the whole input.
#[derive(Debug, Default)]
pub(crate) struct Expected {
    /// None: a byte of memory that this input writes too, so its value depends on timing.
    pub(crate) replies: Vec<Option<u8>>,
    pub(crate) memory: Vec<u8>,
    pub(crate) events: Vec<Event>,
    pub(crate) closes: bool,
    /// The peer's name, once it has said it.
    holder: String,
}

/// Reads the input as one piece, with plain slices and no state.
pub(crate) fn expected(world: &World, mut input: &[u8]) -> Expected {
    let mut expected = Expected { memory: world.contents(), ..Expected::default() };
    let mut has_name = false;
    while let Some((header, rest)) = input.split_first_chunk::<HEADER_BYTES>() {
        let header = match Header::decode(header) {
            Ok(header) => header,
            Err(unknown) => return expected.refused(unknown.0),
        };
        if let Verb::Granted(operation) = header.verb {
            match expected.granted(&header, operation, rest) {
                ControlFlow::Continue(left) => input = left,
                ControlFlow::Break(Ended::Refused) => return expected.refused(header.version),
                ControlFlow::Break(Ended::Cut) => break,
            }
            continue;
        }
        let len = usize::try_from(header.len).unwrap_or(usize::MAX);
        let body = &rest[..len.min(rest.len())];
        input = &rest[body.len()..];
        match header.verb {
            Verb::Granted(_) => unreachable!("it was looked at above"),
            Verb::Event if !(1..=EVENT_MAX_BYTES).contains(&header.len) => {
                return expected.refused(header.version);
            }
            Verb::Name | Verb::Pass if has_name || !may_name(&header) => {
                return expected.refused(header.version);
            }
            Verb::Event | Verb::Name | Verb::Pass if body.len() < len => break,
            // None is good here.
            Verb::Pass => return expected.refused(header.version),
            Verb::Name => {
                let Some((_, holder)) = LaneName::split(body) else {
                    return expected.refused(header.version);
                };
                (has_name, expected.holder) = (true, holder.to_owned());
                expected.status(Status::Ok);
            }
            Verb::Event => {
                let event = Event::decode(body);
                expected.status(event.as_ref().map_or(Status::Refused, status_of));
                expected.events.extend(event);
            }
            Verb::Transfer(operation) => {
                let Some(access) = permitted(&world.windows, header.addr, header.len, operation)
                else {
                    return expected.refused(header.version);
                };
                let start = header.addr as usize;
                if operation == Operation::Read {
                    input = rest;
                    expected.answer(header.version);
                    let bytes = &expected.memory[start..start + len];
                    let known = bytes.iter().map(|&byte| (!access.write).then_some(byte));
                    expected.replies.extend(known);
                } else {
                    expected.memory[start..start + body.len()].copy_from_slice(body);
                    if body.len() < len {
                        break;
                    }
                    expected.answer(header.version);
                }
            }
        }
    }
    expected
}

fn may_name(header: &Header) -> bool {
    let lengths = match header.verb {
        Verb::Pass => PASS_FRAME_BYTES..=PASS_FRAME_BYTES,
        _ => NAME_BYTES..=NAMES_MAX_BYTES,
    };
    header.addr == INCARNATION && lengths.contains(&(header.len as usize))
}

fn permitted(windows: &[Window], addr: u64, len: u64, operation: Operation) -> Option<Access> {
    let end = u128::from(addr) + u128::from(len);
    let inside = |w: &&Window| addr >= w.start as u64 && end <= (w.start + w.len) as u128;
    let access = windows.iter().find(inside).filter(|_| len > 0)?.access;
    let allowed = if operation == Operation::Read { access.read } else { access.write };
    allowed.then_some(access)
}

/// Why nothing more of an input counts.
enum Ended {
    /// The server closes.
    Refused,
    /// The input ends in the middle.
    Cut,
}

/// What is granted under a key, by the list rather than the table.
fn granted(
    key: Key,
    holder: &str,
    addr: u64,
    len: u64,
    operation: Operation,
) -> Result<Granted, Status> {
    let grant = GRANTED.get(key.slot as usize).filter(|grant| grant.holds && key.word == WORD);
    let grant = grant.ok_or(Status::Stale)?;
    let window = Window { start: grant.start, len: grant.len, access: grant.access };
    let is_holder = grant.holder.is_none_or(|only| only == holder);
    match permitted(&[window], addr, len, operation).filter(|_| is_holder) {
        Some(_) => Ok(*grant),
        None => Err(Status::Refused),
    }
}

impl Expected {
    /// A request under a grant, of which `input` is what stands behind the header; what is left.
    fn granted<'a>(
        &mut self,
        header: &Header,
        operation: Operation,
        input: &'a [u8],
    ) -> ControlFlow<Ended, &'a [u8]> {
        let Some((key, rest)) = input.split_first_chunk::<KEY_BYTES>() else {
            return ControlFlow::Break(Ended::Cut);
        };
        if !(1..=GRANTED_MAX_BYTES).contains(&header.len) {
            return ControlFlow::Break(Ended::Refused);
        }
        let (addr, len) = (header.addr as usize, header.len as usize);
        let found = granted(Key::decode(key), &self.holder, header.addr, header.len, operation);
        let status = found.map_or_else(|status| status, |_| Status::Ok);
        if operation == Operation::Read {
            // What may be written too depends on timing.
            let read = |grant: Granted| {
                let bytes = &self.memory[addr..addr + len];
                bytes.iter().map(|byte| (!grant.access.write).then_some(*byte)).collect()
            };
            let bytes = found.map_or_else(|_| vec![Some(0); len], read);
            self.replies.extend(bytes);
            self.status(status);
            return ControlFlow::Continue(rest);
        }
        let body = &rest[..len.min(rest.len())];
        if found.is_ok() {
            self.memory[addr..addr + body.len()].copy_from_slice(body);
        }
        if body.len() < len {
            return ControlFlow::Break(Ended::Cut);
        }
        self.status(status);
        ControlFlow::Continue(&rest[len..])
    }

    fn status(&mut self, status: Status) {
        self.replies.extend(status.encode().map(Some));
    }

    fn answer(&mut self, version: Version) {
        if version == Version::V2 {
            self.status(Status::Ok);
        }
    }

    fn refused(mut self, version: Version) -> Self {
        if version == Version::V2 {
            self.status(Status::Refused);
        }
        self.closes = true;
        self
    }
}

/// Feeds `input` in `chunks`, over and over. A chunk of 0 lets the replies wait a turn longer, as
/// a peer does that does not read. Returns the replies; panics where a bound does not hold.
pub(crate) fn feed(
    stream: &mut ServerStream,
    world: &mut World,
    mut input: &[u8],
    chunks: &[usize],
) -> Vec<u8> {
    let mut replies = Vec::new();
    let mut turn = 0;
    loop {
        let mut vector = Vector::default();
        stream.receive_into(&mut vector);
        assert!(vector.parts() <= 2, "a body and what is behind it");
        let chunk = chunks.get(turn % chunks.len().max(1)).copied().unwrap_or(usize::MAX);
        turn += 1;
        let is_lazy = chunk == 0 && !vector.is_empty() && turn <= 2 * REPLIES_MAX;
        let chunk = if chunk == 0 { HEADER_BYTES } else { chunk };
        let count = vector.store(&input[..chunk.min(input.len())]);
        input = &input[count..];
        stream.received(&vector, count, world);
        if is_lazy && !input.is_empty() {
            continue;
        }
        let sent = send(stream, world, &mut replies);
        if count == 0 && sent == 0 {
            break;
        }
    }
    assert!(input.is_empty() || stream.is_closing(), "{} bytes are not read", input.len());
    replies
}

/// Takes one send's worth of replies.
fn send(stream: &mut ServerStream, world: &mut World, replies: &mut Vec<u8>) -> usize {
    let mut vector = Vector::default();
    stream.send_into(&mut vector);
    assert!(vector.parts() <= SEND_MAX_PARTS + 1);
    assert!(vector.len() <= SEND_MAX_BYTES + SMALL_ROOM_BYTES + STATUS_BYTES);
    replies.extend(vector.copy_out(usize::MAX));
    stream.sent(world);
    assert!(stream.waiting_replies() <= REPLIES_MAX + 1, "replies are bounded");
    assert!(stream.backlog_bytes() <= READ_AHEAD_MAX_BYTES, "what is put off is bounded");
    vector.len()
}

/// See [`crate::fuzzing::tcp_stream`].
pub(crate) fn stream(input: &[u8]) {
    let count = input.first().map_or(0, |&first| usize::from(first % 8)).min(input.len());
    let (chunks, input) = input.split_at(count);
    let chunks: Vec<usize> = chunks.iter().skip(1).map(|&chunk| chunk_bytes(chunk)).collect();
    holds(16 << 10, &WINDOWS, input, &chunks);
}

/// Mostly small ones: they cut headers and statuses.
fn chunk_bytes(byte: u8) -> usize {
    if byte < 200 { usize::from(byte) } else { usize::from(byte) << 6 }
}

/// Bytes of replies that one input is worth: what is denied makes a mebibyte of a few bytes.
const REPLIED_MAX_BYTES: usize = 4 << 20;

/// The stream does what the reference says, in these chunks.
pub(crate) fn holds(len: usize, windows: &[Window], input: &[u8], chunks: &[usize]) {
    let mut world = World::new(len, windows);
    let expected = expected(&world, input);
    if expected.replies.len() > REPLIED_MAX_BYTES {
        return;
    }
    let mut stream = ServerStream::default();
    let replies = feed(&mut stream, &mut world, input, chunks);
    assert_eq!(replies.len(), expected.replies.len(), "bytes of replies");
    for (at, (got, known)) in replies.iter().zip(&expected.replies).enumerate() {
        assert_eq!(*got, known.unwrap_or(*got), "byte {at} of the replies");
    }
    assert!(world.contents() == expected.memory, "the memory differs");
    assert_eq!(world.events, expected.events);
    assert_eq!(stream.is_closing(), expected.closes);
}
