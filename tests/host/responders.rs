//! Peers that listen where an engine looks for one of its host, and answer wrongly: their engine
//! goes by TCP, or what is out ends.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use kvrail::{Access, Batch, Engine, ErrorKind, PathKind, Peer, Region};
use rustix::fs::SealFlags;
use serde_json::{Value, json};

use super::handshakes::no_memory;
use super::raw::{
    CLOSED, Lanes, Listening, REPLY_HEAD, REQUEST_HEAD, Raw, SEALED, bell, memfd, words,
};
use super::{contents, engine, fill, pattern, region, run};

/// Bytes of a ledger of either kind: a word for each region that an engine can have, or four for
/// each grant.
const LEDGER_BYTES: usize = kvrail::limits::GRANTS_MAX * 32;

fn ledger() -> File {
    memfd(&vec![0; LEDGER_BYTES], SEALED)
}

/// Ledgers that could be changed or cut under their readers, or that are too short.
fn unfit() -> [OwnedFd; 3] {
    let bytes = vec![0; LEDGER_BYTES];
    let [open, growing] = [SealFlags::empty(), SealFlags::SHRINK].map(|seals| memfd(&bytes, seals));
    [open, growing, memfd(&bytes[8..], SEALED)].map(OwnedFd::from)
}

fn changed(raw: &Raw, key: &str, value: Value) -> Value {
    let mut message = welcome(raw, 1);
    message[key] = value;
    message
}

fn welcome(raw: &Raw, lanes: usize) -> Value {
    let (incarnation, lanes) = (raw.incarnation, vec![Value::Null; lanes]);
    json!({
        "type": "welcome",
        "version": 4,
        "incarnation": incarnation,
        "lanes": lanes,
        "token": [raw.token.0, raw.token.1],
    })
}

/// Welcomes an engine with one lane, as an honest peer does; the lane and the engine's bell.
fn welcomed(raw: &Raw) -> (Lanes, OwnedFd) {
    let (ledger, bell) = (ledger(), bell());
    raw.send(&welcome(raw, 1), &[ledger.as_fd(), ledger.as_fd(), bell.as_fd()]);
    let (message, mut fds) = raw.receive().unwrap();
    assert_eq!((&message["type"], fds.len()), (&json!("lanes"), 2));
    raw.send(&json!({"type": "ready"}), &[]);
    let bell = fds.pop().unwrap();
    (Lanes::of(fds.pop().unwrap(), 1), bell)
}

/// Opens a peer whose Unix socket is served by `serve`, and whose TCP port is a real engine's.
async fn opened(
    ours: &Engine,
    real: &Engine,
    serve: impl FnOnce(Raw) + Send + 'static,
) -> (Peer, std::thread::JoinHandle<()>) {
    let listening = Listening::new();
    let name = listening.instead_of(real.name());
    let server = std::thread::spawn(move || serve(listening.accept()));
    (ours.open(&name).await.unwrap(), server)
}

async fn written(ours: &Engine, peer: &Peer, to: &Region, seed: u64) -> Result<(), ErrorKind> {
    let near = region(ours, to.len(), Access::LOCAL);
    fill(&near, &pattern(seed, near.len()));
    let mut batch = Batch::new(peer);
    batch.write(&near.share(0..near.len()).unwrap(), to.addr());
    batch.deadline(Duration::from_secs(20));
    ours.transfer(batch).await.map(drop).map_err(|failed| failed.error().kind())
}

#[test]
fn a_welcome_that_is_wrong_leaves_tcp() {
    run(async {
        let (ours, real) = (engine(), engine());
        let far = region(&real, 100_000, Access::READ_WRITE);
        type Wrong = Box<dyn FnOnce(Raw) + Send>;
        let mut wrong: Vec<Wrong> = vec![
            Box::new(drop),
            Box::new(|raw| raw.send_bytes(b"not JSON", &[])),
            Box::new(|raw| raw.send_bytes(&[b' '; 60_000], &[])),
            Box::new(|raw| raw.send(&json!({"type": "ready"}), &[])),
            Box::new(|raw| raw.send(&welcome(&raw, 1), &[])),
            Box::new(|raw| raw.send(&welcome(&raw, 0), &[ledger().as_fd(); 2])),
            Box::new(|raw| raw.send(&welcome(&raw, 9), &[ledger().as_fd(); 11])),
            Box::new(|raw| raw.send(&welcome(&raw, 1), &[bell().as_fd(); 100])),
            // Silent until the engine gives up.
            Box::new(|raw| raw.is_closed()),
            Box::new(|raw| {
                raw.send(&welcome(&raw, 1), &[ledger().as_fd(), bell().as_fd()]);
                raw.is_closed();
            }),
            Box::new(|raw| {
                raw.send(&welcome(&raw, 1), &[ledger().as_fd(), ledger().as_fd(), bell().as_fd()]);
                raw.receive().unwrap();
                raw.send(&json!({"type": "gone", "id": 1}), &[]);
                raw.is_closed();
            }),
        ];
        for (key, value) in [
            ("version", json!(1)),
            ("incarnation", json!(5)),
            ("lanes", json!(2)),
            ("lanes", json!(-1)),
            ("lanes", json!(u64::MAX)),
        ] {
            wrong.push(Box::new(move |raw| {
                let (ledger, bell) = (ledger(), bell());
                let fds = [ledger.as_fd(), ledger.as_fd(), bell.as_fd()];
                raw.send(&changed(&raw, key, value), &fds);
                raw.is_closed();
            }));
        }
        for fd in no_memory().into_iter().chain(unfit()) {
            let place = wrong.len() % 2;
            wrong.push(Box::new(move |raw| {
                let (ledger, bell) = (ledger(), bell());
                let mut fds = [ledger.as_fd(), ledger.as_fd(), bell.as_fd()];
                fds[place] = fd.as_fd();
                raw.send(&welcome(&raw, 1), &fds);
                raw.is_closed();
            }));
        }
        for fd in no_memory().into_iter().take(9) {
            wrong.push(Box::new(move |raw| {
                raw.send(&welcome(&raw, 1), &[ledger().as_fd(), ledger().as_fd(), fd.as_fd()]);
                raw.is_closed();
            }));
        }
        for (seed, wrong) in wrong.into_iter().enumerate() {
            let (peer, server) = opened(&ours, &real, wrong).await;
            assert_eq!(peer.path(), PathKind::Tcp, "case {seed}");
            written(&ours, &peer, &far, seed as u64).await.unwrap();
            assert!(contents(&far) == pattern(seed as u64, far.len()));
            server.join().unwrap();
        }
    });
}

