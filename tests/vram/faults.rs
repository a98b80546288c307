//! GPUs that refuse, fail and get lost: a clear error each time, nothing hangs, and memory comes
//! back.

use kvrail::{Access, ErrorKind, Landed, Location, PathKind};

use super::{
    buffer, contents, engine_with, fake, fill, open, pages, pattern, read, region, run, write,
};

const GPU: Location = Location::Cuda(0);

#[test]
fn what_does_not_fit_is_refused_with_the_numbers() {
    run(async {
        let engine = engine_with(&fake());
        let refused = |len, location| {
            let error = engine.allocate(len, location, Access::READ).expect_err("no room");
            (error.kind(), error.to_string())
        };
        let (kind, text) = refused(300 << 20, GPU);
        assert!(kind == ErrorKind::Refused && text.contains("256.0 MiB free"), "{text}");
        let (kind, text) = refused(4096, Location::Cuda(9));
        assert!(kind == ErrorKind::Refused && text.contains("no GPU 9"), "{text}");
        assert_eq!(refused(0, GPU).0, ErrorKind::Refused);
    });
}

#[test]
fn no_vram_is_an_answer() {
    let engine = kvrail::Engine::builder().vram(false).start().expect("an engine");
    let error = engine.allocate(4096, GPU, Access::READ).expect_err("none");
    assert!(error.to_string().contains("vram(false)"), "{error}");
}

#[test]
fn a_launch_that_fails_fails_its_requests_and_leaves_the_lease_undefined() {
    run(async {
        let fake = fake();
        let engine = engine_with(&fake);
        let (near, far) = (region(&engine, 1 << 20, GPU), region(&engine, 1 << 20, GPU));
        fake.break_with(|faults| faults.no_launch = true);
        let pages = pages(256, 4096);
        let batch = read(&engine.local(), &near, &buffer(&far), &pages);
        let failed = engine.transfer(batch).await.expect_err("no launch");
        assert_eq!(failed.error().kind(), ErrorKind::Refused);
        assert_eq!(failed.error().landed(), Landed::Maybe);
        let leases = failed.into_outcome().into_leases();
        assert!(leases.iter().all(|lease| matches!(lease, kvrail::Lease::Undefined(_))));
        drop(leases);
        fake.break_with(|faults| faults.no_launch = false);
        let batch = read(&engine.local(), &near, &buffer(&far), &pages);
        engine.transfer(batch).await.expect("it works again");
    });
}

#[test]
fn a_device_that_is_lost_ends_what_is_under_way_on_every_path() {
    run(async {
        let (ours, theirs) = (fake(), fake());
        let (a, b) = (engine_with(&ours), engine_with(&theirs));
        let peer = open(&a, &b, PathKind::Host).await;
        let (near, far) = (region(&a, 1 << 20, GPU), region(&b, 1 << 20, GPU));
        let pages = pages(256, 4096);
        a.transfer(write(&peer, &near, &buffer(&far), &pages)).await.expect("a write");
        // Whoever copies is asleep behind it: a lost device rings nobody.
        for lost in [&theirs, &ours] {
            lost.break_with(|faults| faults.is_stalled = true);
            let write = a.transfer(write(&peer, &near, &buffer(&far), &pages));
            let read = a.transfer(read(&peer, &region(&a, 1 << 20, GPU), &buffer(&far), &pages));
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            lost.break_with(|faults| faults.is_lost = true);
            let (write, read) = (write.await, read.await);
            assert!(write.is_err() || read.is_err());
            lost.break_with(|faults| (faults.is_lost, faults.is_stalled) = (false, false));
        }
    });
}

#[test]
fn memory_that_can_t_be_mapped_goes_by_tcp() {
    run(async {
        let (ours, theirs) = (fake(), fake());
        ours.break_with(|faults| faults.no_import = true);
        theirs.break_with(|faults| (faults.no_import, faults.no_pin) = (true, true));
        let (a, b) = (engine_with(&ours), engine_with(&theirs));
        let peer = open(&a, &b, PathKind::Host).await;
        let (near, far) = (region(&a, 1 << 20, GPU), region(&b, 1 << 20, GPU));
        let (bytes, pages) = (pattern(3, 1 << 20), pages(256, 4096));
        fill(&near, &bytes);
        a.transfer(write(&peer, &near, &buffer(&far), &pages)).await.expect("a write");
        fill(&near, &vec![0; 1 << 20]);
        a.transfer(read(&peer, &near, &buffer(&far), &pages)).await.expect("a read");
        assert!(contents(&near) == bytes);
        let explained = a.explain(&peer, &near).await;
        let chosen = explained.write_path().expect("a path");
        assert_eq!(chosen.path, PathKind::Tcp, "{explained}");
        assert!(explained.to_string().contains("cuMemImportFromShareableHandle"), "{explained}");
    });
}

#[test]
fn a_thousand_openings_leave_nothing_behind() {
    run(async {
        let (ours, theirs) = (fake(), fake());
        let (a, b) = (engine_with(&ours), engine_with(&theirs));
        let near = region(&a, 64 << 10, GPU);
        let fds = || std::fs::read_dir("/proc/self/fd").expect("proc").count();
        let mut before = 0;
        for turn in 0..1000 {
            let peer = open(&a, &b, PathKind::Host).await;
            let far = region(&b, 64 << 10, GPU);
            a.transfer(write(&peer, &near, &buffer(&far), &pages(16, 4096)))
                .await
                .expect("a write");
            a.transfer(read(&peer, &near, &buffer(&far), &pages(16, 4096))).await.expect("a read");
            b.unregister(far).await.expect("quiet");
            a.close(peer).await.expect("closed");
            if turn == 20 {
                before = fds();
            }
        }
        a.unregister(near).await.expect("quiet");
        // What peers mapped goes when their sessions have heard of it.
        for _ in 0..500 {
            if (ours.allocations(), theirs.allocations()) == (0, 0) {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        assert_eq!((ours.allocations(), theirs.allocations()), (0, 0));
        assert_eq!((ours.pins(), theirs.pins()), (0, 0));
        assert!(fds() <= before + 8, "{} descriptors, {before} before", fds());
    });
}
