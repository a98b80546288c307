//! GPUs that refuse, fail and get lost: a clear error each time, nothing hangs, and memory comes
//! back.

use std::sync::Arc;

use kvrail::{Access, ErrorKind, Landed, Location, PathKind};
use kvrail_reactors::cuda::fake::Fake;

use super::{
    VRAM_BYTES, buffer, contents, engine_with, fake, fill, open, pages, pattern, read, region, run,
    scattered, write,
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
        a.transfer(read(&peer, &near, &buffer(&far), &pages)).await.expect("a read");
        // Whoever copies is asleep behind it: a lost device rings nobody. Writes are made by the
        // peer's, reads by ours.
        let started = |write_it: bool| match write_it {
            true => a.transfer(write(&peer, &near, &buffer(&far), &pages)),
            false => a.transfer(read(&peer, &near, &buffer(&far), &pages)),
        };
        for (lost, write_it) in [(&theirs, true), (&ours, false)] {
            lost.break_with(|faults| faults.is_stalled = true);
            let transfer = started(write_it);
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            lost.break_with(|faults| faults.is_lost = true);
            let failed = transfer.await.expect_err("the device is lost");
            assert_eq!(failed.error().kind(), ErrorKind::Lost, "{}", failed.error());
            assert_eq!(failed.error().landed(), Landed::Maybe);
            assert!(failed.error().to_string().contains("GPU"), "{}", failed.error());
            lost.break_with(|faults| (faults.is_lost, faults.is_stalled) = (false, false));
        }
    });
}

#[test]
fn what_the_peer_s_gpu_refuses_is_said_to_be_its_gpu_s() {
    run(async {
        let (ours, theirs) = (fake(), fake());
        let (a, b) = (engine_with(&ours), engine_with(&theirs));
        let peer = open(&a, &b, PathKind::Host).await;
        let (near, far) = (region(&a, 1 << 20, GPU), region(&b, 1 << 20, GPU));
        let pages = pages(256, 4096);
        theirs.break_with(|faults| faults.no_launch = true);
        let failed =
            a.transfer(write(&peer, &near, &buffer(&far), &pages)).await.expect_err("no launch");
        assert!(failed.error().to_string().contains("the peer's GPU"), "{}", failed.error());
        theirs.break_with(|faults| faults.no_launch = false);
        a.transfer(write(&peer, &near, &buffer(&far), &pages)).await.expect("it works again");
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
fn gpus_that_do_not_reach_each_other_go_by_tcp() {
    run(async {
        let apart = || Arc::new(Fake::new(2, VRAM_BYTES).apart());
        let (a, b) = (engine_with(&apart()), engine_with(&apart()));
        let peer = open(&a, &b, PathKind::Host).await;
        let (near, far) = (region(&a, 1 << 20, GPU), region(&b, 1 << 20, Location::Cuda(1)));
        let (bytes, pages) = (pattern(3, 1 << 20), pages(256, 4096));
        fill(&near, &bytes);
        a.transfer(write(&peer, &near, &buffer(&far), &pages)).await.expect("a write");
        assert!(contents(&far) == scattered(&bytes, &pages));
        fill(&near, &vec![0; 1 << 20]);
        a.transfer(read(&peer, &near, &buffer(&far), &pages)).await.expect("a read");
        assert!(contents(&near) == bytes);
        let explained = a.explain(&peer, &near).await;
        assert!(explained.to_string().contains("does not reach"), "{explained}");
    });
}

#[test]
fn pins_go_when_the_memory_is_taken_back() {
    run(async {
        let fake = fake();
        let engine = engine_with(&fake);
        let (near, far) =
            (region(&engine, 1 << 20, Location::Cpu(None)), region(&engine, 1 << 20, GPU));
        let batch = write(&engine.local(), &near, &buffer(&far), &pages(256, 4096));
        engine.transfer(batch).await.expect("a write");
        assert_eq!(fake.pins(), 1);
        // Somebody may hold it still, whose memory it isn't.
        let held = near.clone();
        engine.unregister(near).await.expect("quiet");
        assert_eq!(fake.pins(), 0);
        drop(held);
    });
}
