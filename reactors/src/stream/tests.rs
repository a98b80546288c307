//! One set of tests for both reactors: what the contract says, they do alike.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;
use crate::affinity::probe_uring;
use crate::doorbell::Doorbell;
use crate::region::{Region, Slice};

/// More than the buffers of two sockets hold.
const LARGE: usize = 32 << 20;

/// Runs `test` on each reactor that the kernel gives us.
pub(super) fn both(capacity: usize, test: impl Fn(Streams, &Doorbell)) {
    let bell = Doorbell::with_sources().unwrap();
    test(Sockets::new(capacity, &bell).unwrap().into(), &bell);
    match probe_uring() {
        Err(error) => eprintln!("not on io_uring, which the kernel refuses: {error}"),
        Ok(()) => {
            let bell = Doorbell::with_sources().unwrap();
            test(Uring::new(capacity, bell.raw_fd()).unwrap().into(), &bell);
        }
    }
}

pub(super) fn pair() -> (Arc<Socket>, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (Arc::new(ours.into()), listener.accept().unwrap().0)
}

pub(super) fn work(tag: u64, socket: &Arc<Socket>, direction: Direction, vector: Vector) -> Work {
    Work { tag, socket: socket.clone(), direction, vector }
}

fn room(len: usize) -> Vector {
    let mut vector = Vector::default();
    vector.push_room(len);
    vector
}

fn bytes(bytes: &[u8]) -> Vector {
    let mut vector = Vector::default();
    vector.push_bytes(bytes);
    vector
}

fn receive(streams: &mut Streams, tag: u64, socket: &Arc<Socket>, len: usize) -> u64 {
    streams.submit(work(tag, socket, Direction::Receive, room(len))).unwrap()
}

/// Polls until something has ended, never parking.
fn poll_one(streams: &mut Streams) -> Done {
    let mut done = Vec::new();
    let start = Instant::now();
    while done.is_empty() {
        streams.poll(1, &mut done);
        assert!(start.elapsed() < Duration::from_secs(10), "no completion");
    }
    done.pop().unwrap()
}

/// Waits like a shard: arms, parks, polls.
fn park_one(streams: &mut Streams, bell: &Doorbell) -> Done {
    let mut done = Vec::new();
    let start = Instant::now();
    loop {
        streams.poll(1, &mut done);
        if let Some(done) = done.pop() {
            return done;
        }
        if streams.arm() {
            bell.wait(Some(Duration::from_secs(10))).unwrap();
            bell.drain();
        }
        assert!(start.elapsed() < Duration::from_secs(10), "a lost wake");
    }
}

/// Waits until the kernel has everything that the peer sent.
pub(super) fn until_arrived(socket: &TcpStream, len: usize) {
    let mut seen = vec![0; len];
    let start = Instant::now();
    while socket.peek(&mut seen).unwrap() < len {
        assert!(start.elapsed() < Duration::from_secs(10), "never arrived");
    }
}

#[test]
fn bytes_go_out_and_come_in() {
    both(8, |mut streams, _| {
        let (ours, mut theirs) = pair();
        let region = Arc::new(Region::allocate(4096, None).unwrap());
        let memory = Slice::new(region, 100, 5).unwrap();
        let mut vector = room(2);
        vector.push_memory(memory.clone());
        streams.submit(work(1, &ours, Direction::Receive, vector)).unwrap();
        assert!(streams.poll(8, &mut Vec::new()) == 0 && streams.arm());
        theirs.write_all(b"hiworld").unwrap();
        let done = poll_one(&mut streams);
        assert_eq!((done.tag, done.result.unwrap()), (1, 7));
        assert_eq!(done.vector.scratch(), b"hi");
        assert_eq!(done.vector.len(), 7, "not advanced");

        let mut vector = bytes(b">");
        vector.push_memory(memory);
        streams.submit(work(2, &ours, Direction::Send, vector)).unwrap();
        let done = poll_one(&mut streams);
        assert_eq!((done.tag, done.result.unwrap()), (2, 6));
        let mut got = [0; 6];
        theirs.read_exact(&mut got).unwrap();
        assert_eq!(&got, b">world");
    });
}

