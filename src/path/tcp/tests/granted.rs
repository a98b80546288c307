//! Requests under grants: what is denied keeps its place in the stream and moves nothing, and what
//! is taken back in the middle is let go of at once and told.

use std::sync::Arc;

use kvrail_reactors::region::{Region as Memory, Slice};
use kvrail_reactors::vector::Vector;
use proptest::prelude::*;

use super::duet::Duet;
use super::{request, slice};
use crate::limits::{GRANTED_MAX_BYTES, SMALL_REQUEST_BYTES};
use crate::memory::grant::{Granting, Grants, Key};
use crate::memory::{
    Access, Grant, Operation, Reference, Region, Regions, RegionsView, tests::region,
};
use crate::path::served::{Served, Service};
use crate::path::tcp::client::{Action, Answer};
use crate::path::tcp::fuzzing::{GRANTED, WINDOWS, WORD, World};
use crate::path::tcp::server::ServerStream;
use crate::path::tcp::wire::{Header, STATUS_BYTES, Status, Verb, Version};

const LEN: usize = 16 << 10;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn what_is_denied_moves_nothing_and_the_connection_goes_on(
        asked in prop::collection::vec((0u32..5, any::<bool>(), 0usize..480, 1usize..20), 1..60),
        strike_after in 0usize..300,
        script in prop::collection::vec((0u8..4, 1usize..400), 0..300),
    ) {
        let memory = Arc::new(Memory::allocate(LEN, None).unwrap());
        slice(&memory, 0, LEN).write(0, &[0xCC; LEN]).unwrap();
        let world = World::new(LEN, &WINDOWS);
        let before = world.contents();
        let requests = asked.iter().enumerate().map(|(index, &(slot, is_write, at, len))| {
            let own = slice(&memory, index * 20, len);
            let action = if is_write { Action::Write(own) } else { Action::Read(own) };
            let start = GRANTED.get(slot as usize).map_or(1_000, |grant| grant.start);
            // Slot 4 is of no grant; nothing of it is permitted, whatever the region permits.
            let mut request = request(index, action, start + at);
            request.key = Some(Key { slot, word: WORD });
            request
        });
        let mut duet = Duet::new(Version::V2, false, world, requests.collect());
        for (turn, (which, chunk)) in script.into_iter().enumerate() {
            if turn == strike_after {
                duet.world.strike(0);
            }
            duet.step(which, chunk);
        }
        duet.finish();
        prop_assert_eq!(duet.broken, None);
        prop_assert!(!duet.client.has_unanswered() && !duet.server.is_mid_request());
        let answered: Vec<_> = duet.answers.iter().map(|(index, _)| *index).collect();
        prop_assert_eq!(answered, (0..asked.len()).collect::<Vec<_>>());
        for ((_, answer), &(slot, _, at, len)) in duet.answers.iter().zip(&asked) {
            match slot {
                0 if at + len <= 500 => {
                    let is_over = *answer == Answer::Stale && duet.world.is_struck(0);
                    prop_assert!(*answer == Answer::Done || is_over, "{answer:?}");
                }
                0 => prop_assert!(matches!(answer, Answer::Refused | Answer::Stale)),
                // It is granted to a peer of another name.
                1 => prop_assert_eq!(*answer, Answer::Refused),
                _ => prop_assert_eq!(*answer, Answer::Stale),
            }
        }
        for (at, (old, new)) in before.iter().zip(duet.world.contents()).enumerate() {
            let may = (GRANTED[0].start..GRANTED[0].start + 500).contains(&at) && new == 0xCC;
            prop_assert!(*old == new || may, "byte {at}: {old} became {new}");
        }
    }
}

/// An engine's side: a region of which a part is granted.
struct Rig {
    region: Region,
    grants: Arc<Grants>,
    service: Service,
}

impl Rig {
    fn new(len: usize) -> Self {
        let (regions, grants) = (Arc::new(Regions::default()), Arc::new(Grants::new(None)));
        let region = region(len);
        regions.insert(region.clone()).unwrap();
        let view = RegionsView::new(regions);
        let service = Service::new(view, grants.clone(), Arc::default(), 1);
        Self { region, grants, service }
    }

    fn grant(&self) -> Grant {
        let (region, range) = (&self.region, 0..self.region.len());
        let (access, holder, expires_ns) = (Access::READ_WRITE, None, None);
        let granting = Granting { region, range, access, holder, expires_ns, generation: 0 };
        self.grants.add(granting).unwrap()
    }

