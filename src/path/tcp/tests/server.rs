//! A server's stream: the same bytes in any chunks mean the same, and what a peer may not do, it
//! can't.

use kvrail_reactors::vector::Vector;
use proptest::prelude::*;

use crate::limits::{EVENT_MAX_BYTES, RECEIVE_MAX_BYTES, REPLIES_MAX};
use crate::memory::grant::Key;
use crate::memory::{Access, Operation};
use crate::path::tcp::fuzzing::{
    GRANTED, INCARNATION, WINDOWS, WORD, Window, World, expected, feed, holds,
};
use crate::path::tcp::server::ServerStream;
use crate::path::tcp::wire::{
    Event, HEADER_BYTES, Header, LaneName, NAMES_MAX_BYTES, Status, Verb, Version,
};

const LEN: usize = 16 << 10;
const READ: Verb = Verb::Transfer(Operation::Read);
const WRITE: Verb = Verb::Transfer(Operation::Write);

fn header(verb: Verb, version: Version, addr: u64, len: u64) -> Vec<u8> {
    Header { len, addr, verb, version }.encode().to_vec()
}

fn write(version: Version, addr: usize, body: &[u8]) -> Vec<u8> {
    [&header(WRITE, version, addr as u64, body.len() as u64)[..], body].concat()
}

fn event(event: &Event) -> Vec<u8> {
    let body = event.encode();
    [&header(Verb::Event, Version::V2, 0, body.len() as u64)[..], &body].concat()
}

/// A request under a grant of this number, or with its key wrong.
fn granted(is_write: bool, slot: u32, word: u64, at: usize, body: &[u8]) -> Vec<u8> {
    let operation = if is_write { Operation::Write } else { Operation::Read };
    let addr = GRANTED.get(slot as usize).map_or(1_000, |grant| grant.start) + at;
    let header = header(Verb::Granted(operation), Version::V2, addr as u64, body.len() as u64);
    let body = if is_write { body } else { &[] };
    [&header[..], &Key { slot, word }.encode(), body].concat()
}

/// One request as a peer may send it: mostly well-formed, sometimes anything.
fn request() -> impl Strategy<Value = Vec<u8>> {
    let version = prop_oneof![Just(Version::V1), Just(Version::V2)];
    let window = prop::sample::select(&WINDOWS[..3]);
    let span = (version, window, any::<prop::sample::Index>(), any::<prop::sample::Index>());
    let span = span.prop_map(|(version, window, at, len)| {
        let at = at.index(window.len);
        (version, window, window.start + at, len.index((window.len - at).min(1_500)) + 1)
    });
    prop_oneof![
        8 => (span, any::<u8>()).prop_map(|((version, window, addr, len), byte)| {
            if window.access.write && byte % 2 == 0 {
                write(version, addr, &vec![byte; len])
            } else if window.access.read {
                header(READ, version, addr as u64, len as u64)
            } else {
                write(version, addr, &vec![byte; len])
            }
        }),
        2 => (0u64..4, any::<bool>(), prop::collection::vec(any::<u8>(), 0..300))
            .prop_map(|(id, has_message, bytes)| event(&Event {
                count: (id < 3).then_some((id, 1)),
                message: has_message.then(|| ("peer".to_owned(), bytes)),
            })),
        3 => (0u32..4, 0usize..300, 1usize..300, any::<u8>()).prop_map(|parts| {
            let (slot, at, len, byte) = parts;
            granted(byte % 2 == 0, slot, WORD + u64::from(byte > 240), at, &vec![byte; len])
        }),
        1 => prop::sample::select(vec![&b"peer"[..], b"", b"\xff", &[b'x'; NAMES_MAX_BYTES]])
            .prop_map(|engine| {
                let body = [&LaneName::new().to_bytes()[..], engine].concat();
                let len = body.len() as u64;
                [&header(Verb::Name, Version::V2, INCARNATION, len)[..], &body].concat()
            }),
        1 => prop::collection::vec(any::<u8>(), 0..60),
        1 => (any::<u64>(), 0u64..20_000, 0u64..6_000, any::<u8>()).prop_map(|parts| {
            let (long, addr, short, opcode) = parts;
            let len = if opcode % 2 == 0 { long } else { short };
            let mut bytes = header(READ, Version::V1, addr, len);
            bytes[16] = opcode;
            bytes
        }),
    ]
}

fn chunks() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(prop_oneof![0usize..30, 0usize..3_000], 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_chunks_give_the_same_replies_and_memory(
        requests in prop::collection::vec(request(), 0..40), chunks in chunks(),
    ) {
        holds(LEN, &WINDOWS, &requests.concat(), &chunks);
    }

    #[test]
    fn any_bytes_change_nothing_that_is_not_permitted(
        input in prop::collection::vec(any::<u8>(), 0..2_000), chunks in chunks(),
    ) {
        holds(LEN, &WINDOWS, &input, &chunks);
    }
}

