//! A server's bodies for a GPU: in whatever chunks they come, with blocks to land in and without.

use std::sync::Arc;

use kvrail_reactors::cuda::fake::Fake;
use kvrail_reactors::cuda::{DeviceMemory, Driver, Landing};
use kvrail_reactors::region::{Region as Inner, Slice};
use kvrail_reactors::vector::Vector;
use proptest::prelude::*;

use crate::auth::{Pass, Seal, Visitor};
use crate::limits::REPLIES_MAX;
use crate::memory::grant::{Denied, Granting, Grants, Key, Use};
use crate::memory::{Access, Location, Operation, Region, Regions, RegionsView};
use crate::path::asking::Asking;
use crate::path::served::{Served, Service};
use crate::path::tcp::server::ServerStream;
use crate::path::tcp::wire::{Event, Header, LaneName, Status, Verb, Version};

const LEN: usize = 4 << 20;

/// A GPU's region, and what its engine is asked for.
struct Host {
    fake: Arc<Fake>,
    memory: Slice,
    region: Region,
    grants: Arc<Grants>,
    service: Service,
    stream: ServerStream,
    /// The first byte of the memory whenever an event was told.
    seen: Vec<u8>,
}

impl Host {
    fn new() -> Self {
        let fake = Arc::new(Fake::new(1, 64 << 20));
        let memory = DeviceMemory::allocate(fake.clone(), 0, LEN).unwrap();
        let region = Inner::on_device(memory, LEN).unwrap();
        let region = Region::new(region, Access::READ_WRITE, Location::Cuda(0));
        let memory = Slice::new(region.memory().clone(), 0, LEN).unwrap();
        let regions = Arc::new(Regions::default());
        regions.insert(region.clone()).unwrap();
        let grants = Arc::new(Grants::new(None));
        let view = RegionsView::new(regions);
        let service = Service::new(view, grants.clone(), Arc::default(), 1);
        let (stream, seen) = (ServerStream::default(), Vec::new());
        Self { fake, memory, region, grants, service, stream, seen }
    }

    fn write(&self, version: Version, at: usize, body: &[u8]) -> Vec<u8> {
        let (verb, addr) = (Verb::Transfer(Operation::Write), self.memory.addr() + at as u64);
        let header = Header { len: body.len() as u64, addr, verb, version }.encode();
        [&header[..], body].concat()
    }

    /// Feeds it chunk by chunk, with blocks where they are lent; what it answers.
    fn feed(&mut self, mut input: &[u8], chunk: usize, lends: bool) -> Vec<u8> {
        let mut answer = Vec::new();
        loop {
            let (count, sent) = self.turn(&mut input, chunk, lends);
            if count == 0 && sent.is_empty() {
                return answer;
            }
            answer.extend(sent);
        }
    }

    /// One receive of at most so much, and one send; bytes received, and those sent.
    fn turn(&mut self, input: &mut &[u8], chunk: usize, lends: bool) -> (usize, Vec<u8>) {
        let mut stream = std::mem::take(&mut self.stream);
        match lends {
            true => stream.lend(self.service.landing()),
            // As where no block is left.
            false => stream.land(self.service.landing()),
        }
        let mut vector = Vector::default();
        stream.receive_into(&mut vector);
        let count = vector.store(&input[..input.len().min(chunk)]);
        *input = &input[count..];
        stream.received(&vector, count, self);
        if count == 0 {
            // The socket has no more.
            stream.land(self.service.landing());
        }
        vector.clear();
        stream.send_into(&mut vector);
        let sent = vector.copy_out(usize::MAX);
        stream.sent(self);
        self.stream = stream;
        (count, sent)
    }

    fn contents(&self) -> Vec<u8> {
        let mut bytes = vec![0; LEN];
        self.memory.read(0, &mut bytes).unwrap();
        bytes
    }
}

impl Served for Host {
    fn find(
        &mut self,
        asking: &Asking<'_>,
        addr: u64,
        len: u64,
        operation: Operation,
    ) -> Option<Slice> {
        self.service.find(asking, addr, len, operation)
    }

    fn find_granted(
        &mut self,
        asking: &Asking<'_>,
        key: Key,
        addr: u64,
        len: u64,
        operation: Operation,
    ) -> Result<(Slice, Use), Denied> {
        self.service.find_granted(asking, key, addr, len, operation)
    }

    fn find_all(
        &mut self,
        asking: &Asking<'_>,
        key: Option<Key>,
        addr: u64,
        len: u64,
        operation: Operation,
    ) -> Option<(Slice, Option<Use>)> {
        self.service.find_all(asking, key, addr, len, operation)
    }

    fn took_all(&mut self, asking: &Asking<'_>, bytes: u64, operation: Operation) {
        self.service.took_all(asking, bytes, operation);
    }

    fn event(&mut self, _: &Asking<'_>, _: Event) -> Status {
        let mut first = [0];
        self.memory.read(0, &mut first).unwrap();
        self.seen.extend(first);
        Status::Ok
    }

    fn is_process(&self, incarnation: u64) -> bool {
        self.service.is_process(incarnation)
    }

