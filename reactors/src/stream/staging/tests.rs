//! GPUs' bytes through both reactors, on GPUs that aren't there: several GPUs at once, peers that
//! dawdle, names that are used again, GPUs that fail.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::tests::{both, pair, until_arrived, work};
use super::super::{Direction, Done, Manner, Socket, Streams, gpu_failure, is_fenced};
use super::blocks::{BLOCK_BYTES, BLOCKS_MAX};
use super::op::{Op, Step};
use crate::Reactor;
use crate::copy::CopyWork;
use crate::cuda::DeviceMemory;
use crate::cuda::fake::Fake;
use crate::doorbell::Doorbell;
use crate::region::{Region, Slice};
use crate::vector::Vector;

/// Operations that the reactors take: more than there are blocks.
const OPS: usize = 512;

/// More than the buffers of two sockets hold.
const LARGE: usize = 16 << 20;

/// Runs `test` on each reactor that the kernel gives us, with two GPUs.
fn staged(capacity: usize, test: impl Fn(&mut Rig)) {
    both(capacity, |streams, _| {
        let bell = Arc::new(Doorbell::new().unwrap());
        let streams = streams.staging(bell, 8);
        test(&mut Rig { streams, fake: Arc::new(Fake::new(2, 1 << 30)), ended: Vec::new() });
    });
}

struct Rig {
    streams: Streams,
    fake: Arc<Fake>,
    ended: Vec<Done>,
}

fn vram(fake: &Arc<Fake>, device: u32, len: usize) -> Slice {
    let memory = DeviceMemory::allocate(fake.clone(), device, len).unwrap();
    Slice::new(Arc::new(Region::on_device(memory, len).unwrap()), 0, len).unwrap()
}

impl Rig {
    fn vram(&self, device: u32, len: usize) -> Slice {
        vram(&self.fake, device, len)
    }

    fn submit(&mut self, tag: u64, socket: &Arc<Socket>, way: Direction, vector: Vector) -> u64 {
        self.streams.submit(work(tag, socket, way, vector)).unwrap()
    }

    fn turn(&mut self, times: usize) {
        (0..times).for_each(|_| {
            self.streams.poll(usize::MAX, &mut self.ended);
        });
    }

    /// Polls until the operation of this tag has ended.
    fn end(&mut self, tag: u64) -> Done {
        let start = Instant::now();
        loop {
            if let Some(at) = self.ended.iter().position(|done| done.tag == tag) {
                return self.ended.swap_remove(at);
            }
            self.turn(1);
            assert!(start.elapsed() < Duration::from_secs(20), "no completion of {tag}");
        }
    }

    /// Polls until nothing moves any more.
    fn until_stuck(&mut self) {
        let mut quiet = 0;
        while quiet < 50 {
            let moved = self.streams.poll(usize::MAX, &mut self.ended);
            quiet = if moved > 0 { 0 } else { quiet + 1 };
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Receives until the vector is full, as a connection does.
    fn receive_all(&mut self, socket: &Arc<Socket>, mut vector: Vector) {
        while !vector.is_empty() {
            self.submit(7, socket, Direction::Receive, vector);
            let done = self.end(7);
            vector = done.vector;
            vector.advance(done.result.unwrap());
        }
    }
}

/// Small buffers, so that a peer who reads nothing is stuck soon.
fn narrow(ours: &TcpStream, theirs: &TcpStream) {
    use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_send_buffer_size};
    set_socket_send_buffer_size(ours, 64 << 10).unwrap();
    set_socket_recv_buffer_size(theirs, 64 << 10).unwrap();
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 256) as u8).collect()
}

fn bytes(slice: &Slice) -> Vec<u8> {
    let mut bytes = vec![0; slice.len()];
    slice.read(0, &mut bytes).unwrap();
    bytes
}

/// Headers and pages, whose GPUs take turns.
fn mixed(slices: &[Slice], page: usize) -> Vector {
    let mut vector = Vector::default();
    for at in (0..slices[0].len()).step_by(page) {
        for slice in slices {
            vector.push_bytes(b"head");
            vector.push_memory(slice.part(at, page).unwrap());
        }
    }
    vector
}

fn reader(mut theirs: TcpStream, len: usize) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut got = vec![0; len];
        theirs.read_exact(&mut got).unwrap();
        got
    })
}

