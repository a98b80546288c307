//! What any words in a lane can do: nothing but copy offered memory onto permitted memory. For
//! `fuzz/`, and for tests that replay its corpus.

use std::sync::Arc;

use kvrail_reactors::doorbell::{Bell, Doorbell};
use kvrail_reactors::host::lane::{self, REQUEST_WORDS};
use kvrail_reactors::host::view::View;
use kvrail_reactors::region::{Region, Slice};

use super::entry::Reply;
use super::server::LaneServer;
use super::sources::{Means, Offered, PeerRegion};
use crate::memory::Operation;
use crate::path::served::Served;
use crate::path::tcp::{Event, Status};

/// Bytes of the offered region, and of the permitted one, which has as many on either side.
const BYTES: usize = 4096;
/// Where the permitted region seems to be: inputs can't know a real address.
const ADDR: u64 = 0x1000;
/// The offered region's number and contents.
const SOURCE: (u64, u8) = (1, 7);
/// What all other memory holds.
const UNTOUCHED: u8 = 9;

/// Permitted memory amid some that is not.
struct World {
    arena: Arc<Region>,
}

impl Served for World {
    fn find(&mut self, addr: u64, len: u64, operation: Operation) -> Option<Slice> {
        let offset = usize::try_from(addr.checked_sub(ADDR)?).ok()?;
        let end = offset.checked_add(usize::try_from(len).ok()?)?;
        let is_inside = len > 0 && end <= BYTES && operation == Operation::Write;
        let slice = || Slice::new(self.arena.clone(), BYTES + offset, end - offset).ok();
        is_inside.then(slice).flatten()
    }

    fn event(&mut self, _: Event) -> Status {
        Status::Ok
    }
}

fn filled(bytes: usize, fill: u8) -> Arc<Region> {
    let region = Arc::new(Region::allocate(bytes, None).expect("memory"));
    let all = Slice::new(region.clone(), 0, bytes).expect("all of it");
    all.write(0, &vec![fill; bytes]).expect("all of it");
    region
}

/// A lane whose other end writes `input`, as whole requests and a rest.
pub(crate) fn server(input: &[u8]) {
    let (fd, mut requesters) = lane::create(1).expect("a memfd");
    let mut requester = requesters.remove(0);
    let ring = lane::open(fd, 1).expect("it is as it should be").remove(0);
    let source = filled(BYTES, SOURCE.1);
    let view = View::map(source.memfd().expect("ours"), BYTES).expect("it is sealed");
    let (id, addr, len) = (SOURCE.0, source.addr(), BYTES as u64);
    let offered = Arc::new(Offered::default());
    let means = Means::Mapped(Arc::new(view));
    offered.insert(PeerRegion { id, addr, len, means }).expect("the first");
    let doorbell = Doorbell::new().expect("an eventfd");
    let bell = std::os::fd::AsFd::as_fd(&doorbell).try_clone_to_owned().and_then(Bell::new);
    let mut server = LaneServer::new(ring, Arc::new(bell.expect("a bell")), offered);
    let mut world = World { arena: filled(3 * BYTES, UNTOUCHED) };

    let (words, _) = input.as_chunks::<{ REQUEST_WORDS * 8 }>();
    let mut parts = 0;
    for bytes in words {
        let request = std::array::from_fn(|k| {
            u64::from_le_bytes(bytes[8 * k..][..8].try_into().expect("eight bytes"))
        });
        requester.send([request].iter()).expect("the server is honest");
        if server.poll(&mut world).is_err() {
            break;
        }
        parts += usize::from(request[0] & 0xff <= 3);
        while let Some(words) = requester.receive().expect("the server is honest") {
            let reply = Reply::decode(&words).expect("replies are well-formed");
            assert!(!matches!(reply, Reply::Done { .. }) || parts > 0, "nothing was asked");
        }
    }
    assert!(server.waiting_replies() <= 2 * words.len(), "at most two replies a request");
    let mut bytes = vec![0; 3 * BYTES];
    let all = Slice::new(world.arena.clone(), 0, bytes.len()).expect("all of it");
    all.read(0, &mut bytes).expect("all of it");
    let (before, rest) = bytes.split_at(BYTES);
    let (permitted, behind) = rest.split_at(BYTES);
    assert!(before.iter().chain(behind).all(|byte| *byte == UNTOUCHED), "outside is untouched");
    assert!(permitted.iter().all(|byte| [UNTOUCHED, SOURCE.1].contains(byte)), "only the source");
}
