//! Hostile clients of our server.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Instant;

use kvrail::{Access, ErrorKind, Eternal, Region};

use crate::{
    BUSY, EVENT, LIMIT, OK, PATIENCE, READ, REFUSED, V2, Victim, WRITE, contents, eventually,
    header, pattern, rest, run,
};

#[test]
fn ranges_that_wrap_or_are_not_registered_are_refused() {
    run(async {
        let victim = Victim::new().await;
        let (start, len) = (victim.region.addr(), victim.region.len() as u64);
        let cases = [
            (start, 0),
            (start, len + 1),
            (start + len, 1),
            (start - 1, 2),
            (start, u64::MAX),
            (start + 1, u64::MAX - start),
            (0, 1),
            (u64::MAX, 1),
            (u64::MAX, u64::MAX),
            (1 << 63, 1 << 63),
            (4_096, 1 << 40),
        ];
        for (addr, len) in cases {
            for opcode in [READ, WRITE] {
                assert_eq!(rest(&victim.send(&header(opcode, addr, len))), b"", "{addr:#x} {len}");
                let stream = victim.send(&header(opcode | V2, addr, len));
                assert_eq!(rest(&stream), REFUSED, "{addr:#x} {len}");
            }
        }
        // What follows a refusal is not carried out, and what came before it was.
        let body = [&header(WRITE | V2, start, 5)[..], b"first"].concat();
        let bad = header(WRITE | V2, start + len, 6);
        let behind = [&header(WRITE | V2, start + 100, 6)[..], b"behind"].concat();
        let stream = victim.send(&[body, bad, behind].concat());
        assert!([&OK[..], &REFUSED].concat().starts_with(&rest(&stream)));
        assert_eq!(contents(&victim.region, 0..5), b"first");
        assert_eq!(contents(&victim.region, 100..106), [0; 6]);
        victim.serves().await;
    });
}

#[test]
fn random_bytes_store_nothing() {
    run(async {
        let victim = Victim::new().await;
        for seed in 0..300 {
            let stream = victim.send(&pattern(seed, 1 + seed as usize * 37 % 5_000));
            let _ = stream.shutdown(Shutdown::Write);
            rest(&stream);
        }
        assert!(contents(&victim.region, 0..1 << 20).iter().all(|&byte| byte == 0));
        victim.serves().await;
    });
}

#[test]
fn a_thousand_half_open_connections_are_no_burden() {
    raise_open_files(4_096);
    run(async {
        let victim = Victim::new().await;
        let half = header(WRITE, victim.region.addr(), 8);
        let open: Vec<TcpStream> = (0..1_000).map(|at| victim.send(&half[..at % 2 * 10])).collect();
        for _ in 0..5 {
            victim.serves().await;
        }
        // Those that had sent nothing, and those that were in mid-header, go on as if nothing was.
        for (at, mut stream) in open.into_iter().enumerate().take(50) {
            stream.write_all(&half[at % 2 * 10..]).unwrap();
            stream.write_all(b"complete").unwrap();
            stream.write_all(&header(READ, victim.region.addr(), 8)).unwrap();
            let mut answer = [0; 8];
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"complete");
        }
    });
}

/// Both ends of every connection are in this process. `prlimit` of util-linux sets it from outside,
/// so that no unsafe code is needed; where it fails, the limit was high enough or the test says so.
fn raise_open_files(soft: u64) {
    let pid = std::process::id().to_string();
    let limit = format!("--nofile={soft}:");
    let _ = std::process::Command::new("prlimit").args(["--pid", &pid, &limit]).status();
}

#[test]
fn a_reader_that_stops_in_mid_body_is_closed_in_time() {
    run(async {
        let victim = Victim::impatient().await;
        let len = victim.region.len() as u64;
        for opcode in [READ, READ | V2] {
            let mut stream = victim.send(&header(opcode, victim.region.addr(), len));
            stream.read_exact(&mut [0; 1_000]).unwrap();
            victim.serves().await;
            std::thread::sleep(2 * PATIENCE);
            assert!(rest(&stream).len() + 1_000 < len as usize, "it was served to the end");
        }
        victim.serves().await;
    });
}

