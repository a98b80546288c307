//! Memory that a stranger passes to be mapped, and memory of ours that it asks for.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use kvrail::{Access, Engine};
use rustix::fs::{FallocateFlags, SealFlags, fallocate, ftruncate};
use rustix::io::Errno;
use serde_json::json;

use super::handshakes::no_memory;
use super::raw::{Raw, SEALED, memfd, words};
use super::{Honest, contents, engine, pattern, region, run};

#[test]
fn memory_that_could_fault_is_not_mapped_and_the_session_goes_on() {
    run(async {
        let victim = engine();
        let mut honest = Honest::of(&victim).await;
        let raw = Raw::to(victim.name());
        let lanes = raw.connected();
        let bytes = pattern(1, 8192);
        let mut id = 0;
        let mut refused = |raw: &Raw, len, fd: Option<&OwnedFd>| {
            id += 1;
            raw.offer(id, len, fd.map(AsFd::as_fd)).expect("it must not be taken")
        };
        for fd in no_memory() {
            assert!(refused(&raw, 1, Some(&fd)).contains("not a memfd sealed"));
        }
        let seals = [SealFlags::empty(), SealFlags::SHRINK, SealFlags::FUTURE_WRITE];
        for fd in seals.map(|seals| OwnedFd::from(memfd(&bytes, seals))) {
            assert!(refused(&raw, 8192, Some(&fd)).contains("not a memfd sealed"));
        }
        let short = OwnedFd::from(memfd(&bytes, SEALED));
        for len in [8193, 1 << 40, u64::MAX, 0] {
            assert!(refused(&raw, len, Some(&short)).contains("announced"));
        }
        assert!(refused(&raw, 8192, None).contains("no memfd came along"));
        // All of it was said in order, and copying goes on by the same session.
        let fd = memfd(&bytes, SEALED);
        assert_eq!(raw.offer(1_000, 8192, Some(fd.as_fd())), None);
        let target = region(&victim, 8192, Access::WRITE);
        lanes.ask(0, &[words::copy(1, 1_000, 0, target.addr(), 8192)]);
        assert_eq!(lanes.reply(0), Some([words::DONE, 1, 1, words::OK]));
        assert!(contents(&target) == bytes);
        honest.is_served().await;
    });
}

#[test]
fn holes_are_not_mapped_since_reading_them_would_take_memory() {
    run(async {
        let victim = engine();
        let mut honest = Honest::of(&victim).await;
        let raw = Raw::to(victim.name());
        let _lanes = raw.connected();
        let hollow = memfd(&[], SealFlags::empty());
        ftruncate(&hollow, 1 << 40).unwrap();
        rustix::fs::fcntl_add_seals(&hollow, SEALED).unwrap();
        let why = raw.offer(1, 1 << 40, Some(hollow.as_fd())).expect("a TiB of holes");
        assert!(why.contains("holes"), "{why}");
        assert!(raw.offer(2, 4096, Some(hollow.as_fd())).is_some());
        honest.is_served().await;
    });
}

#[test]
fn what_was_offered_can_not_be_taken_away_and_is_taken_once() {
    run(async {
        let victim = engine();
        let raw = Raw::to(victim.name());
        let lanes = raw.connected();
        let bytes = pattern(2, 65_536);
        let fd = memfd(&bytes, SEALED);
        assert_eq!(raw.offer(7, 65_536, Some(fd.as_fd())), None);
        assert_eq!(ftruncate(&fd, 0), Err(Errno::PERM));
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        assert_eq!(fallocate(&fd, punch, 0, 65_536), Err(Errno::PERM));
        assert!((&fd).write(b"x").is_err());
        assert!(raw.offer(7, 65_536, Some(fd.as_fd())).unwrap().contains("offered already"));
        let target = region(&victim, 65_536, Access::WRITE);
        let copy = |part| words::copy(part, 7, 0, target.addr(), 65_536);
        lanes.ask(0, &[copy(1)]);
        assert_eq!(lanes.reply(0), Some([words::DONE, 1, 1, words::OK]));
        assert!(contents(&target) == bytes);
        // Withdrawn, it is no source any more, and may come anew.
        raw.send(&json!({"type": "withdraw", "id": 7}), &[]);
        raw.send(&json!({"type": "withdraw", "id": 99}), &[]);
        let map = json!({"type": "map", "call": 3, "addr": 1, "len": 1});
        assert_eq!(raw.ask(&map, &[])["type"], "refused");
        lanes.ask(0, &[copy(2)]);
        assert_eq!(lanes.reply(0), Some(words::failed(2, 0, words::UNREADABLE)));
        assert_eq!(lanes.reply(0), Some([words::DONE, 2, 1, words::OK]));
        assert_eq!(raw.offer(7, 65_536, Some(fd.as_fd())), None);
        lanes.ask(0, &[copy(3)]);
        assert_eq!(lanes.reply(0), Some([words::DONE, 3, 1, words::OK]));
    });
}