    fn admit(&mut self, pass: &Pass, lane: LaneName) -> Option<(Visitor, Option<Seal>)> {
        self.service.admit(pass, lane)
    }

    fn landing(&mut self) -> &mut Landing {
        self.service.landing()
    }
}

fn statuses(count: usize, status: Status) -> Vec<u8> {
    status.encode().repeat(count)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Later bodies stand over earlier ones, wherever the chunks are cut.
    #[test]
    fn every_body_gets_to_its_place_in_its_turn(
        writes in prop::collection::vec((0..40_000usize, 1..30_000usize, any::<u8>()), 1..30),
        chunk in prop_oneof![1..100usize, 1_000..200_000usize, Just(usize::MAX)],
        lends: bool,
    ) {
        let mut host = Host::new();
        let (mut input, mut wanted) = (Vec::new(), vec![0; LEN]);
        let mut answers = 0;
        for (at, len, byte) in writes {
            let version = if byte % 3 == 0 { Version::V1 } else { Version::V2 };
            answers += usize::from(version == Version::V2);
            input.extend(host.write(version, at, &vec![byte; len]));
            wanted[at..][..len].fill(byte);
        }
        let answer = host.feed(&input, chunk, lends);
        prop_assert_eq!(answer, statuses(answers, Status::Ok));
        prop_assert!(host.contents() == wanted);
    }
}

#[test]
fn all_of_a_receive_is_one_launch() {
    let mut host = Host::new();
    let (count, len) = (300, 12 << 10);
    let write =
        |host: &Host, k: usize| host.write(Version::V2, k * len, &vec![(k % 251) as u8; len]);
    let input: Vec<u8> = (0..count).flat_map(|k| write(&host, k)).collect();
    assert_eq!(host.feed(&input, usize::MAX, true), statuses(count, Status::Ok));
    let launches = host.fake.launches();
    assert!(launches <= 5, "{launches} launches for 3.6 MiB in receives of 1 MiB");
    assert!(
        host.contents()
            .chunks(len)
            .take(count)
            .enumerate()
            .all(|(k, page)| page[7] == (k % 251) as u8)
    );
}

/// As a socket brings them that is read faster than the peer fills it.
#[test]
fn what_comes_in_pieces_shares_launches_up_to_a_bound() {
    let mut host = Host::new();
    let (len, chunk) = (3 << 20, 100_000);
    let input = host.write(Version::V2, 0, &vec![3; len]);
    assert_eq!(host.feed(&input, chunk, true), statuses(1, Status::Ok));
    let (launches, receives) = (host.fake.launches(), len.div_ceil(chunk));
    assert!(launches >= 4, "{launches} launches: a block's worth waits at most");
    assert!(launches <= receives.div_ceil(4) + 1, "{launches} launches of {receives} receives");
    assert!(host.contents()[..len].iter().all(|byte| *byte == 3));
}

/// A peer whose window is full waits for answers, and the socket never has nothing.
#[test]
fn early_bodies_are_acknowledged_while_later_ones_come() {
    let mut host = Host::new();
    let (count, len) = (12, 256 << 10);
    let write = |k: usize| host.write(Version::V2, k * len, &vec![1 + k as u8; len]);
    let input: Vec<u8> = (0..count).flat_map(write).collect();
    let (mut rest, mut answered) = (&input[..], 0);
    while !rest.is_empty() {
        let (_, sent) = host.turn(&mut rest, usize::MAX, true);
        answered += sent.len() / Status::Ok.encode().len();
        let contents = host.contents();
        let is_there = |k: usize| contents[k * len..][..len].iter().all(|b| *b == 1 + k as u8);
        assert!((0..answered).all(is_there), "what is acknowledged is in its place");
    }
    assert!((1..count).contains(&answered), "{answered} were answered before the end");
    assert_eq!(host.feed(&[], 1, true), statuses(count - answered, Status::Ok));
}

#[test]
fn a_block_with_more_requests_than_may_wait_is_put_off() {
    let mut host = Host::new();
    let count = 3 * REPLIES_MAX;
    let write = |host: &Host, k: usize| host.write(Version::V2, 64 * k, &[k as u8; 64]);
    let mut input = host.write(Version::V2, LEN / 2, &vec![1; 4096]);
    input.extend((0..count).flat_map(|k| write(&host, k)));
    assert_eq!(host.feed(&input, usize::MAX, true), statuses(1 + count, Status::Ok));
    assert!(host.contents().chunks(64).take(count).enumerate().all(|(k, page)| page[9] == k as u8));
}

#[test]
fn an_event_is_told_when_what_came_before_it_is_in_its_place() {
    for lends in [true, false] {
        let mut host = Host::new();
        let mut input = host.write(Version::V2, 4096, &[1; 4096]);
        for byte in [7, 8] {
            input.extend(host.write(Version::V2, 0, &[byte; 4096]));
            let event = Event { count: Some((3, 1)), message: None }.encode();
            let (verb, version) = (Verb::Event, Version::V2);
            input.extend(Header { len: event.len() as u64, addr: 0, verb, version }.encode());
            input.extend(event);
        }
        assert_eq!(host.feed(&input, usize::MAX, lends), statuses(5, Status::Ok));
        assert_eq!(host.seen, [7, 8]);
    }
}