#[test]
fn every_arrival_wakes_the_parked_sleeper() {
    both(8, |mut streams, bell| {
        let (ours, mut theirs) = pair();
        let echo = std::thread::spawn(move || {
            let mut byte = [0];
            while theirs.read_exact(&mut byte).is_ok() {
                theirs.write_all(&byte).unwrap();
            }
        });
        for turn in 0..500 {
            let sent = [turn as u8];
            receive(&mut streams, 1, &ours, 8);
            streams.submit(work(2, &ours, Direction::Send, bytes(&sent))).unwrap();
            let (first, second) = (park_one(&mut streams, bell), park_one(&mut streams, bell));
            let received = if first.tag == 1 { first } else { second };
            assert_eq!(received.result.unwrap(), 1);
            assert_eq!(received.vector.scratch()[..1], sent);
        }
        ours.shutdown(Shutdown::Both).unwrap();
        echo.join().unwrap();
    });
}

#[test]
fn a_send_goes_on_until_all_of_it_is_out() {
    both(8, |mut streams, bell| {
        let (ours, mut theirs) = pair();
        let region = Arc::new(Region::allocate(LARGE, None).unwrap());
        let all: Vec<u8> = (0..LARGE).map(|at| (at * 7 + at / 256) as u8).collect();
        Slice::new(region.clone(), 0, LARGE).unwrap().write(0, &all).unwrap();
        let mut vector = Vector::default();
        // Pieces, so that short sends end inside of some and between others.
        (0..256).for_each(|piece| {
            let len = LARGE / 256;
            vector.push_memory(Slice::new(region.clone(), piece * len, len).unwrap());
        });
        let reader = std::thread::spawn(move || {
            let mut got = vec![0; LARGE];
            theirs.read_exact(&mut got).unwrap();
            got
        });
        streams.submit(work(1, &ours, Direction::Send, vector)).unwrap();
        let done = park_one(&mut streams, bell);
        assert_eq!((done.result.unwrap(), done.vector.len()), (LARGE, LARGE));
        assert!(reader.join().unwrap() == all, "the bytes differ");
    });
}

#[test]
fn what_came_with_the_end_is_received_and_then_the_end() {
    both(8, |mut streams, bell| {
        let (ours, mut theirs) = pair();
        // Known to the reactor before, so that one event tells of the bytes and of the end.
        receive(&mut streams, 1, &ours, 100);
        assert!(streams.poll(8, &mut Vec::new()) == 0 && streams.arm());
        theirs.write_all(b"last").unwrap();
        theirs.shutdown(Shutdown::Write).unwrap();
        until_arrived(ours.tcp().unwrap(), 4);
        for (expected, turn) in [4, 0, 0].into_iter().zip(0..) {
            if turn > 0 {
                receive(&mut streams, 1, &ours, 100);
            }
            assert_eq!(park_one(&mut streams, bell).result.unwrap(), expected);
        }
        // The other direction is open still.
        streams.submit(work(2, &ours, Direction::Send, bytes(b"reply"))).unwrap();
        assert_eq!(park_one(&mut streams, bell).result.unwrap(), 5);
        let mut reply = [0; 5];
        theirs.read_exact(&mut reply).unwrap();
    });
}

#[test]
fn a_dead_peer_ends_what_waits_for_it() {
    both(8, |mut streams, bell| {
        let (ours, mut theirs) = pair();
        let region = Arc::new(Region::allocate(LARGE, None).unwrap());
        let mut vector = Vector::default();
        vector.push_memory(Slice::new(region, 0, LARGE).unwrap());
        streams.submit(work(1, &ours, Direction::Send, vector)).unwrap();
        receive(&mut streams, 2, &ours, 8);
        streams.poll(8, &mut Vec::new());
        theirs.read_exact(&mut [0]).unwrap();
        drop(theirs); // with bytes unread: a reset
        for _ in 0..2 {
            let done = park_one(&mut streams, bell);
            assert!(done.result.is_err() || done.result.unwrap() < LARGE);
        }
        receive(&mut streams, 3, &ours, 8);
        assert!(matches!(park_one(&mut streams, bell).result, Ok(0) | Err(_)));
    });
}