#[test]
fn foreign_memory_that_is_not_there_is_refused_or_unreadable() {
    run(async {
        let victim = engine();
        let mut honest = Honest::of(&victim).await;
        let raw = Raw::to(victim.name());
        let lanes = raw.connected();
        let offer = |id: u64, addr: u64, len: u64| {
            json!({"type": "offer", "call": 1, "id": id, "addr": addr, "len": len,
                "is_foreign": true})
        };
        for addr in [0, 8, 1 << 63, u64::MAX] {
            assert_eq!(raw.ask(&offer(1, addr, 4096), &[])["type"], "refused", "{addr:#x}");
        }
        // Its first byte is there, and what follows is not.
        let there = &raw as *const Raw as u64;
        assert_eq!(raw.ask(&offer(2, there, u64::MAX), &[])["type"], "taken");
        let target = region(&victim, 4096, Access::WRITE);
        lanes.ask(0, &[words::copy(5, 2, 1 << 62, target.addr(), 4096)]);
        assert_eq!(lanes.reply(0), Some(words::failed(5, 0, words::UNREADABLE)));
        assert_eq!(lanes.reply(0), Some([words::DONE, 5, 1, words::OK]));
        honest.is_served().await;
    });
}

/// What the engine says to a question for its memory.
fn map(raw: &Raw, addr: u64, len: u64) -> (serde_json::Value, Vec<OwnedFd>) {
    raw.send(&json!({"type": "map", "call": 4, "addr": addr, "len": len}), &[]);
    raw.receive().unwrap()
}

#[test]
fn memory_of_ours_is_given_as_far_as_it_is_permitted_and_read_only() {
    run(async {
        let victim: Engine = engine();
        let raw = Raw::to(victim.name());
        let _lanes = raw.connected();
        let memory = region(&victim, 8192, Access::READ);
        // Asked twice, it is given twice.
        for _ in 0..2 {
            let (answer, fds) = map(&raw, memory.addr() + 100, 10);
            assert_eq!((&answer["type"], fds.len()), (&json!("mapped"), 1), "{answer}");
            assert_eq!(answer["addr"], json!(memory.addr()));
            let mut file = std::fs::File::from(fds.into_iter().next().unwrap());
            assert!(file.write(b"x").is_err(), "nobody but the owner writes");
            assert_eq!(ftruncate(&file, 0), Err(Errno::PERM));
        }
        for access in [Access::LOCAL, Access::WRITE] {
            let hidden = region(&victim, 4096, access);
            let (answer, fds) = map(&raw, hidden.addr(), 1);
            assert_eq!((&answer["type"], fds.len()), (&json!("refused"), 0));
        }
        for (addr, len) in [
            (memory.addr(), 0),
            (memory.addr(), 8193),
            (memory.addr() + 8192, 1),
            (memory.addr() - 1, 2),
            (0, u64::MAX),
            (u64::MAX, u64::MAX),
        ] {
            assert_eq!(map(&raw, addr, len).0["type"], "refused", "{addr:#x} {len}");
        }
        let addr = memory.addr();
        victim.unregister(memory).await.unwrap();
        assert_eq!(raw.receive().unwrap().0["type"], "gone");
        assert_eq!(map(&raw, addr, 1).0["type"], "refused");
    });
}