#[test]
fn a_writer_that_stops_is_closed_in_time_and_an_idle_one_is_not() {
    run(async {
        let victim = Victim::impatient().await;
        let idle = victim.send(&[&header(WRITE, victim.region.addr(), 4)[..], b"idle"].concat());
        for opcode in [WRITE, WRITE | V2] {
            let body =
                [&header(opcode, victim.region.addr() + 4, 1 << 20)[..], &[7; 1_000]].concat();
            let stream = victim.send(&body);
            victim.serves().await;
            assert_eq!(rest(&stream), b"");
        }
        assert_eq!(rest(&victim.send(&[0; 10])), b"", "half a header");
        let mut idle = idle;
        idle.write_all(&header(READ | V2, victim.region.addr(), 4)).unwrap();
        let mut answer = [0; 12];
        idle.read_exact(&mut answer).unwrap();
        assert_eq!(answer, *[&OK[..], b"idle"].concat());
        victim.serves().await;
    });
}

/// Memory of the test's own, registered at the victim.
struct Own {
    memory: Eternal,
    region: Region,
}

fn own(victim: &Victim, len: usize) -> Own {
    let memory = Eternal::new(len);
    let region = victim.engine.register(memory.foreign(), Access::READ_WRITE).unwrap();
    Own { memory, region }
}

#[test]
fn memory_that_is_unregistered_under_a_write_is_not_written_any_more() {
    run(async {
        let victim = Victim::new().await;
        for opcode in [WRITE, WRITE | V2] {
            let own = own(&victim, 8 << 20);
            let other = victim.send(&header(WRITE | V2, victim.region.addr(), 100));
            let request = header(opcode, own.region.addr(), own.region.len() as u64);
            let mut stream = victim.send(&[&request[..], &[7; 100_000]].concat());
            eventually("the first bytes are stored", || {
                contents(&own.region, 99_999..100_000) == [7]
            });
            let start = Instant::now();
            victim.engine.unregister(own.region.clone()).await.unwrap();
            assert!(start.elapsed() < LIMIT);
            let before = own.memory.contents();
            // The peer goes on as if nothing was.
            for _ in 0..100 {
                if stream.write_all(&[9; 10_000]).is_err() {
                    break;
                }
            }
            rest(&stream);
            let after = own.memory.contents();
            assert!(after == before && !after.contains(&9), "it was written afterwards");
            let mut other = other;
            other.write_all(&[5; 100]).unwrap();
            let mut answer = [0; 8];
            other.read_exact(&mut answer).unwrap();
            assert_eq!(answer, OK, "other connections live");
            victim.serves().await;
        }
    });
}

#[test]
fn memory_that_is_unregistered_under_a_read_is_not_read_any_more() {
    run(async {
        let victim = Victim::new().await;
        for opcode in [READ, READ | V2] {
            let own = own(&victim, 32 << 20);
            let len = own.region.len();
            // Several replies of it wait, too.
            let request = header(opcode, own.region.addr(), len as u64).repeat(5);
            let mut stream = victim.send(&request);
            stream.read_exact(&mut [0; 1_000]).unwrap();
            let start = Instant::now();
            victim.engine.unregister(own.region.clone()).await.unwrap();
            assert!(start.elapsed() < LIMIT);
            // What was in the sockets may come; nothing of what is written now does.
            let again = victim.engine.register(own.memory.foreign(), Access::LOCAL).unwrap();
            again.lease(0..len).unwrap().copy_in(0, &vec![0xAB; len]).unwrap();
            let got = rest(&stream);
            assert!(got.len() < len && !got.contains(&0xAB));
            victim.serves().await;
        }
    });
}