/// What is refused in both versions: closed without a word, or with a status; and what is behind
/// it is not carried out.
#[test]
fn ranges_that_are_not_permitted_are_refused() {
    let cases = [
        (READ, 0, 1),
        (READ, 999, 2),
        (READ, 1_000, 5_001),
        (READ, 5_999, 2),
        (READ, 6_001, 0),
        (READ, 8_192, 1),
        (WRITE, 6_001, 1),
        (WRITE, 1_000, 0),
        (WRITE, 8_192, 4_097),
        (WRITE, 13_000, 1),
        (READ, 13_000, 1),
        (READ, 1_000, u64::MAX),
        (WRITE, 1_000, u64::MAX - 999),
        (WRITE, u64::MAX, 1),
        (READ, u64::MAX, u64::MAX),
        (WRITE, u64::MAX - 4_095, 4_096),
        (READ, 1 << 63, 1 << 63),
    ];
    for (verb, addr, len) in cases {
        for (version, answer) in
            [(Version::V1, vec![]), (Version::V2, Status::Refused.encode().into())]
        {
            let mut world = World::new(LEN, &WINDOWS);
            let before = world.contents();
            let mut stream = ServerStream::default();
            let behind = write(Version::V2, 1_000, b"never stored");
            let input = [header(verb, version, addr, len), behind].concat();
            let replies = feed(&mut stream, &mut world, &input, &[]);
            assert_eq!(replies, answer, "{verb:?} {addr} {len}");
            assert!(stream.is_closing() && !stream.has_replies());
            assert!(world.contents() == before);
        }
    }
}

#[test]
fn a_body_longer_than_a_receive_is_stored_whole_with_what_follows() {
    let len = 2 * RECEIVE_MAX_BYTES + 12_345;
    let windows = [Window { start: 4_096, len, access: Access::READ_WRITE }];
    let body: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
    let input = [
        write(Version::V2, 4_096, &body),
        header(READ, Version::V2, 4_096, 10),
        write(Version::V1, 4_097, b"behind"),
    ]
    .concat();
    for chunks in [&[usize::MAX][..], &[1 << 20, 17], &[300_000]] {
        holds(len + 8_192, &windows, &input, chunks);
    }
}

#[test]
fn a_peer_that_does_not_read_is_not_read_from() {
    let mut world = World::new(LEN, &WINDOWS);
    let mut stream = ServerStream::default();
    let request = header(READ, Version::V2, 6_001, 10);
    let mut fed = 0;
    loop {
        let mut vector = Vector::default();
        stream.receive_into(&mut vector);
        if vector.is_empty() {
            break;
        }
        let count = vector.store(&request.repeat(4_096)[fed % HEADER_BYTES..]);
        fed += count;
        stream.received(&vector, count, &mut world);
        assert!(fed < 1 << 20, "it reads on");
    }
    assert!(stream.waiting_replies() >= REPLIES_MAX && stream.is_mid_request());
    let mut rest = request.repeat(4_096);
    rest.drain(..fed % HEADER_BYTES);
    rest.truncate(rest.len() - 5 * HEADER_BYTES);
    let requests = (fed + rest.len()) / HEADER_BYTES;
    let replies = feed(&mut stream, &mut world, &rest, &[]);
    assert_eq!(replies.len(), requests * 18);
    assert!(!stream.is_closing() && !stream.is_mid_request());
}

#[test]
fn events_that_are_wrong_are_answered_and_oversized_ones_end_the_connection() {
    let ok = event(&Event { count: None, message: Some(("p".into(), b"m".to_vec())) });
    let bad = [header(Verb::Event, Version::V2, 0, 5), vec![7; 5]].concat();
    let busy = event(&Event { count: Some((1, 1)), message: None });
    let unknown = event(&Event { count: Some((0, 1)), message: None });
    holds(LEN, &WINDOWS, &[&ok[..], &bad, &busy, &unknown, &ok].concat(), &[3, 40]);
    for len in [0, EVENT_MAX_BYTES + 1, u64::MAX] {
        let world = World::new(LEN, &WINDOWS);
        let input = [&ok[..], &header(Verb::Event, Version::V2, 0, len), &ok].concat();
        let expected = expected(&world, &input);
        assert!(expected.closes && expected.replies.len() == 16 && expected.events.len() == 1);
        holds(LEN, &WINDOWS, &input, &[100]);
    }
}

#[test]
fn an_end_behind_whole_requests_leaves_their_answers() {
    let mut world = World::new(LEN, &WINDOWS);
    let mut stream = ServerStream::default();
    let input =
        [write(Version::V1, 1_000, b"stored"), header(READ, Version::V2, 6_001, 10)].concat();
    let mut vector = Vector::default();
    let mut at = 0;
    while at < input.len() {
        vector.clear();
        stream.receive_into(&mut vector);
        let count = vector.store(&input[at..]);
        stream.received(&vector, count, &mut world);
        at += count;
    }
    stream.close();
    assert!(stream.has_replies(), "the answers are still owed");
    vector.clear();
    stream.send_into(&mut vector);
    assert_eq!(vector.len(), 18);
    assert!(!stream.has_replies() && stream.is_closing());
    assert_eq!(world.contents()[1_000..1_006], *b"stored");
    vector.clear();
    stream.receive_into(&mut vector);
    assert!(vector.is_empty(), "nothing more is read");
}