/// Nobody knows which of them are in place, so none is said to be; the connection goes on.
#[test]
fn a_gpu_that_fails_refuses_what_it_did_not_take() {
    for lends in [true, false] {
        let mut host = Host::new();
        let write = |host: &Host, k: usize| host.write(Version::V2, k * 4096, &[1; 4096]);
        let input: Vec<u8> = (0..20).flat_map(|k| write(&host, k)).collect();
        host.fake.break_with(|faults| faults.no_launch = true);
        let answer = host.feed(&input, 30_000, lends);
        // Without a block the socket stores the first body itself.
        let first = if lends { Status::Refused } else { Status::Ok };
        let wanted = [statuses(1, first), statuses(19, Status::Refused)].concat();
        assert_eq!(answer, wanted, "lends: {lends}");
        host.fake.break_with(|faults| faults.no_launch = false);
        assert_eq!(host.feed(&input, 30_000, lends), statuses(20, Status::Ok));
        assert!(!host.stream.is_closing());
    }
}

/// The launch that fails is waited for when the next is to begin, and when all of it has come.
#[test]
fn a_launch_that_fails_while_more_comes_refuses_what_it_and_the_next_bring() {
    let mut host = Host::new();
    let (count, len) = (12, 300_000);
    let write = |k: usize| host.write(Version::V2, k * len, &vec![1; len]);
    let input: Vec<u8> = (0..count).flat_map(write).collect();
    let mut rest = &input[..];
    while rest.len() > input.len() / 2 {
        host.turn(&mut rest, usize::MAX, true);
    }
    host.fake.break_with(|faults| faults.is_lost = true);
    let answer = host.feed(rest, usize::MAX, true);
    assert!(answer.ends_with(&statuses(3, Status::Refused)), "{answer:?}");
    assert!(!host.stream.is_landing() && !host.stream.is_closing());
}

/// Stale means that nothing more is stored.
#[test]
fn what_a_grant_let_in_is_in_its_place_before_its_end_is_told() {
    let mut host = Host::new();
    let (region, range, access) = (&host.region, 0..LEN, Access::READ_WRITE);
    let (holder, expires_ns) = (None, None);
    let granting = Granting { region, range, access, holder, expires_ns, generation: 0 };
    let grant = host.grants.add(granting).unwrap();
    let reference = grant.reference();
    let (verb, version) = (Verb::Granted(Operation::Write), Version::V2);
    let (len, most) = (1 << 20, 700_000);
    let header = Header { len: len as u64, addr: reference.addr(), verb, version }.encode();
    let mut input: &[u8] = &[&header[..], &reference.key.encode(), &vec![7; most]].concat();
    while !input.is_empty() {
        host.turn(&mut input, 100_000, true);
    }
    assert!(host.stream.is_landing() && host.contents()[most - 1] == 0);
    let mut revoked = std::pin::pin!(grant.revoke());
    let mut poll = || futures_lite::future::block_on(futures_lite::future::poll_once(&mut revoked));
    assert!(poll().is_none());
    host.stream.let_body_go(host.service.landing());
    assert!(poll().is_some() && !host.stream.is_landing());
    let contents = host.contents();
    assert!(contents[..most].iter().all(|byte| *byte == 7));
    assert_eq!(host.feed(&vec![1; len - most], usize::MAX, true), Status::Stale.encode());
    assert!(host.contents() == contents);
}

/// Its peers hear of nothing but an end: a READ behind a WRITE would prove that.
#[test]
fn a_version_1_connection_ends_where_a_gpu_fails() {
    let mut host = Host::new();
    host.fake.break_with(|faults| faults.no_launch = true);
    let (addr, verb) = (host.memory.addr(), Verb::Transfer(Operation::Read));
    let proof = Header { len: 1, addr, verb, version: Version::V1 }.encode();
    let input = [&host.write(Version::V1, 0, &[1; 4096])[..], &proof].concat();
    assert!(host.feed(&input, usize::MAX, true).is_empty());
    assert!(host.stream.is_closing());
}

/// Then bodies are copied by themselves.
#[test]
fn bodies_get_to_their_places_where_all_blocks_are_lent() {
    let mut host = Host::new();
    let driver: Arc<dyn Driver> = host.fake.clone();
    let lent: Vec<_> = std::iter::from_fn(|| host.service.landing().lend(&driver)).collect();
    assert!(!lent.is_empty());
    let write = |k: usize| host.write(Version::V2, k * 4096, &[1 + k as u8; 4096]);
    let input: Vec<u8> = (0..20).flat_map(write).collect();
    assert_eq!(host.feed(&input, 30_000, true), statuses(20, Status::Ok));
    assert!(!host.stream.is_landing(), "nobody waits for a launch that never begins");
    let contents = host.contents();
    assert!((0..20).all(|k| contents[k * 4096] == 1 + k as u8));
}
