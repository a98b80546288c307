//! Peers that are killed or stopped while something is out: it ends, leases come back, others are
//! served meanwhile, and nothing wrong shows afterwards.

use std::time::Duration;

use kvrail::{Access, Batch, Engine, ErrorKind, PathKind, Peer, Region};

use super::process::{Far, Process};
use super::{Honest, contents, engine, fill, pattern, region, run};

const MIB: usize = 1 << 20;

/// Resolves to how a transfer failed.
type Job = tokio::task::JoinHandle<Option<ErrorKind>>;

/// Posts a transfer between `near` and what a peer has at `far`.
fn one(engine: &Engine, peer: &Peer, near: &Region, far: Far, write: bool) -> Job {
    let mut batch = Batch::new(peer);
    match write {
        true => batch.write(&near.share(0..near.len()).unwrap(), far.addr),
        false => batch.read(near.lease(0..near.len()).unwrap(), far.addr),
    };
    let transfer = engine.transfer(batch);
    tokio::spawn(async move { transfer.await.err().map(|failed| failed.error().kind()) })
}

/// Posts as many as can be under way at once and keep a peer busy.
fn many(engine: &Engine, peer: &Peer, near: &Region, far: Far, write: bool) -> Vec<Job> {
    let count = if write { 40 } else { 1 };
    (0..count).map(|_| one(engine, peer, near, far, write)).collect()
}

/// A peer is killed while we write to it or read from it.
async fn killed(memory: &str, write: bool) {
    let ours = engine();
    let mut honest = Honest::of(&ours).await;
    let (mut child, name) = Process::start("");
    let far = child.region(&format!("{memory} {} both", 32 * MIB));
    let peer = ours.open(&name).await.unwrap();
    assert_eq!(peer.path(), PathKind::Host);
    let near = region(&ours, 32 * MIB, Access::LOCAL);
    let mut jobs = many(&ours, &peer, &near, far, write);
    if write {
        // The first has ended, so the others are under way.
        assert_eq!(jobs.remove(0).await.unwrap(), None);
    }
    child.kill();
    let mut ends = Vec::new();
    for job in jobs {
        ends.push(job.await.unwrap());
    }
    let is_fine = |end: &Option<ErrorKind>| matches!(end, None | Some(ErrorKind::Lost));
    assert!(ends.iter().all(is_fine), "{ends:?}");
    assert!(!write || ends.contains(&Some(ErrorKind::Lost)), "it was killed too late");
    assert!(!near.is_leased(0..near.len()), "leases are back");
    // Nobody is there any more, which is noticed soon: what is mapped stays readable until then.
    while one(&ours, &peer, &near, far, false).await.unwrap() != Some(ErrorKind::Lost) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    honest.is_served().await;
    let (mut child, name) = Process::start("");
    let far = child.region(&format!("{memory} 4096 both"));
    let peer = ours.open(&name).await.unwrap();
    assert_eq!(peer.path(), PathKind::Host, "the next one is met as ever");
    let near = region(&ours, 4096, Access::LOCAL);
    fill(&near, &pattern(3, 4096));
    assert_eq!(one(&ours, &peer, &near, far, true).await.unwrap(), None);
    assert_eq!(child.ask(&format!("check {} 3", far.number)), "same");
}

#[test]
fn a_peer_is_killed_while_we_write_to_it() {
    run(killed("allocate", true));
}

#[test]
fn a_peer_is_killed_while_we_write_to_its_foreign_memory() {
    run(killed("register", true));
}

#[test]
fn a_peer_is_killed_while_we_read_from_it() {
    run(killed("allocate", false));
}

#[test]
fn a_peer_is_killed_while_we_read_its_foreign_memory() {
    run(killed("register", false));
}

#[test]
fn a_peer_is_killed_while_it_writes_and_reads_here() {
    run(async {
        let ours = engine();
        let mut honest = Honest::of(&ours).await;
        for memory in ["allocate", "register"] {
            for what in ["write", "read"] {
                let (mut child, _) = Process::start("");
                let near = child.region(&format!("{memory} {} local", 64 * MIB));
                let target = region(&ours, 64 * MIB, Access::READ_WRITE);
                assert_eq!(child.ask(&format!("open {}", ours.name())), "Host");
                child.ask(&format!("{what} {} {}", near.number, target.addr()));
                child.kill();
                honest.is_served().await;
                ours.unregister(target).await.unwrap();
            }
        }
    });
}

