//! A door to functions of the data path that are private, for the programs of `benches/` alone:
//! each by its name and as one call on plain data, without a thread, a wake or a device.

mod posting;

use std::hint::black_box;
use std::sync::Arc;

use kvrail_reactors::region;

pub use self::posting::{ADDR, NoNic, Ports, Posting, SLICE_BYTES as WRITE_BYTES, SimulatedNic};
use crate::auth::Gate;
use crate::flight::Life;
use crate::limits::{COPY_GROUP_BYTES, MAILBOX_MESSAGES, SLICE_BYTES};
use crate::memory::grant::{Granting, Grants, Key};
use crate::memory::{Access, Location, Operation, Region, Regions, RegionsView};
use crate::path::host::{CopyEntry, Entry, LISTED_COPIES, ListedCopy};
use crate::path::tcp::{Event, Header, Status, Verb, Version};
use crate::plan::{PlannedSlice, plan, share_out};
use crate::receipt::Fenced;
use crate::request::{Pages, Shape, Strided};
use crate::runtime::{Doorbell, inbox};

/// A function's name, and one call of it.
pub type Hot = (&'static str, Box<dyn FnMut()>);

/// Blocks of a batch, and what each has: a layer's slice of a prompt.
const BLOCKS: usize = 1_000;
const BLOCK_BYTES: usize = 12 << 10;

/// So many blocks apart lie two neighbours at the peer: a prime, so each block is met once.
const APART: usize = 7_919;

/// Regions that are registered: some for each layer of a model.
const REGIONS: usize = 64;
const REGION_BYTES: usize = 4096;

/// Parts and requests of a flight, slices of a list.
const PARTS: usize = 16;

/// Frames of a call: one alone is cheaper than what can be counted well.
const FRAMES: usize = 64;

/// All of them, in the order of the data path.
pub fn functions() -> Vec<Hot> {
    [plans(), memory(), flights(), frames(), entries()].into_iter().flatten().collect()
}

fn hot(name: &'static str, call: impl FnMut() + 'static) -> Hot {
    (name, Box::new(call))
}

/// A call for each of 64 frames, which the name is for.
fn frame(name: &'static str, call: impl Fn() + 'static) -> Hot {
    hot(name, move || (0..FRAMES).for_each(|_| call()))
}

fn plans() -> Vec<Hot> {
    let slices = planned(&pages(scattered));
    vec![
        hot("plan 1,000 scattered pages", planning(pages(scattered))),
        hot("plan 1,000 adjoining pages", planning(pages(|block| block))),
        hot("plan 1,000 rows", planning(rows())),
        hot("share 1,000 slices out to 2 shards", move || {
            black_box(share_out(black_box(&slices), 2, COPY_GROUP_BYTES));
        }),
    ]
}

fn scattered(block: usize) -> usize {
    block * APART % BLOCKS
}

fn pages(remote: impl Fn(usize) -> usize) -> Shape {
    let addr = |block| (block * BLOCK_BYTES) as u64;
    let local = (0..BLOCKS).map(addr).collect();
    let remote = (0..BLOCKS).map(|block| addr(remote(block))).collect();
    Shape::Pages(Pages { page_bytes: BLOCK_BYTES, local, remote })
}

/// A half of each row at the peer.
fn rows() -> Shape {
    let (local_stride, remote_stride) = (BLOCK_BYTES as u64, 2 * BLOCK_BYTES as u64);
    let (rows, row_bytes, remote) = (BLOCKS, BLOCK_BYTES, 0);
    Shape::Strided(Strided { rows, row_bytes, local_stride, remote, remote_stride })
}

fn planning(shape: Shape) -> impl FnMut() {
    move || {
        black_box(planned(black_box(&shape)));
    }
}

fn planned(shape: &Shape) -> Vec<PlannedSlice> {
    let mut slices = Vec::new();
    plan(0, BLOCKS * BLOCK_BYTES, shape, SLICE_BYTES, &mut slices).expect("a good batch");
    slices
}

/// What is looked up for a request: leases here, regions and grants at the peer.
fn memory() -> Vec<Hot> {
    let (regions, grants) = (Arc::new(Regions::default()), Arc::new(Grants::new(None)));
    let all: Vec<_> = (0..REGIONS).map(|_| region()).collect();
    all.iter().try_for_each(|region| regions.insert(region.clone())).expect("they are apart");
    let own = all[REGIONS / 2].clone();
    let addr = own.addr();
    let holds: Vec<_> = (0..PARTS).map(|part| lease(&own, 2 * part)).collect();
    let granting = Granting {
        region: &own,
        range: 0..REGION_BYTES,
        access: Access::READ_WRITE,
        holder: None,
        expires_ns: None,
        generation: 1,
    };
    let grant = grants.add(granting).expect("a grant");
    let visitor = Gate::default().tcp_newcomer();
    let (mut view, mut other) = (RegionsView::new(regions.clone()), RegionsView::new(regions));
    let (same, key) = (visitor.clone(), grant.reference().key);
    vec![
        hot("take a lease and give it back, 16 held", move || {
            black_box((&holds, lease(&own, 1)));
        }),
        hot("find a region of 64", move || {
            let found = view.current().find_for(&visitor, black_box(addr), 64, Operation::Write);
            black_box(found.expect("it is registered"));
        }),
        hot("find a grant", move || {
            let (regions, key, _) = (other.current(), black_box(key), &grant);
            let found = grants.find_for(&same, regions, key, addr, 64, Operation::Write);
            black_box(found.expect("it holds"));
        }),
    ]
}

fn region() -> Region {
    let memory = region::Region::allocate(REGION_BYTES, None).expect("memory");
    Region::new(memory, Access::READ_WRITE, Location::Cpu(None))
}

/// An exclusive lease of one of a region's pieces of 64 bytes.
fn lease(region: &Region, piece: usize) -> crate::ExclusiveLease {
    region.lease(piece * 64..(piece + 1) * 64).expect("nobody has it")
}

/// What carries a batch: a message to a shard, the life of its parts, and lists for NICs.
fn flights() -> Vec<Hot> {
    let doorbell = Arc::new(Doorbell::new().expect("an eventfd"));
    let (sender, mut receiver) = inbox(MAILBOX_MESSAGES, doorbell);
    let mut posting = Posting::new(NoNic::default(), PARTS);
    vec![
        hot("inbox: send and receive", move || {
            sender.send(black_box(1u64)).expect("there is room");
            black_box(receiver.receive());
        }),
        hot("flight of 16 parts", || {
            let mut life = Life::new(black_box(PARTS), false);
            for _ in 0..PARTS {
                black_box(life.part_back(Vec::new()));
            }
            black_box(life.landing(PARTS, Fenced::Answered, Vec::new));
        }),
        hot("rdma: post 16 writes and take their ends", move || posting.round()),
    ]
}

/// Frames of TCP, there and back.
fn frames() -> Vec<Hot> {
    let verb = Verb::Transfer(Operation::Write);
    let header = Header { len: 4096, addr: 1 << 40, verb, version: Version::V2 };
    let key = Key { slot: 3, word: 5 };
    let message = Some(("decode-7".to_owned(), vec![7; 64]));
    let event = Event { count: Some((7, 1)), message };
    vec![
        frame("tcp: 64 headers", move || {
            let bytes = black_box(black_box(&header).encode());
            black_box(Header::decode(&bytes).expect("our own"));
        }),
        frame("tcp: 64 keys of grants", move || {
            black_box(Key::decode(&black_box(black_box(&key).encode())));
        }),
        frame("tcp: 64 statuses", || {
            let bytes = black_box(black_box(Status::Ok).encode());
            black_box(Status::decode(&bytes).expect("our own"));
        }),
        frame("tcp: 64 events", move || {
            let bytes = black_box(black_box(&event).encode());
            black_box(Event::decode(&bytes).expect("our own"));
        }),
    ]
}

/// Words of a same-host lane, there and back.
fn entries() -> Vec<Hot> {
    let copy = CopyEntry {
        part: 1,
        last: true,
        source: 2,
        offset: 4096,
        addr: 1 << 40,
        len: 4096,
        key: Some(Key { slot: 3, word: 5 }),
    };
    let there_and_back = |entry: Entry| {
        move || {
            let words = black_box(black_box(&entry).encode());
            black_box(Entry::decode(&words).expect("our own"));
        }
    };
    let listed = Entry::Listed([ListedCopy { from: 1, to: 2 }.to_word(); LISTED_COPIES]);
    vec![
        frame("host: 64 copies", there_and_back(Entry::Copy(copy))),
        frame("host: 64 times 7 of a list", there_and_back(listed)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_can_be_called_again_and_again() {
        let mut all = functions();
        (0..3).for_each(|_| all.iter_mut().for_each(|(_, call)| call()));
    }

    #[test]
    fn a_simulated_nic_ends_what_it_is_given() {
        let mut posting = Posting::new(SimulatedNic::default(), PARTS);
        (0..3).for_each(|_| posting.round());
    }
}