#[test]
fn one_vector_reaches_two_gpus_and_the_host() {
    staged(OPS, |rig| {
        let host = Slice::new(Arc::new(Region::allocate(LARGE, None).unwrap()), 0, LARGE).unwrap();
        for (len, page) in [(64 << 10, 4096), (4 << 20, 16 << 10), (3 << 20, 1 << 20)] {
            let slices = [rig.vram(0, len), rig.vram(1, len), host.part(0, len).unwrap()];
            let content = pattern(3 * len);
            for (slice, bytes) in slices.iter().zip(content.chunks(len)) {
                slice.write(0, bytes).unwrap();
            }
            let whole = mixed(&slices, page).len();
            let (ours, theirs) = pair();
            let reader = reader(theirs.try_clone().unwrap(), whole);
            rig.submit(1, &ours, Direction::Send, mixed(&slices, page));
            assert_eq!(rig.end(1).result.unwrap(), whole);
            let sent = reader.join().unwrap();
            slices.iter().for_each(|slice| slice.write(0, &vec![0; len]).unwrap());
            let writer = std::thread::spawn(move || {
                // In pieces that end anywhere, also inside a header.
                for piece in sent.chunks(99_991) {
                    (&theirs).write_all(piece).unwrap();
                }
            });
            rig.receive_all(&ours, mixed(&slices, page));
            writer.join().unwrap();
            for (slice, sent) in slices.iter().zip(content.chunks(len)) {
                assert!(bytes(slice) == sent, "{len} in pages of {page}");
            }
        }
    });
}

#[test]
fn headers_between_a_gpu_s_pages_are_received() {
    staged(OPS, |rig| {
        let memory = rig.vram(0, 8);
        let (ours, mut theirs) = pair();
        let mut vector = Vector::default();
        vector.push_memory(memory.part(0, 4).unwrap());
        vector.push_room(6);
        vector.push_memory(memory.part(4, 4).unwrap());
        rig.submit(1, &ours, Direction::Receive, vector);
        theirs.write_all(b"bodyhe").unwrap();
        let mut done = rig.end(1);
        assert_eq!((done.result.unwrap(), &done.vector.scratch()[..2]), (6, &b"he"[..]));
        done.vector.advance(6);
        theirs.write_all(b"aderMORE").unwrap();
        until_arrived(ours.tcp().unwrap(), 8);
        rig.submit(2, &ours, Direction::Receive, done.vector);
        let done = rig.end(2);
        assert_eq!((done.result.unwrap(), done.vector.scratch()), (8, &b"header"[..]));
        assert_eq!(bytes(&memory), b"bodyMORE");
    });
}

/// A GPU gets by one copy what the socket brought in pieces.
#[test]
fn pieces_are_gathered_until_no_more_are_there() {
    let fake = Arc::new(Fake::new(1, 1 << 30));
    let (ours, _theirs) = pair();
    let mut vector = Vector::default();
    vector.push_room(4);
    vector.push_memory(vram(&fake, 0, 1 << 20));
    let mut op = Op::new(work(1, &ours, Direction::Receive, vector));
    op.peeked(Ok(1));
    assert_eq!(op.step(), Step::Block { is_first: true });
    let block = Arc::new(Region::allocate(8192, None).unwrap());
    op.begin_part(Slice::new(block, 0, 8192).unwrap());
    for piece in [104, 1000] {
        assert_eq!(op.step(), Step::Post(Manner::Now));
        let vector = std::mem::take(&mut op.staged().unwrap().vector);
        op.received(Done { tag: 1, direction: Direction::Receive, result: Ok(piece), vector });
    }
    assert_eq!(op.step(), Step::Post(Manner::Now), "there is room, and there may be more");
    let vector = std::mem::take(&mut op.staged().unwrap().vector);
    let nothing = Err(io::ErrorKind::WouldBlock.into());
    op.received(Done { tag: 1, direction: Direction::Receive, result: nothing, vector });
    assert_eq!(op.step(), Step::Store);
    let (_, works) = op.store().unwrap();
    let copied: Vec<_> = works.iter().map(CopyWork::bytes).collect();
    assert_eq!(copied, [1100], "all but the header");
}

#[test]
fn peers_who_send_nothing_hold_no_block() {
    staged(OPS, |rig| {
        let memory = rig.vram(0, 4096);
        let vector = || mixed(std::slice::from_ref(&memory), 4096);
        let silent: Vec<_> = (0..BLOCKS_MAX as u64 + 10).map(|tag| (tag + 100, pair())).collect();
        for (tag, (ours, _)) in &silent {
            rig.submit(*tag, ours, Direction::Receive, vector());
        }
        rig.turn(20);
        let (ours, theirs) = pair();
        rig.submit(1, &ours, Direction::Send, vector());
        let sent = reader(theirs.try_clone().unwrap(), 4100);
        rig.end(1).result.unwrap();
        (&theirs).write_all(&sent.join().unwrap()).unwrap();
        rig.receive_all(&ours, vector());
        // Each of them comes to its turn.
        for (tag, (_, theirs)) in &silent {
            (&*theirs).write_all(&[1; 4100]).unwrap();
            rig.end(*tag).result.unwrap();
        }
    });
}