    fn contents(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.region.len()];
        let all = Slice::new(self.region.memory().clone(), 0, bytes.len()).unwrap();
        all.read(0, &mut bytes).unwrap();
        bytes
    }

    /// Feeds what the stream wants of `bytes`, once; how many it took.
    fn feed(&mut self, stream: &mut ServerStream, bytes: &[u8]) -> usize {
        let mut vector = Vector::default();
        stream.receive_into(&mut vector);
        let count = vector.store(bytes);
        stream.received(&vector, count, &mut self.service);
        count
    }

    fn feed_all(&mut self, stream: &mut ServerStream, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let count = self.feed(stream, bytes);
            assert!(count > 0, "it reads on");
            bytes = &bytes[count..];
        }
    }

    /// Sends what there is; the bytes.
    fn drain(&mut self, stream: &mut ServerStream) -> Vec<u8> {
        let mut sent = Vec::new();
        loop {
            let mut vector = Vector::default();
            stream.send_into(&mut vector);
            if vector.is_empty() {
                return sent;
            }
            sent.extend(vector.copy_out(usize::MAX));
            stream.sent(&mut self.service);
        }
    }
}

fn ask(operation: Operation, reference: &Reference, len: u64) -> Vec<u8> {
    let (addr, verb, version) = (reference.addr(), Verb::Granted(operation), Version::V2);
    let header = Header { len, addr, verb, version }.encode();
    [&header[..], &reference.key.encode()].concat()
}

#[test]
fn a_body_under_way_ends_in_the_sink() {
    let len = 1 << 20;
    let mut rig = Rig::new(len);
    let (grant, mut stream) = (rig.grant(), ServerStream::default());
    let reference = grant.reference();
    rig.feed_all(&mut stream, &ask(Operation::Write, &reference, len as u64));
    rig.feed_all(&mut stream, &vec![1; len / 2]);
    let mut revoked = std::pin::pin!(grant.revoke());
    let is_over = |future: std::pin::Pin<&mut _>| {
        futures_lite::future::block_on(futures_lite::future::poll_once(future)).is_some()
    };
    assert!(!is_over(revoked.as_mut()) && stream.stores_struck());
    // The receive under way comes back with some bytes more.
    rig.feed(&mut stream, &[1; 1_000]);
    stream.let_body_go(rig.service.landing());
    assert!(is_over(revoked.as_mut()) && !stream.stores_struck());
    let before = rig.contents();
    rig.feed_all(&mut stream, &vec![2; len / 2 - 1_000]);
    assert!(rig.contents() == before && !before.contains(&2));
    assert_eq!(rig.drain(&mut stream), Status::Stale.encode());
    // The connection goes on.
    let again = rig.grant();
    let write = [&ask(Operation::Write, &again.reference(), 3)[..], b"new"].concat();
    rig.feed_all(&mut stream, &write);
    assert_eq!(rig.drain(&mut stream), Status::Ok.encode());
    assert_eq!(rig.contents()[..3], *b"new");
}

#[test]
fn a_read_that_waits_is_let_go_and_one_in_mid_send_ends_stale() {
    let len = GRANTED_MAX_BYTES as usize;
    let mut rig = Rig::new(len);
    let (grant, mut stream) = (rig.grant(), ServerStream::default());
    let asked = ask(Operation::Read, &grant.reference(), GRANTED_MAX_BYTES);
    rig.feed_all(&mut stream, &asked.repeat(2));
    let mut vector = Vector::default();
    stream.send_into(&mut vector);
    assert_eq!(vector.len(), len);
    let mut revoked = std::pin::pin!(grant.revoke());
    let is_over = |future: std::pin::Pin<&mut _>| {
        futures_lite::future::block_on(futures_lite::future::poll_once(future)).is_some()
    };
    assert!(!is_over(revoked.as_mut()) && stream.sends_struck());
    stream.let_replies_go();
    assert!(!is_over(revoked.as_mut()), "the kernel reads still");
    stream.sent(&mut rig.service);
    assert!(is_over(revoked.as_mut()) && !stream.sends_struck());
    let rest = rig.drain(&mut stream);
    assert_eq!(rest[..STATUS_BYTES], Status::Stale.encode());
    assert!(rest[STATUS_BYTES..][..len].iter().all(|&byte| byte == 0));
    assert_eq!(rest[STATUS_BYTES + len..], Status::Stale.encode());
}

#[test]
fn reads_of_any_length_are_whole_and_longer_ones_refused() {
    let len = GRANTED_MAX_BYTES as usize;
    let mut rig = Rig::new(len + 1);
    let grant = rig.grant();
    let bytes: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
    rig.region.lease(0..len).unwrap().copy_in(0, &bytes).unwrap();
    let small = SMALL_REQUEST_BYTES as usize;
    for count in [1, small - 1, small, small + 1, len - 1, len] {
        let mut stream = ServerStream::default();
        let asked = ask(Operation::Read, &grant.reference(), count as u64);
        rig.feed_all(&mut stream, &asked.repeat(3));
        let answer = [&bytes[..count], &Status::Ok.encode()].concat();
        assert!(rig.drain(&mut stream) == answer.repeat(3), "{count}");
    }
    for wrong in [0, GRANTED_MAX_BYTES + 1, u64::MAX] {
        let mut stream = ServerStream::default();
        rig.feed_all(&mut stream, &ask(Operation::Read, &grant.reference(), wrong));
        assert!(stream.is_closing());
        assert_eq!(rig.drain(&mut stream), Status::Refused.encode());
    }
}
