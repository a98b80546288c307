//! A lane's server and the socket's messages under any input, over real regions: nothing but
//! permitted ranges changes, only to what was offered, and what waits is bounded.

use std::os::fd::AsFd;
use std::sync::Arc;

use kvrail_reactors::doorbell::{Bell, Doorbell};
use kvrail_reactors::host::lane::{self, REQUEST_WORDS, Requester};
use kvrail_reactors::host::view::View;
use kvrail_reactors::region::{Region, Slice};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::entry::{CopyEntry, Entry, ListEntry, ListedCopy, Reply};
use super::message::{ToAsker, ToResponder};
use super::pages::LanePages;
use super::server::LaneServer;
use super::sources::{Means, Offered, PeerRegion};
use crate::auth::Visitor;
use crate::limits::{HOST_COPIES_MAX, HOST_REPLIES_MAX};
use crate::memory::grant::Key;
use crate::path::tcp::fuzzing::{GRANTED, Granted, PEER, WINDOWS, WORD, World};

/// Bytes of the memory with permitted ranges in it.
const WORLD_BYTES: usize = 16 << 10;

/// Bytes of each source.
const SOURCE_BYTES: u64 = 5_000;

/// Bytes of the sources, none of which the memory has elsewhere by chance alone.
const SOURCES: [u8; 2] = [0xA5, 0x5A];

/// See [`crate::fuzzing::host_message`].
pub(crate) fn message(input: &[u8]) {
    again::<ToResponder>(input);
    again::<ToAsker>(input);
}

/// What was read, written and read again is the same.
fn again<M: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(input: &[u8]) {
    let Ok(read) = serde_json::from_slice::<M>(input) else { return };
    let written = serde_json::to_vec(&read).expect("a message is always JSON");
    assert_eq!(serde_json::from_slice::<M>(&written).expect("what we wrote"), read);
}

/// See [`crate::fuzzing::host_lane`].
pub(crate) fn lane(mut input: &[u8]) {
    let mut world = World::new(WORLD_BYTES, &WINDOWS);
    let before = world.contents();
    let mut rig = Rig::new();
    while let Some((&order, rest)) = input.split_first() {
        input = rest;
        let is_open = match order % 8 {
            6 => rig.poll(&mut world),
            7 => rig.take(usize::from(order / 8)),
            kind => {
                let words = words(kind, order, &mut input);
                rig.send(&words) || (rig.poll(&mut world) && rig.send(&words))
            }
        };
        if !is_open {
            break;
        }
    }
    // An honest end: everything is worked off and taken.
    for _ in 0..4 * lane::RING_MESSAGES {
        if !rig.poll(&mut world) || !rig.take(usize::MAX) {
            break;
        }
    }
    rig.server.close();
    changed_as_permitted(&before, &world.contents());
}

fn changed_as_permitted(before: &[u8], after: &[u8]) {
    for (at, (old, new)) in before.iter().zip(after).enumerate() {
        let holds = |window: &&crate::path::tcp::fuzzing::Window| {
            (window.start..window.start + window.len).contains(&at)
        };
        let granted = |grant: &&Granted| {
            let is_in = (grant.start..grant.start + grant.len).contains(&at);
            is_in && grant.holds && grant.access.write
        };
        let may = WINDOWS.iter().find(holds).is_some_and(|window| window.access.write)
            || GRANTED.iter().any(|grant| granted(&grant));
        assert!(old == new || may && SOURCES.contains(new), "byte {at}: {old} became {new}");
    }
}