#[test]
fn answers_that_nobody_asked_for_end_the_session() {
    run(async {
        let (ours, real) = (engine(), engine());
        let far = region(&real, 4096, Access::READ_WRITE);
        let mapped = json!({"type": "mapped", "call": 1, "id": 1, "slot": 0, "addr": 1, "len": 1,
            "is_foreign": false});
        for message in [
            mapped,
            json!({"type": "taken", "call": 1}),
            json!({"type": "refused", "call": 1, "why": "x"}),
            json!({"type": "ready"}),
            json!({"type": "no such thing"}),
        ] {
            let (peer, server) = opened(&ours, &real, move |raw| {
                let _lanes = welcomed(&raw);
                raw.send(&json!({"type": "gone", "id": 77}), &[]);
                raw.send(&json!({"type": "added"}), &[]);
                raw.send(&message, &[]);
                raw.is_closed();
            })
            .await;
            server.join().unwrap();
            while peer.path() == PathKind::Host {
                tokio::task::yield_now().await;
            }
            written(&ours, &peer, &far, 1).await.unwrap();
        }
    });
}

#[test]
fn a_peer_that_does_not_say_what_it_can_read_is_reached_by_tcp() {
    run(async {
        let (ours, real) = (engine(), engine());
        let far = region(&real, 100_000, Access::READ_WRITE);
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let (peer, server) = opened(&ours, &real, move |raw| {
            let _lanes = welcomed(&raw);
            // Reads everything and answers nothing.
            let _ = ended.recv();
        })
        .await;
        assert_eq!(peer.path(), PathKind::Host);
        written(&ours, &peer, &far, 5).await.unwrap();
        assert!(contents(&far) == pattern(5, far.len()));
        let near = region(&ours, far.len(), Access::LOCAL);
        let mut batch = Batch::new(&peer);
        batch.read(near.lease(0..near.len()).unwrap(), far.addr());
        ours.transfer(batch).await.unwrap();
        assert!(contents(&near) == pattern(5, far.len()));
        ours.explain(&peer, &near).await;
        drop(end);
        server.join().unwrap();
    });
}

#[test]
fn memory_that_could_fault_is_not_read_from() {
    run(async {
        let (ours, real) = (engine(), engine());
        let far = region(&real, 100_000, Access::READ_WRITE);
        fill(&far, &pattern(6, far.len()));
        let bytes = vec![1; 100_000];
        let unfit = [memfd(&bytes, SealFlags::empty()), memfd(&bytes[1..], SEALED)];
        let mut fds: Vec<_> = unfit.map(|file| Some(OwnedFd::from(file))).into();
        fds.extend(no_memory().into_iter().map(Some));
        fds.push(None);
        for fd in fds {
            let (addr, len) = (far.addr(), far.len());
            let (peer, server) = opened(&ours, &real, move |raw| {
                let _lanes = welcomed(&raw);
                let (question, _) = raw.receive().unwrap();
                assert_eq!(question["type"], "map");
                let answer = json!({"type": "mapped", "call": question["call"], "id": 1, "slot": 0,
                    "addr": addr, "len": len, "is_foreign": false});
                let fds: Vec<_> = fd.iter().map(AsFd::as_fd).collect();
                raw.send(&answer, &fds);
                raw.is_closed();
            })
            .await;
            let near = region(&ours, far.len(), Access::LOCAL);
            let mut batch = Batch::new(&peer);
            batch.read(near.lease(0..near.len()).unwrap(), far.addr());
            ours.transfer(batch).await.unwrap();
            assert!(contents(&near) == pattern(6, far.len()), "by TCP, from the real one");
            drop(peer);
            server.join().unwrap();
        }
    });
}

