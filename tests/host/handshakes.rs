//! Strangers at the Unix socket who greet wrongly, in part or not at all. The engine closes and
//! goes on.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags, memfd_create};
use serde_json::json;

use super::raw::{FDS_MAX, LANE_BYTES, Lanes, Raw, bell, memfd};
use super::{Honest, engine, run};

/// What else than memory can be passed.
pub(crate) fn no_memory() -> Vec<OwnedFd> {
    let (reader, writer) = std::io::pipe().unwrap();
    let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
    let files = ["/dev/null", "/dev/zero", "/", "/proc/self/mem", "/proc/self/exe"];
    let mut fds: Vec<OwnedFd> = files.map(|path| File::open(path).unwrap().into()).into();
    fds.extend([reader.into(), writer.into(), one.into(), other.into(), bell()]);
    fds.push(tempfile::tempfile().unwrap().into());
    fds
}

#[test]
fn first_words_that_are_wrong_end_the_connection() {
    run(async {
        let victim = engine();
        let mut honest = Honest::of(&victim).await;
        let good = Raw::to(victim.name()).hello();
        let changed = |key: &str, value: serde_json::Value| {
            let mut hello = good.clone();
            hello[key] = value;
            hello.to_string().into_bytes()
        };
        let firsts = [
            changed("version", json!(0)),
            changed("version", json!(1)),
            changed("version", json!(u64::MAX)),
            changed("version", json!("2")),
            changed("to", json!(1)),
            changed("to", json!(-1)),
            changed("name", json!(null)),
            changed("name", json!("x".repeat(5_000))),
            changed("from", json!(7)),
            changed("type", json!("lanes")),
            changed("type", json!("no such thing")),
            b"not JSON".to_vec(),
            vec![0xff; 4096],
            vec![b' '; 100_000],
            b"{".repeat(2_000),
            br#"{"type":"map","call":1,"addr":1,"len":1}"#.to_vec(),
        ];
        for first in firsts {
            let raw = Raw::to(victim.name());
            raw.send_bytes(&first, &[]);
            raw.is_closed();
            honest.is_served().await;
        }
    });
}

#[test]
fn descriptors_that_nobody_asked_for_end_the_connection_or_are_closed() {
    run(async {
        let victim = engine();
        let mut honest = Honest::of(&victim).await;
        let null = File::open("/dev/null").unwrap();
        for count in [17, 100, FDS_MAX] {
            let raw = Raw::to(victim.name());
            raw.send(&raw.hello(), &vec![null.as_fd(); count]);
            raw.is_closed();
            let raw = Raw::to(victim.name());
            let _lanes = raw.connected();
            raw.send(&json!({"type": "withdraw", "id": 1}), &vec![null.as_fd(); count]);
            raw.is_closed();
        }
        // A few are closed and forgotten.
        let raw = Raw::to(victim.name());
        let _lanes = raw.connected();
        raw.send(&json!({"type": "withdraw", "id": 1}), &[null.as_fd(); 16]);
        let map = json!({"type": "map", "call": 1, "addr": 1, "len": 1});
        assert_eq!(raw.ask(&map, &[null.as_fd(); 16])["type"], "refused");
        honest.is_served().await;
    });
}

#[test]
fn lanes_that_are_none_end_the_connection() {
    run(async {
        let victim = engine();
        let mut honest = Honest::of(&victim).await;
        let count = Raw::to(victim.name()).is_welcome();
        let bytes = vec![0; count * LANE_BYTES as usize];
        let grown = SealFlags::SHRINK | SealFlags::GROW;
        let mut memory = no_memory();
        memory.extend([
            memfd(&bytes, SealFlags::empty()).into(),
            memfd(&bytes, SealFlags::GROW).into(),
            memfd(&bytes[1..], grown).into(),
            memfd(&[], grown).into(),
            // It can't be mapped for writing.
            memfd(&bytes, grown | SealFlags::WRITE).into(),
        ]);
        let huge = MemfdFlags::ALLOW_SEALING | MemfdFlags::HUGETLB;
        memory.extend(memfd_create("huge", huge).ok());
        let bells: Vec<_> = (0..count).map(|_| bell()).collect();
        for lanes in &memory {
            let raw = Raw::to(victim.name());
            raw.is_welcome();
            let fds: Vec<_> =
                [lanes].into_iter().chain(&bells).map(|fd: &OwnedFd| fd.as_fd()).collect();
            raw.send(&json!({"type": "lanes"}), &fds);
            raw.is_closed();
        }
        honest.is_served().await;
        let good = Lanes::new(count);
        for bell in no_memory().iter().filter(|fd| !is_eventfd(fd)) {
            let raw = Raw::to(victim.name());
            raw.is_welcome();
            let mut fds = vec![good.file.as_fd()];
            fds.extend(vec![bell.as_fd(); count]);
            raw.send(&json!({"type": "lanes"}), &fds);
            raw.is_closed();
        }
        honest.is_served().await;
        for fds in [0, 1, count, count + 2] {
            let raw = Raw::to(victim.name());
            raw.is_welcome();
            raw.send(&json!({"type": "lanes"}), &vec![good.file.as_fd(); fds]);
            raw.is_closed();
        }
        honest.is_served().await;
    });
}

fn is_eventfd(fd: &OwnedFd) -> bool {
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(fd));
    std::fs::read_link(path).unwrap().to_string_lossy().contains("eventfd")
}

#[test]
fn who_stops_in_the_middle_of_the_handshake_is_let_go() {
    run(async {
        let victim = engine();
        let mut honest = Honest::of(&victim).await;
        // Gone at every step.
        drop(Raw::to(victim.name()));
        let raw = Raw::to(victim.name());
        raw.send(&raw.hello(), &[]);
        drop(raw);
        Raw::to(victim.name()).is_welcome();
        let raw = Raw::to(victim.name());
        raw.is_welcome();
        raw.send(&json!({"type": "lanes"}), &[]);
        drop(raw);
        Raw::to(victim.name()).connected();
        honest.is_served().await;
        // Silent at every step.
        let silent = [Raw::to(victim.name()), Raw::to(victim.name())];
        silent[1].is_welcome();
        silent.iter().for_each(Raw::is_closed);
        // Greeting twice.
        let raw = Raw::to(victim.name());
        let lanes = raw.connected();
        raw.send(&raw.hello(), &[]);
        raw.is_closed();
        lanes.is_closed(0);
        honest.is_served().await;
    });
}

#[test]
fn more_strangers_than_seats_do_not_keep_honest_peers_from_transfers() {
    run(async {
        let victim = engine();
        let mut honest = Honest::of(&victim).await;
        let (seats, refused) = (256, 40);
        let raws: Vec<_> = (0..seats + refused).map(|_| Raw::to(victim.name())).collect();
        honest.is_served().await;
        raws.iter().for_each(Raw::is_closed);
        drop(raws);
        let mut newcomer = Honest::of(&victim).await;
        newcomer.is_served().await;
    });
}
