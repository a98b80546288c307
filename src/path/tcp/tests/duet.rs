//! A client's stream against a server's, back to back in memory: every request is answered once
//! and moves its bytes, however the two are interleaved. Then against servers that lie.

use std::collections::VecDeque;
use std::sync::Arc;

use kvrail_reactors::region::{Region, Slice};
use kvrail_reactors::vector::Vector;
use proptest::prelude::*;

use super::{request, slice};
use crate::limits::{LANE_WINDOW_BYTES, LANE_WINDOW_REQUESTS};
use crate::memory::Access;
use crate::path::tcp::client::{Action, Answer, Broken, ClientStream, Request};
use crate::path::tcp::fuzzing::{Window, World};
use crate::path::tcp::server::ServerStream;
use crate::path::tcp::wire::{Event, HEADER_BYTES, Header, STATUS_BYTES, Status, Verb, Version};

/// Bytes on the way in one direction at most: small, so that both sides wait for each other.
const PIPE_BYTES: usize = 5_000;

/// Where the server's registered range begins.
const BASE: usize = 4_096;

#[derive(Default)]
struct Pipe {
    bytes: VecDeque<u8>,
}

impl Pipe {
    /// Moves up to `chunk` bytes from what is being sent; `true` once nothing of it is left.
    fn take(&mut self, sending: &mut Vector, chunk: usize) -> bool {
        let count = chunk.min(PIPE_BYTES - self.bytes.len());
        let bytes = sending.copy_out(count);
        sending.advance(bytes.len());
        self.bytes.extend(bytes);
        sending.is_empty()
    }

    fn give(&mut self, receiving: &mut Vector, chunk: usize) -> usize {
        let ready = chunk.min(self.bytes.len());
        let count = receiving.store(&self.bytes.make_contiguous()[..ready]);
        self.bytes.drain(..count);
        count
    }
}

/// Both ends and what is on the way between them.
pub(super) struct Duet {
    pub(super) client: ClientStream,
    queue: VecDeque<Request>,
    pub(super) server: ServerStream,
    pub(super) world: World,
    there: Pipe,
    back: Pipe,
    client_sending: Option<Vector>,
    client_receiving: Option<Vector>,
    server_sending: Option<Vector>,
    server_receiving: Option<Vector>,
    pub(super) answers: Vec<(usize, Answer)>,
    pub(super) broken: Option<Broken>,
}

impl Duet {
    pub(super) fn new(
        version: Version,
        careful: bool,
        world: World,
        requests: Vec<Request>,
    ) -> Self {
        Self {
            client: ClientStream::new(version, careful),
            queue: requests.into(),
            server: ServerStream::default(),
            world,
            there: Pipe::default(),
            back: Pipe::default(),
            client_sending: None,
            client_receiving: None,
            server_sending: None,
            server_receiving: None,
            answers: Vec::new(),
            broken: None,
        }
    }

    /// Lets one of the four ends move up to `chunk` bytes; returns whether any moved.
    pub(super) fn step(&mut self, which: u8, chunk: usize) -> bool {
        match which % 4 {
            0 => self.client_sends(chunk),
            1 => self.server_receives(chunk),
            2 => self.server_sends(chunk),
            _ => self.client_receives(chunk),
        }
    }

    /// Takes turns until nothing moves any more.
    pub(super) fn finish(&mut self) {
        while (0..4).any(|which| self.step(which, usize::MAX)) {}
    }

    fn client_sends(&mut self, chunk: usize) -> bool {
        let Self { client, queue, .. } = self;
        let mut vector = self.client_sending.take().unwrap_or_else(|| {
            let mut vector = Vector::default();
            assert!(client.send_into(&mut vector, queue, |_| false).is_empty());
            vector
        });
        if vector.is_empty() || self.broken.is_some() {
            return false;
        }
        let before = vector.len();
        let is_out = self.there.take(&mut vector, chunk);
        let moved = vector.len() < before;
        self.client_sending = (!is_out).then_some(vector);
        moved
    }