/// A region that is gone by the peer's ledger says nothing: the read goes to the engine itself.
#[test]
fn memory_that_the_ledger_does_not_vouch_for_is_not_read() {
    run(async {
        let (ours, real) = (engine(), engine());
        let far = region(&real, 4096, Access::READ_WRITE);
        fill(&far, &[2; 4096]);
        for slot in [0, 9_000, u64::MAX] {
            let addr = far.addr();
            let (peer, server) = opened(&ours, &real, move |raw| {
                let _lanes = welcomed(&raw);
                let (question, _) = raw.receive().unwrap();
                let answer = json!({"type": "mapped", "call": question["call"], "id": 1,
                    "slot": slot, "addr": addr, "len": 4096, "is_foreign": false});
                raw.send(&answer, &[memfd(&[1; 4096], SEALED).as_fd()]);
                raw.is_closed();
            })
            .await;
            let near = region(&ours, 4096, Access::LOCAL);
            let mut batch = Batch::new(&peer);
            batch.read(near.lease(0..4096).unwrap(), addr);
            ours.transfer(batch).await.unwrap();
            assert!(contents(&near) == [2; 4096]);
            drop(peer);
            server.join().unwrap();
        }
    });
}

#[test]
fn replies_that_lie_end_what_is_out_and_the_caller_goes_on() {
    run(async {
        let (ours, real) = (engine(), engine());
        let far = region(&real, 4096, Access::READ_WRITE);
        type Lie = fn(&Lanes, u64);
        let lies: [Lie; 11] = [
            |lanes, _| lanes.answer(0, [0; 4]),
            |lanes, _| lanes.answer(0, [u64::MAX; 4]),
            |lanes, part| lanes.answer(0, [words::DONE, part + 1, 1, words::OK]),
            |lanes, part| lanes.answer(0, [words::DONE, part, 1, 9]),
            |lanes, part| lanes.answer(0, words::failed(part, 1, words::REFUSED)),
            |lanes, part| lanes.answer(0, words::failed(part, u64::MAX, words::REFUSED)),
            // None at all, and more than were asked for.
            |lanes, part| lanes.answer(0, [words::FAILED, part, 0, words::REFUSED]),
            |lanes, part| lanes.answer(0, [words::FAILED, part, 0, words::REFUSED | (2 << 32)]),
            |lanes, _| lanes.set(0, REPLY_HEAD, 5_000),
            // Closed, with a reply that nobody takes any more.
            |lanes, part| {
                lanes.set(0, CLOSED, 1);
                lanes.answer(0, [words::DONE, part, 1, words::OK]);
            },
            |lanes, part| {
                let failed = words::failed(part, 0, words::REFUSED);
                lanes.answer(0, failed);
                lanes.answer(0, failed);
            },
        ];
        for (number, lie) in lies.into_iter().enumerate() {
            let (peer, server) = opened(&ours, &real, move |raw| {
                let (lanes, bell) = welcomed(&raw);
                let (offer, _) = raw.receive().unwrap();
                assert_eq!(offer["type"], "offer");
                raw.send(&json!({"type": "taken", "call": offer["call"]}), &[]);
                let part = lanes.request(0, 0)[1];
                lie(&lanes, part);
                rustix::io::write(&bell, &1u64.to_ne_bytes()).unwrap();
                raw.is_closed();
            })
            .await;
            assert_eq!(peer.path(), PathKind::Host);
            assert_eq!(written(&ours, &peer, &far, 1).await, Err(ErrorKind::Lost), "{number}");
            // The session is over; the next transfer goes by TCP.
            written(&ours, &peer, &far, 2).await.unwrap();
            drop(peer);
            server.join().unwrap();
        }
    });
}

/// A caller looks for its transfer's end on its own thread for some microseconds. What a lane that
/// is lost still holds must not keep it there.
#[test]
fn a_lie_that_comes_while_the_caller_looks_itself_ends_its_looking() {
    run(async {
        let (ours, real) = (engine(), engine());
        let far = region(&real, 4096, Access::READ_WRITE);
        let near = region(&ours, 4096, Access::LOCAL);
        for _ in 0..30 {
            let (peer, server) = opened(&ours, &real, |raw| {
                let (lanes, _bell) = welcomed(&raw);
                let (offer, _) = raw.receive().unwrap();
                raw.send(&json!({"type": "taken", "call": offer["call"]}), &[]);
                let part = lanes.request(0, 0)[1];
                lanes.answer(0, [words::DONE, part, 1, words::OK]);
                while lanes.get(0, REQUEST_HEAD) < 2 {
                    std::hint::spin_loop();
                }
                lanes.set(0, REPLY_HEAD, 5_000);
                raw.is_closed();
            })
            .await;
            let write = || {
                let mut batch = Batch::new(&peer);
                batch.write(&near.share(0..4096).unwrap(), far.addr());
                ours.transfer(batch)
            };
            write().await.unwrap();
            let failed = write().await.unwrap_err();
            assert_eq!(failed.error().kind(), ErrorKind::Lost, "{failed}");
            drop((failed, peer));
            server.join().unwrap();
        }
    });
}