#[test]
fn a_fenced_receive_ends_and_touches_nothing_afterwards() {
    both(8, |mut streams, _| {
        let (ours, mut theirs) = pair();
        let name = receive(&mut streams, 1, &ours, 4);
        assert!(streams.poll(8, &mut Vec::new()) == 0 && streams.arm());
        streams.fence(name);
        let done = poll_one(&mut streams);
        assert_eq!(done.result.unwrap_err().raw_os_error(), Some(libc::ECANCELED));
        theirs.write_all(b"late").unwrap();
        assert_eq!(done.vector.scratch(), [0; 4]);
        streams.fence(name);
        // Whoever comes next gets the bytes.
        receive(&mut streams, 2, &ours, 4);
        let next = poll_one(&mut streams);
        assert_eq!((next.tag, next.vector.scratch()), (2, &b"late"[..]));
    });
}

#[test]
fn a_fence_before_parking_is_not_slept_over() {
    both(8, |mut streams, bell| {
        let (ours, _theirs) = pair();
        let name = receive(&mut streams, 1, &ours, 4);
        assert!(streams.poll(8, &mut Vec::new()) == 0 && streams.arm());
        streams.fence(name);
        assert_eq!(park_one(&mut streams, bell).tag, 1);
    });
}

#[test]
fn a_full_reactor_gives_work_back_and_a_dropped_one_lets_go() {
    both(1, |mut streams, _| {
        let (ours, _theirs) = pair();
        receive(&mut streams, 1, &ours, 4);
        let back = streams.submit(work(2, &ours, Direction::Receive, room(4))).unwrap_err();
        assert_eq!(back.tag, 2);
        drop(streams);
        drop(back);
        assert_eq!(Arc::strong_count(&ours), 1);
    });
}

#[test]
fn a_socket_is_not_taken_for_the_one_whose_number_it_has() {
    both(8, |mut streams, bell| {
        for turn in 0..50 {
            let (ours, mut theirs) = pair();
            receive(&mut streams, turn, &ours, 4);
            streams.poll(8, &mut Vec::new());
            theirs.write_all(b"hi").unwrap();
            let done = park_one(&mut streams, bell);
            assert_eq!((done.tag, done.result.unwrap()), (turn, 2));
        }
    });
}

#[test]
fn a_budget_is_kept_and_nothing_is_lost_by_it() {
    both(64, |mut streams, bell| {
        let pairs: Vec<_> = (0..20).map(|_| pair()).collect();
        for ((ours, theirs), tag) in pairs.iter().zip(0..) {
            let mut peer = theirs;
            peer.write_all(b"x").unwrap();
            until_arrived(ours.tcp().unwrap(), 1);
            receive(&mut streams, tag, ours, 4);
        }
        let (mut tags, mut done) = (Vec::new(), Vec::new());
        while tags.len() < 20 {
            streams.poll(3, &mut done);
            assert!(done.len() <= 3);
            tags.extend(done.drain(..).map(|done| done.tag));
            if tags.len() < 20 && streams.arm() {
                bell.wait(Some(Duration::from_secs(10))).unwrap();
                bell.drain();
            }
        }
        tags.sort_unstable();
        assert_eq!(tags, (0..20).collect::<Vec<_>>());
    });
}

#[test]
fn an_alarm_ends_the_wait_and_is_nobodys_completion() {
    both(8, |mut streams, bell| {
        streams.set_alarm(3_600_000_000_000, 0);
        streams.set_alarm(1_000_000, 0);
        let mut done = Vec::new();
        let start = Instant::now();
        if streams.arm() {
            bell.wait(Some(Duration::from_secs(20))).unwrap();
            bell.drain();
        }
        assert!(start.elapsed() < Duration::from_secs(10), "it waited for the later one");
        for _ in 0..8 {
            streams.poll(4, &mut done);
        }
        assert!(done.is_empty());
        // It has rung, so the next one is another.
        assert!(streams.arm(), "it rings once");
        streams.set_alarm(2_000_000, 1_000_000);
        if streams.arm() {
            bell.wait(Some(Duration::from_secs(20))).unwrap();
        }
        assert!(start.elapsed() < Duration::from_secs(20), "a second alarm is lost");
    });
}