    fn server_receives(&mut self, chunk: usize) -> bool {
        let server = &self.server;
        let vector = self.server_receiving.get_or_insert_with(|| {
            let mut vector = Vector::default();
            server.receive_into(&mut vector);
            vector
        });
        let count = self.there.give(vector, chunk);
        if count > 0 || vector.is_empty() {
            let vector = self.server_receiving.take().unwrap_or_default();
            self.server.received(&vector, count, &mut self.world);
        }
        count > 0
    }

    fn server_sends(&mut self, chunk: usize) -> bool {
        let server = &mut self.server;
        let mut vector = self.server_sending.take().unwrap_or_else(|| {
            let mut vector = Vector::default();
            server.send_into(&mut vector);
            vector
        });
        if vector.is_empty() {
            return false;
        }
        let before = vector.len();
        let is_out = self.back.take(&mut vector, chunk);
        let moved = vector.len() < before;
        if is_out {
            self.server.sent(&mut self.world);
        } else {
            self.server_sending = Some(vector);
        }
        moved
    }

    fn client_receives(&mut self, chunk: usize) -> bool {
        if self.broken.is_some() {
            return false;
        }
        let client = &self.client;
        let vector = self.client_receiving.get_or_insert_with(|| {
            let mut vector = Vector::default();
            client.receive_into(&mut vector);
            vector
        });
        let count = self.back.give(vector, chunk);
        if count > 0 {
            let vector = self.client_receiving.take().unwrap_or_default();
            let answers = &mut self.answers;
            let push = |request: Request, answer| answers.push((request.index, answer));
            self.broken = self.client.received(&vector, count, push).err();
        }
        count > 0
    }
}

fn bytes_of(slice: &Slice) -> Vec<u8> {
    let mut bytes = vec![0; slice.len()];
    slice.read(0, &mut bytes).unwrap();
    bytes
}

fn local(len: usize) -> Arc<Region> {
    let region = Arc::new(Region::allocate(len.max(1), None).unwrap());
    let bytes: Vec<u8> = (0..len).map(|at| (at * 7 + at / 256) as u8).collect();
    slice(&region, 0, len).write(0, &bytes).unwrap();
    region
}

/// Kinds and lengths of requests that each have their own range on both sides.
fn spread(kinds: &[(u8, usize)], version: Version) -> (Vec<Request>, Arc<Region>, World) {
    let total: usize = kinds.iter().map(|(_, len)| len).sum();
    let memory = local(total);
    let windows = [Window { start: BASE, len: total.max(1), access: Access::READ_WRITE }];
    let world = World::new(BASE + total + BASE, &windows);
    let mut at = 0;
    let mut requests = Vec::new();
    for (index, &(kind, len)) in kinds.iter().enumerate() {
        let own = slice(&memory, at, len);
        let action = match kind % 5 {
            0 | 1 => Action::Write(own),
            2 if version == Version::V2 => Action::Event(event(index).encode().into()),
            _ => Action::Read(own),
        };
        requests.push(request(index, action, BASE + at));
        at += len;
    }
    (requests, memory, world)
}