#[test]
fn peers_who_read_nothing_leave_blocks_to_receives() {
    staged(OPS, |rig| {
        let memory = rig.vram(0, LARGE);
        let deaf: Vec<_> = (0..BLOCKS_MAX as u64 + 10).map(|tag| (tag + 100, pair())).collect();
        for (tag, (ours, theirs)) in &deaf {
            narrow(ours.tcp().unwrap(), theirs);
            let mut vector = Vector::default();
            vector.push_memory(memory.clone());
            rig.submit(*tag, ours, Direction::Send, vector);
        }
        rig.until_stuck();
        let (ours, theirs) = pair();
        let target = rig.vram(1, 2 * BLOCK_BYTES);
        let writer = std::thread::spawn(move || {
            (&theirs).write_all(&pattern(2 * BLOCK_BYTES)).unwrap();
            theirs
        });
        let mut vector = Vector::default();
        vector.push_memory(target.clone());
        rig.receive_all(&ours, vector);
        assert!(bytes(&target) == pattern(2 * BLOCK_BYTES));
        drop(writer.join());
    });
}

#[test]
fn a_late_fence_does_not_reach_the_next_operation() {
    staged(OPS, |rig| {
        let memory = rig.vram(0, 4096);
        let vector = || mixed(std::slice::from_ref(&memory), 4096);
        let ((first, mut sends), (second, mut late)) = (pair(), pair());
        let name = rig.submit(1, &first, Direction::Receive, vector());
        sends.write_all(&[1; 4100]).unwrap();
        rig.end(1).result.unwrap();
        rig.submit(2, &second, Direction::Receive, vector());
        rig.streams.fence(name);
        late.write_all(&[2; 4100]).unwrap();
        assert!(rig.end(2).result.unwrap() > 0);
    });
}

#[test]
fn a_fence_ends_what_waits_and_keeps_what_came() {
    staged(OPS, |rig| {
        let memory = rig.vram(0, 4096);
        let vector = || mixed(std::slice::from_ref(&memory), 4096);
        let (ours, mut theirs) = pair();
        let name = rig.submit(1, &ours, Direction::Receive, vector());
        rig.turn(5);
        rig.streams.fence(name);
        assert!(is_fenced(&rig.end(1).result.unwrap_err()));
        // What has left the socket is not lost by a fence, and counts once it is there.
        rig.fake.break_with(|faults| faults.is_stalled = true);
        theirs.write_all(&[3; 4100]).unwrap();
        until_arrived(ours.tcp().unwrap(), 4100);
        let name = rig.submit(2, &ours, Direction::Receive, vector());
        rig.turn(50);
        rig.streams.fence(name);
        rig.turn(50);
        assert!(rig.ended.is_empty(), "a GPU may still write");
        rig.fake.break_with(|faults| faults.is_stalled = false);
        assert_eq!(rig.end(2).result.unwrap(), 4100);
        assert!(bytes(&memory) == [3; 4096]);
    });
}

#[test]
fn a_gpu_that_fails_says_so_and_nothing_of_the_send_went_out() {
    staged(OPS, |rig| {
        let memory = rig.vram(0, LARGE);
        let vector = || mixed(std::slice::from_ref(&memory), LARGE);
        let (ours, theirs) = pair();
        rig.fake.break_with(|faults| faults.no_launch = true);
        rig.submit(1, &ours, Direction::Send, vector());
        let error = rig.end(1).result.unwrap_err();
        assert_eq!(gpu_failure(&error).unwrap().call, "cuLaunchKernel");
        theirs.set_nonblocking(true).unwrap();
        assert!((&theirs).read(&mut [0]).is_err(), "a byte went out");
        // In the middle: what is out is told, and the rest fails with nothing of it out.
        rig.fake.break_with(|faults| faults.no_launch = false);
        rig.submit(2, &ours, Direction::Send, vector());
        rig.turn(50);
        rig.fake.break_with(|faults| faults.no_launch = true);
        theirs.set_nonblocking(false).unwrap();
        let reader = std::thread::spawn(move || (&theirs).read_to_end(&mut Vec::new()).unwrap());
        let mut done = rig.end(2);
        let sent = done.result.unwrap();
        assert!(sent > 0 && sent < LARGE, "{sent}");
        done.vector.advance(sent);
        rig.submit(3, &ours, Direction::Send, done.vector);
        assert!(gpu_failure(&rig.end(3).result.unwrap_err()).is_some());
        ours.shutdown(std::net::Shutdown::Both).unwrap();
        assert_eq!(reader.join().unwrap(), sent);
    });
}