/// A request: of the server's own vocabulary with small numbers mostly, or any words.
fn words(kind: u8, order: u8, input: &mut &[u8]) -> [u64; REQUEST_WORDS] {
    let mut next = || {
        let (&first, rest) = input.split_first().unwrap_or((&0, &[]));
        *input = rest;
        u64::from(first)
    };
    let part = next() % 4;
    match kind {
        0 | 1 => {
            let (source, last) = (next() % 4, kind == 1);
            let (offset, addr, len) = (next() << 5, next() << 6 | next(), next() << 4 | next());
            let key = match next() {
                0..0x80 => None,
                byte => Some(Key { slot: (byte % 4) as u32, word: WORD + (byte >> 6 & 1) }),
            };
            Entry::Copy(CopyEntry { part, last, source, offset, addr, len, key }).encode()
        }
        2 if order & 0x40 == 0 => Entry::Cancel { part }.encode(),
        2 => {
            let (source, last, count) = (next() % 4, order & 0x80 != 0, (next() % 24) as u32);
            let (offset, addr, len) = (next() << 5, next() << 6 | next(), next() as u32 * 4);
            let key = (next() < 0x80).then(|| Key { slot: (next() % 4) as u32, word: WORD });
            let list = ListEntry { part, last, source, offset, addr, len, count, key };
            Entry::List(list).encode()
        }
        3 => Entry::Event { part, len: next() << (order / 64) }.encode(),
        4 if order & 0x40 == 0 => Entry::Body(std::array::from_fn(|_| next() as u8)).encode(),
        4 => {
            let mut copy = || {
                let (from, to) = (next() as u32, next() as u32 * 4);
                ListedCopy { from, to }.to_word()
            };
            Entry::Listed(std::array::from_fn(|_| copy())).encode()
        }
        _ => std::array::from_fn(|_| match next() {
            // Ends of the range, where sums overflow.
            byte @ 0xF0.. => u64::MAX - (byte - 0xF0),
            byte => byte | next() << 8,
        }),
    }
}

/// A server and the asker at its other end.
struct Rig {
    asks: Requester,
    server: LaneServer,
    /// Parts and events that were begun at most, and those that are over.
    begun: usize,
    done: usize,
    /// Copies that were asked for at most.
    copies: u64,
}

impl Rig {
    fn new() -> Self {
        let (fd, mut asks) = lane::create(1).expect("a lane");
        let answers = lane::open(fd, 1).expect("our own").pop().expect("one");
        let doorbell = Arc::new(Doorbell::new().expect("an eventfd"));
        let pages = LanePages::new(doorbell.clone(), 1);
        let bell = doorbell.as_fd().try_clone_to_owned().and_then(Bell::new).expect("our own");
        let offered = Arc::new(Offered::default());
        for (id, byte) in (1..).zip(SOURCES) {
            offered.insert(source(id, byte)).expect("room");
        }
        let (bell, visitor) = (Arc::new(bell), Visitor::anyone(PEER));
        let server = LaneServer::new(answers, bell, offered, (visitor, 0), pages);
        Self { asks: asks.pop().expect("one"), server, begun: 0, done: 0, copies: 0 }
    }

    /// `false` where there is no room.
    fn send(&mut self, words: &[u64; REQUEST_WORDS]) -> bool {
        self.begun += 1;
        self.copies += match Entry::decode(words) {
            Some(Entry::List(list)) => list.count.into(),
            _ => 1,
        };
        self.asks.send([words].into_iter()).is_ok_and(|(sent, _)| sent == 1)
    }

    /// `false` where the lane is over.
    fn poll(&mut self, world: &mut World) -> bool {
        let is_open = self.server.poll(world).is_ok();
        let (parts, flying, replies) = self.server.waiting();
        assert!(parts <= HOST_COPIES_MAX && flying <= HOST_COPIES_MAX, "{parts} {flying}");
        // Each copy fails once at most, and each part ends once.
        assert!(replies <= HOST_REPLIES_MAX + 2 * (HOST_COPIES_MAX + 1), "{replies} replies");
        is_open
    }

    /// Takes replies, as many as the asker cares for.
    fn take(&mut self, count: usize) -> bool {
        for _ in 0..count {
            let Some(words) = self.asks.receive().expect("our own server") else { break };
            match Reply::decode(&words).expect("our own server") {
                Reply::Failed { index, count, .. } => {
                    assert!(index + u64::from(count) <= self.copies);
                }
                Reply::Done { ended, .. } => {
                    self.done += 1;
                    assert!(ended <= self.copies);
                }
            }
        }
        assert!(self.done <= self.begun, "a part is over once");
        true
    }
}

fn source(id: u64, byte: u8) -> PeerRegion {
    let memory = Arc::new(Region::allocate(SOURCE_BYTES as usize, None).expect("memory"));
    let view = View::map(memory.memfd().expect("a memfd"), SOURCE_BYTES as usize).expect("sealed");
    let all = Slice::new(memory, 0, SOURCE_BYTES as usize).expect("all of it");
    all.write(0, &[byte; SOURCE_BYTES as usize]).expect("all of it");
    PeerRegion { id, addr: 1 << 40, len: SOURCE_BYTES, means: Means::Mapped(Arc::new(view)) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn any_requests_of_a_lane_change_what_they_may(
            input in proptest::collection::vec(any::<u8>(), 0..4_000)
        ) {
            super::lane(&input);
        }
    }
}