fn event(index: usize) -> Event {
    Event { count: Some((2 + index as u64, 1)), message: None }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn every_request_is_answered_once_and_moves_its_bytes(
        kinds in prop::collection::vec(
            (any::<u8>(), prop_oneof![1usize..40, 1usize..9_000]), 0..60),
        v2: bool,
        careful: bool,
        script in prop::collection::vec((0u8..4, 1usize..4_000), 0..300),
    ) {
        let version = if v2 { Version::V2 } else { Version::V1 };
        let (requests, memory, world) = spread(&kinds, version);
        let before = (bytes_of(&slice(&memory, 0, memory.len())), world.contents());
        let mut duet = Duet::new(version, careful && !v2, world, requests);
        for (which, chunk) in script {
            duet.step(which, chunk);
        }
        duet.finish();
        prop_assert_eq!(duet.broken, None);
        let expected: Vec<_> = (0..kinds.len()).map(|index| (index, Answer::Done)).collect();
        prop_assert_eq!(&duet.answers, &expected);
        prop_assert!(!duet.client.has_unanswered() && !duet.server.is_mid_request());
        let (mut ours, mut theirs) = before;
        let (mut at, mut events) = (0, Vec::new());
        for (index, &(kind, len)) in kinds.iter().enumerate() {
            match kind % 5 {
                0 | 1 => theirs[BASE + at..][..len].copy_from_slice(&ours[at..][..len]),
                2 if v2 => events.push(event(index)),
                _ => ours[at..][..len].copy_from_slice(&theirs[BASE + at..][..len]),
            }
            at += len;
        }
        prop_assert!(duet.world.contents() == theirs, "the server's memory differs");
        let memory = bytes_of(&slice(&memory, 0, memory.len()));
        prop_assert!(memory == ours, "the client's memory differs");
        prop_assert_eq!(duet.world.events, events);
    }

    #[test]
    fn a_refusal_answers_what_came_before_and_nothing_behind(
        before in 0usize..20, behind in 0usize..20, is_write: bool, v2: bool,
        script in prop::collection::vec((0u8..4, 1usize..3_000), 0..200),
    ) {
        let version = if v2 { Version::V2 } else { Version::V1 };
        // All reads, but for the refused one: an unproven version 1 WRITE is not answered.
        let kinds: Vec<(u8, usize)> = vec![(3, 100); before + 1 + behind];
        let (mut requests, memory, world) = spread(&kinds, version);
        let own = slice(&memory, before * 100, 100);
        requests[before].action = if is_write { Action::Write(own) } else { Action::Read(own) };
        requests[before].addr = 1;
        let mut duet = Duet::new(version, false, world, requests);
        for (which, chunk) in script {
            duet.step(which, chunk);
        }
        duet.finish();
        let mut expected: Vec<_> = (0..before).map(|index| (index, Answer::Done)).collect();
        if v2 {
            expected.push((before, Answer::Refused));
        }
        prop_assert_eq!(&duet.answers, &expected);
        prop_assert_eq!(duet.broken, v2.then_some(Broken::Rejected));
        prop_assert!(duet.server.is_closing());
        let left = duet.client.into_unanswered().len() + duet.queue.len();
        prop_assert_eq!(left, before + 1 + behind - expected.len());
    }
}

/// Sends as much as goes out at once; returns it.
fn send_all(client: &mut ClientStream, queue: &mut VecDeque<Request>) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let mut vector = Vector::default();
        client.send_into(&mut vector, queue, |_| false);
        if vector.is_empty() {
            return out;
        }
        out.extend(vector.copy_out(usize::MAX));
    }
}

/// Answers with `bytes`, in chunks; what was answered, and what broke.
fn answer(
    client: &mut ClientStream,
    mut bytes: &[u8],
    chunk: usize,
) -> (Vec<(usize, Answer)>, Option<Broken>) {
    let mut answers = Vec::new();
    while !bytes.is_empty() {
        let mut vector = Vector::default();
        client.receive_into(&mut vector);
        assert!(!vector.is_empty(), "an end must be noticed");
        let count = vector.store(&bytes[..chunk.min(bytes.len())]);
        bytes = &bytes[count..];
        let push = |request: Request, answer| answers.push((request.index, answer));
        if let Err(broken) = client.received(&vector, count, push) {
            return (answers, Some(broken));
        }
    }
    (answers, None)
}

fn reads(memory: &Arc<Region>, count: usize, len: usize) -> VecDeque<Request> {
    (0..count)
        .map(|index| request(index, Action::Read(slice(memory, index * len, len)), 0))
        .collect()
}

fn writes(memory: &Arc<Region>, count: usize, len: usize) -> VecDeque<Request> {
    (0..count)
        .map(|index| request(index, Action::Write(slice(memory, index * len, len)), 100 + index))
        .collect()
}