#[test]
fn a_stopped_peer_is_closed_and_opened_again() {
    run(async {
        let ours = engine();
        let (mut child, name) = Process::start("");
        let far = child.region(&format!("allocate {} both", 8 * MIB));
        let peer = ours.open(&name).await.unwrap();
        let near = region(&ours, 8 * MIB, Access::LOCAL);
        fill(&near, &pattern(2, near.len()));
        assert_eq!(one(&ours, &peer, &near, far, true).await.unwrap(), None);
        child.stop();
        let jobs = many(&ours, &peer, &near, far, true);
        ours.close(peer.clone()).await.unwrap();
        for job in jobs {
            assert_eq!(job.await.unwrap(), Some(ErrorKind::Closed));
        }
        // Leases come back with the outcomes, which other threads have taken.
        assert!(child.is_stopped() && !near.is_leased(0..near.len()), "all of it has ended");
        child.signal(rustix::process::Signal::CONT);
        let again = ours.open(&name).await.unwrap();
        assert_eq!(again.path(), PathKind::Host);
        assert_eq!(one(&ours, &again, &near, far, true).await.unwrap(), None);
        assert_eq!(child.ask(&format!("check {} 2", far.number)), "same");
        assert_eq!(one(&ours, &peer, &near, far, true).await.unwrap(), Some(ErrorKind::Closed));
    });
}

/// Has an end of this kind though the peer is stopped.
async fn ends(engine: &Engine, batch: Batch, kind: ErrorKind) {
    let failed = engine.transfer(batch).await.unwrap_err();
    assert_eq!(failed.error().kind(), kind, "{failed}");
}

#[test]
fn a_stopped_peer_holds_nobody_up_and_deadlines_end() {
    run(async {
        let ours = engine();
        let mut honest = Honest::of(&ours).await;
        let (mut child, name) = Process::start("");
        let (far, other) =
            (child.region("allocate 8388608 both"), child.region("allocate 4096 both"));
        child.ask(&format!("fill {} 1", other.number));
        child.ask("counter 5");
        let peer = ours.open(&name).await.unwrap();
        let known = region(&ours, 8 * MIB, Access::LOCAL);
        fill(&known, &pattern(2, known.len()));
        let write = |source: &Region| {
            let mut batch = Batch::new(&peer);
            batch.write(&source.share(0..source.len()).unwrap(), far.addr);
            batch.deadline(Duration::from_millis(100));
            batch
        };
        ours.transfer(write(&known)).await.unwrap();
        child.stop();
        // Neither does it say whether it can read what it never heard of.
        let unknown = region(&ours, MIB, Access::LOCAL);
        ends(&ours, write(&unknown), ErrorKind::Expired).await;
        let mut batch = Batch::new(&peer);
        batch.read(unknown.lease(0..MIB).unwrap(), far.addr).deadline(Duration::from_millis(100));
        ends(&ours, batch, ErrorKind::Expired).await;
        let mut batch = write(&known);
        batch.count(5, 1).notify("never");
        ends(&ours, batch, ErrorKind::Expired).await;
        assert!(!known.is_leased(0..known.len()) && !unknown.is_leased(0..MIB));
        ours.explain(&peer, &region(&ours, 4096, Access::LOCAL)).await;
        honest.is_served().await;
        assert!(child.is_stopped());
        child.signal(rustix::process::Signal::CONT);
        assert_eq!(child.ask(&format!("check {} 1", other.number)), "same");
        assert_eq!(child.ask("counter 5"), "0", "what has expired announces nothing");
        assert!(contents(&known) == pattern(2, known.len()));
        let peer = ours.open(&name).await.unwrap();
        assert_eq!(peer.path(), PathKind::Host, "it is met again");
        let mut batch = Batch::new(&peer);
        batch.write(&known.share(0..known.len()).unwrap(), far.addr);
        ours.transfer(batch).await.unwrap();
        assert_eq!(child.ask(&format!("check {} 2", far.number)), "same");
        honest.is_served().await;
    });
}

#[test]
fn a_peer_that_was_stopped_for_a_moment_is_no_stranger() {
    run(async {
        let ours = engine();
        let (mut child, name) = Process::start("");
        let far = child.region(&format!("allocate {} both", 40 * MIB));
        let peer = ours.open(&name).await.unwrap();
        let near = region(&ours, 40 * MIB, Access::LOCAL);
        fill(&near, &pattern(7, near.len()));
        let count = near.len() / 4096;
        let batch = || {
            // More than a ring holds.
            let pages = kvrail::Pages {
                page_bytes: 4096,
                local: (0..count as u64).map(|page| page * 4096).collect(),
                remote: (0..count as u64).map(|page| far.addr + page * 4096).collect(),
            };
            let mut batch = Batch::new(&peer);
            batch.write_pages(&near.share(0..near.len()).unwrap(), pages);
            batch
        };
        ours.transfer(batch()).await.unwrap();
        for round in 0..4 {
            child.stop();
            let mut ending = batch();
            ending.deadline(Duration::from_millis(30));
            let transfer = ours.transfer(ending);
            tokio::time::sleep(Duration::from_millis(50 * round)).await;
            child.signal(rustix::process::Signal::CONT);
            if let Err(failed) = transfer.await {
                assert_eq!(failed.error().kind(), ErrorKind::Expired, "{failed}");
            }
            ours.transfer(batch()).await.unwrap();
            assert_eq!(peer.path(), PathKind::Host);
        }
        assert_eq!(child.ask(&format!("check {} 7", far.number)), "same");
    });
}
