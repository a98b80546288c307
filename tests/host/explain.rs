//! Which path transfers take, and the reasons that are given.

use kvrail::{Access, Candidate, Engine, Eternal, Means, PathKind, Verdict};

use super::raw::forged;
use super::{engine, region, run};

/// What is chosen, and what is said of the same-host path's two means.
fn summary(rows: &[Candidate]) -> (PathKind, Means, String, String) {
    let chosen: Vec<_> = rows.iter().filter(|row| row.verdict == Verdict::Chosen).collect();
    assert_eq!(chosen.len(), 1, "{rows:?}");
    let why = |means| rows.iter().find(|row| row.means == means).unwrap().why.clone();
    (chosen[0].path, chosen[0].means, why(Means::Mapped), why(Means::ProcessVm))
}

#[test]
fn an_engine_copies_for_itself() {
    run(async {
        let ours = engine();
        let memory = region(&ours, 4096, Access::READ_WRITE);
        let explanation = ours.explain(&ours.local(), &memory).await;
        for rows in [&explanation.write, &explanation.read] {
            let (path, means, mapped, _) = summary(rows);
            assert_eq!((path, means), (PathKind::Local, Means::Copy));
            assert!(mapped.contains("this engine"), "{mapped}");
        }
        assert!(explanation.to_string().contains("local"), "{explanation}");
    });
}

#[test]
fn memory_of_another_engine_is_mapped_and_foreign_memory_is_read() {
    run(async {
        let (ours, theirs) = (engine(), engine());
        let _far = region(&theirs, 4096, Access::READ);
        let peer = ours.open(theirs.name()).await.unwrap();
        let own = region(&ours, 4096, Access::LOCAL);
        let explanation = ours.explain(&peer, &own).await;
        for rows in [&explanation.write, &explanation.read] {
            let (path, means, ..) = summary(rows);
            assert_eq!((path, means), (PathKind::Host, Means::Mapped), "{explanation}");
        }
        let lent = ours.register(Eternal::new(4096).foreign(), Access::LOCAL).unwrap();
        let explanation = ours.explain(&peer, &lent).await;
        let (path, means, mapped, _) = summary(&explanation.write);
        assert_eq!((path, means), (PathKind::Host, Means::ProcessVm), "{explanation}");
        assert!(mapped.contains("foreign memory: allocate it"), "{mapped}");
        let _lent = theirs.register(Eternal::new(4096).foreign(), Access::READ).unwrap();
        let peer = ours.open(theirs.name()).await.unwrap();
        let explanation = ours.explain(&peer, &own).await;
        let (_, means, mapped, process) = summary(&explanation.read);
        assert_eq!(means, Means::Mapped);
        assert!(mapped.contains("1 of the peer's 2") && process.contains("1 of the peer's 2"));
    });
}

#[test]
fn who_keeps_to_the_network_says_so() {
    run(async {
        let quiet = Engine::builder().same_host(false).start().unwrap();
        let open = engine();
        for (from, to, why) in
            [(&quiet, &open, "same_host(false)"), (&open, &quiet, "no Unix socket")]
        {
            let _far = region(to, 4096, Access::READ);
            let memory = region(from, 4096, Access::LOCAL);
            let peer = from.open(to.name()).await.unwrap();
            assert_eq!(peer.path(), PathKind::Tcp);
            let explanation = from.explain(&peer, &memory).await;
            for rows in [&explanation.write, &explanation.read] {
                let (path, means, mapped, process) = summary(rows);
                assert_eq!((path, means), (PathKind::Tcp, Means::Socket), "{explanation}");
                assert!(mapped.contains(why) && process.contains(why), "{explanation}");
            }
        }
    });
}

#[test]
fn a_peer_that_is_not_kvrail_goes_by_tcp() {
    run(async {
        let (ours, theirs) = (engine(), engine());
        let _far = region(&theirs, 4096, Access::READ);
        let name = forged(theirs.name(), |descriptor| {
            descriptor.as_object_mut().unwrap().remove("kvrail");
        });
        let peer = ours.open(&name).await.unwrap();
        let explanation = ours.explain(&peer, &region(&ours, 4096, Access::LOCAL)).await;
        let (path, _, mapped, _) = summary(&explanation.write);
        assert_eq!(path, PathKind::Tcp);
        assert!(mapped.contains("not kvrail"), "{mapped}");
    });
}

#[test]
fn a_peer_that_stopped_is_to_be_opened_again() {
    run(async {
        let (ours, theirs) = (engine(), engine());
        let _far = region(&theirs, 4096, Access::READ);
        let peer = ours.open(theirs.name()).await.unwrap();
        let memory = region(&ours, 4096, Access::LOCAL);
        theirs.stop().await;
        while peer.path() == PathKind::Host {
            tokio::task::yield_now().await;
        }
        let explanation = ours.explain(&peer, &memory).await;
        let (path, _, mapped, _) = summary(&explanation.write);
        assert_eq!(path, PathKind::Tcp);
        assert!(mapped.contains("open the peer again"), "{mapped}");
    });
}