#[test]
fn the_window_bounds_requests_and_bytes_and_opens_with_the_answers() {
    let memory = local(LANE_WINDOW_REQUESTS * 4);
    let mut client = ClientStream::new(Version::V2, false);
    let mut queue = reads(&memory, LANE_WINDOW_REQUESTS + 10, 1);
    assert_eq!(send_all(&mut client, &mut queue).len(), LANE_WINDOW_REQUESTS * HEADER_BYTES);
    let one = [&Status::Ok.encode()[..], b"x"].concat();
    assert_eq!(answer(&mut client, &one.repeat(3), 5).0.len(), 3);
    assert_eq!(send_all(&mut client, &mut queue).len(), 3 * HEADER_BYTES);

    let memory = local(LANE_WINDOW_BYTES + (1 << 20));
    let mut client = ClientStream::new(Version::V2, false);
    let mut queue = reads(&memory, LANE_WINDOW_BYTES / (1 << 20) + 1, 1 << 20);
    send_all(&mut client, &mut queue);
    assert_eq!((queue.len(), client.numbered().count()), (1, LANE_WINDOW_BYTES >> 20));
    // A request larger than the window passes alone.
    let mut client = ClientStream::new(Version::V2, false);
    let mut queue: VecDeque<_> =
        [request(0, Action::Read(slice(&memory, 0, memory.len())), 0)].into();
    assert_eq!(send_all(&mut client, &mut queue).len(), HEADER_BYTES);
}

#[test]
fn version_1_proves_its_writes_by_one_byte_behind_them() {
    let memory = local(100);
    let mut client = ClientStream::new(Version::V1, false);
    let mut queue = writes(&memory, 3, 10);
    let sent = send_all(&mut client, &mut queue);
    assert_eq!(sent.len(), 3 * (HEADER_BYTES + 10) + HEADER_BYTES);
    let proof: &[u8; HEADER_BYTES] = sent.last_chunk().unwrap();
    let proof = Header::decode(proof).unwrap();
    assert_eq!((proof.len, proof.addr, proof.version), (1, 102, Version::V1));
    assert_eq!(client.numbered().count(), 3, "the proof is nobody's request");
    let (answers, broken) = answer(&mut client, b"x", 1);
    assert_eq!((answers.len(), broken), (3, None));
    assert!(!client.has_unanswered());

    // A READ behind the WRITEs is proof enough.
    let mut queue = writes(&memory, 2, 10);
    queue.extend(reads(&memory, 1, 10));
    assert_eq!(send_all(&mut client, &mut queue).len(), 3 * HEADER_BYTES + 20);
    assert_eq!(answer(&mut client, b"0123456789", 3).0.len(), 3);
    assert_eq!(bytes_of(&slice(&memory, 0, 10)), b"0123456789");
}

#[test]
fn a_careful_lane_has_one_request_under_way() {
    let memory = local(100);
    let mut client = ClientStream::new(Version::V1, true);
    let mut queue = writes(&memory, 3, 10);
    send_all(&mut client, &mut queue);
    assert_eq!((client.numbered().count(), queue.len()), (1, 2));
}

#[test]
fn what_nobody_wants_any_more_is_not_sent() {
    let memory = local(100);
    let mut client = ClientStream::new(Version::V2, false);
    let mut queue = writes(&memory, 5, 10);
    let mut vector = Vector::default();
    let dropped = client.send_into(&mut vector, &mut queue, |request| request.index % 2 == 0);
    assert_eq!(dropped.iter().map(|request| request.index).collect::<Vec<_>>(), [0, 2, 4]);
    assert_eq!(vector.len(), 2 * (HEADER_BYTES + 10));
}

#[test]
fn bytes_that_nobody_asked_for_break_the_connection() {
    for version in [Version::V1, Version::V2] {
        let mut client = ClientStream::new(version, false);
        assert_eq!(answer(&mut client, &Status::Ok.encode(), 8), (vec![], Some(Broken::Unasked)));
        let memory = local(10);
        let mut client = ClientStream::new(version, false);
        send_all(&mut client, &mut reads(&memory, 1, 4));
        let status = if version == Version::V2 { Status::Ok.encode().to_vec() } else { vec![] };
        let (answers, broken) = answer(&mut client, &[&status[..], b"datamore"].concat(), 100);
        assert_eq!((answers, broken), (vec![(0, Answer::Done)], Some(Broken::Unasked)));
        assert_eq!(bytes_of(&slice(&memory, 0, 4)), b"data");
    }
}