/// However many wait, their ends are no deeper than one.
#[test]
fn a_backlog_of_copies_that_are_refused_ends() {
    staged(OPS, |rig| {
        let memory = rig.vram(0, 4096);
        let strange = vram(&Arc::new(Fake::new(2, 1 << 30)), 0, 4096);
        let (ours, theirs) = pair();
        rig.fake.break_with(|faults| faults.is_stalled = true);
        for _ in 0..BLOCKS_MAX {
            let vector = mixed(std::slice::from_ref(&memory), 4096);
            rig.submit(1, &ours, Direction::Send, vector);
        }
        for _ in 0..3900 {
            let vector = mixed(&[memory.clone(), strange.clone()], 4096);
            rig.submit(2, &ours, Direction::Send, vector);
        }
        rig.turn(5);
        assert!(rig.ended.is_empty(), "there is a block for it");
        rig.fake.break_with(|faults| faults.is_stalled = false);
        let reader = reader(theirs, BLOCKS_MAX * 4100);
        (0..BLOCKS_MAX).for_each(|_| assert!(rig.end(1).result.is_ok()));
        (0..3900).for_each(|_| assert!(rig.end(2).result.is_err()));
        reader.join().unwrap();
    });
}

#[test]
fn a_full_reactor_is_waited_for_asleep() {
    staged(1, |rig| {
        let memory = rig.vram(0, 4096);
        let vector = || mixed(std::slice::from_ref(&memory), 4096);
        let ((first, theirs), (second, _silent)) = (pair(), pair());
        rig.submit(1, &second, Direction::Receive, vector());
        rig.submit(2, &first, Direction::Send, vector());
        rig.turn(50);
        assert_eq!(rig.streams.poll(usize::MAX, &mut rig.ended), 0);
        assert!(rig.streams.arm(), "there is nothing to do");
        second.shutdown(std::net::Shutdown::Both).unwrap();
        assert_eq!(rig.end(1).result.unwrap(), 0);
        let reader = reader(theirs, 4100);
        assert_eq!(rig.end(2).result.unwrap(), 4100);
        reader.join().unwrap();
    });
}

#[test]
fn a_budget_is_kept() {
    staged(OPS, |rig| {
        let memory = rig.vram(0, 4096);
        let pairs: Vec<_> = (0..20).map(|_| pair()).collect();
        rig.fake.break_with(|faults| faults.is_stalled = true);
        for ((ours, _), tag) in pairs.iter().zip(0..) {
            let vector = mixed(std::slice::from_ref(&memory), 4096);
            rig.submit(tag, ours, Direction::Send, vector);
        }
        // All end at once.
        rig.turn(1);
        rig.fake.break_with(|faults| faults.is_lost = true);
        let (mut ended, start) = (0, Instant::now());
        while ended < 20 {
            let mut done = Vec::new();
            rig.streams.poll(3, &mut done);
            assert!(done.len() <= 3);
            ended += done.len();
            assert!(start.elapsed() < Duration::from_secs(20), "{ended} of 20");
        }
    });
}

/// While the socket has one block, a GPU fills the next, and while a GPU empties one, the socket
/// fills the next.
#[test]
fn gpus_and_sockets_work_at_once() {
    staged(OPS, |rig| {
        let memory = rig.vram(0, LARGE);
        let vector = || mixed(std::slice::from_ref(&memory), LARGE);
        let (ours, theirs) = pair();
        rig.submit(1, &ours, Direction::Send, vector());
        // The peer reads nothing: one block is in the socket's hands, the next is filled already,
        // and goes out without a GPU.
        rig.turn(500);
        rig.fake.break_with(|faults| faults.is_stalled = true);
        let held = theirs.try_clone().unwrap();
        let reader = std::thread::spawn(move || {
            let mut got = vec![0; LARGE + 4];
            (&held).read_exact(&mut got).unwrap();
            got
        });
        let start = Instant::now();
        while rig.streams.awaiting() < 2 {
            rig.turn(1);
            assert!(start.elapsed() < Duration::from_secs(20), "a block waits for the other");
        }
        rig.fake.break_with(|faults| faults.is_stalled = false);
        assert_eq!(rig.end(1).result.unwrap(), LARGE + 4);
        let got = reader.join().unwrap();
        // A GPU that does nothing: two blocks are received all the same.
        rig.fake.break_with(|faults| faults.is_stalled = true);
        let writer = std::thread::spawn(move || (&theirs).write_all(&got).map(|()| theirs));
        rig.submit(2, &ours, Direction::Receive, vector());
        let start = Instant::now();
        while rig.streams.awaiting() < 2 {
            rig.turn(1);
            assert!(start.elapsed() < Duration::from_secs(20), "a block waits for the other");
        }
        assert!(rig.ended.is_empty());
        rig.fake.break_with(|faults| faults.is_stalled = false);
        let mut done = rig.end(2);
        done.vector.advance(done.result.unwrap());
        rig.receive_all(&ours, done.vector);
        drop(writer.join());
    });
}