fn notification(len: usize) -> Vec<u8> {
    let fixed = [&[0; 16][..], &[1, 4, 0], b"evil"].concat();
    let body = fixed.len() + len;
    [&header(EVENT | V2, 0, body as u64)[..], &fixed, &vec![b'x'; len]].concat()
}

#[test]
fn notifications_without_end_are_busy_until_somebody_reads_them() {
    run(async {
        let victim = Victim::new().await;
        let mut stream = victim.connect();
        let mut statuses = vec![[0; 8]; 5_000];
        let mut reader = stream.try_clone().unwrap();
        let reading = std::thread::spawn(move || {
            statuses.iter_mut().for_each(|status| reader.read_exact(status).unwrap());
            statuses
        });
        stream.write_all(&notification(10).repeat(5_000)).unwrap();
        let statuses = reading.join().unwrap();
        let taken = statuses.iter().position(|&status| status == BUSY).expect("a bound");
        assert!(statuses[..taken].iter().all(|&status| status == OK));
        assert!(statuses[taken..].iter().all(|&status| status == BUSY));
        assert_eq!(victim.notify("no room").await.unwrap_err().kind(), ErrorKind::Busy);
        while let Some(message) = victim.engine.try_notification() {
            assert_eq!((message.from.as_str(), message.bytes.len()), ("evil", 10));
        }
        victim.notify("room").await.unwrap();
        assert_eq!(victim.engine.notification().await.bytes, b"room");
        victim.serves().await;
    });
}

#[test]
fn events_that_make_no_sense_are_refused_and_endless_ones_end_the_connection() {
    run(async {
        let victim = Victim::new().await;
        for body in [&[][..], &[7; 18], &[0xff; 40]] {
            let event = [&header(EVENT | V2, 0, body.len() as u64)[..], body].concat();
            let stream = victim.send(&event);
            let _ = stream.shutdown(Shutdown::Write);
            assert_eq!(rest(&stream), REFUSED);
        }
        assert_eq!(rest(&victim.send(&header(EVENT | V2, 0, u64::MAX))), REFUSED);
        assert_eq!(rest(&victim.send(&header(EVENT, 0, 8))), b"", "no event in version 1");
        assert!(victim.engine.try_notification().is_none());
        victim.serves().await;
    });
}

#[test]
fn a_version_1_write_with_its_end_right_behind_is_stored_whole() {
    run(async {
        let victim = Victim::new().await;
        for seed in 0..20 {
            let body = pattern(seed, 3_000_000);
            let request = header(WRITE, victim.region.addr(), body.len() as u64);
            drop(victim.send(&[&request[..], &body].concat()));
            eventually("it is stored", || contents(&victim.region, 0..body.len()) == body);
        }
        victim.serves().await;
    });
}

#[test]
fn half_a_write_with_its_end_behind_ends_the_connection() {
    run(async {
        let victim = Victim::new().await;
        for opcode in [WRITE, WRITE | V2] {
            let request = header(opcode, victim.region.addr(), 2_000_000);
            let stream = victim.send(&[&request[..], &[3; 1_000_000]].concat());
            stream.shutdown(Shutdown::Write).unwrap();
            assert_eq!(rest(&stream), b"", "it is not acknowledged");
        }
        assert_eq!(contents(&victim.region, 999_999..1_000_001), [3, 0]);
        victim.serves().await;
    });
}

#[test]
fn connections_that_come_and_go_leave_nothing() {
    run(async {
        let victim = Victim::new().await;
        let files = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let before = files();
        for at in 0..2_000 {
            let stream = victim.connect();
            if at % 3 == 0 {
                let _ = (&stream).write_all(&header(READ | V2, victim.region.addr(), 1 << 20));
            }
        }
        victim.serves().await;
        // Other tests of this process come and go as well, but not by hundreds.
        eventually("the connections are closed", || files() < before + 200);
    });
}