#[test]
fn answers_that_are_no_status_break_the_connection() {
    let memory = local(100);
    for chunk in [1, 3, 100] {
        let mut client = ClientStream::new(Version::V2, false);
        send_all(&mut client, &mut writes(&memory, 2, 10));
        let bytes = [&Status::Ok.encode()[..], b"GARBAGE!"].concat();
        let (answers, broken) = answer(&mut client, &bytes, chunk);
        assert_eq!((answers, broken), (vec![(0, Answer::Done)], Some(Broken::NotAStatus)));
        assert_eq!(client.numbered().count(), 1);
    }
    let mut client = ClientStream::new(Version::V2, false);
    send_all(&mut client, &mut reads(&memory, 2, 10));
    let (answers, broken) = answer(&mut client, &Status::Other(9).encode(), 8);
    assert_eq!((answers, broken), (vec![(0, Answer::Failed(9))], Some(Broken::Rejected)));
}

/// Busy is an answer to events. A server that gives it to a READ may or may not send data behind
/// it: nothing that follows can be told apart.
#[test]
fn busy_ends_a_connection_unless_it_answers_an_event() {
    let memory = local(100);
    let mut client = ClientStream::new(Version::V2, false);
    send_all(&mut client, &mut reads(&memory, 2, 10));
    let before = bytes_of(&slice(&memory, 0, 20));
    let bytes = [&Status::Busy.encode()[..], b"0123456789"].concat();
    let (answers, broken) = answer(&mut client, &bytes, STATUS_BYTES + 10);
    assert_eq!((answers, broken), (vec![(0, Answer::Failed(2))], Some(Broken::Rejected)));
    assert_eq!(bytes_of(&slice(&memory, 10, 10)), before[10..]);

    let mut client = ClientStream::new(Version::V2, false);
    let body = event(0).encode();
    let events = [0, 1].map(|index| request(index, Action::Event(body.clone().into()), 0));
    let sent = send_all(&mut client, &mut events.into());
    let header = Header::decode(sent.first_chunk().unwrap()).unwrap();
    assert_eq!((header.verb, header.len), (Verb::Event, body.len() as u64));
    let bytes = [Status::Busy.encode(), Status::Refused.encode()].concat();
    let (answers, broken) = answer(&mut client, &bytes, 3);
    assert_eq!((answers, broken), (vec![(0, Answer::Busy), (1, Answer::Refused)], None));
}

proptest! {
    /// Whatever a server sends: no panic, each request answered at most once, and no byte outside
    /// of what was asked for.
    #[test]
    fn any_answer_is_survived(
        v2: bool,
        kinds in prop::collection::vec((any::<u8>(), 1usize..60), 1..20),
        bytes in prop::collection::vec(prop_oneof![
            3 => Just(Status::Ok.encode().to_vec()),
            1 => Just(Status::Busy.encode().to_vec()),
            1 => Just(Status::Refused.encode().to_vec()),
            3 => prop::collection::vec(any::<u8>(), 1..70),
        ], 0..30),
        chunk in 1usize..200,
    ) {
        let version = if v2 { Version::V2 } else { Version::V1 };
        let (requests, memory, _) = spread(&kinds, version);
        let is_read: Vec<bool> =
            requests.iter().map(|request| matches!(request.action, Action::Read(_))).collect();
        let before = bytes_of(&slice(&memory, 0, memory.len()));
        let mut client = ClientStream::new(version, false);
        send_all(&mut client, &mut requests.into());
        let (answers, broken) = answer(&mut client, &bytes.concat(), chunk);
        let order: Vec<_> = answers.iter().map(|(index, _)| *index).collect();
        prop_assert_eq!(&order, &(0..order.len()).collect::<Vec<_>>());
        if broken.is_none() {
            prop_assert_eq!(client.numbered().count() + order.len(), kinds.len());
        }
        let after = bytes_of(&slice(&memory, 0, memory.len()));
        let mut at = 0;
        for (&(_, len), is_read) in kinds.iter().zip(is_read) {
            prop_assert!(is_read || before[at..][..len] == after[at..][..len]);
            at += len;
        }
    }
}
