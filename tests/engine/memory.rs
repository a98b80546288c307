//! Regions come and go; what peers may do with them is what their owner said.

use std::time::{Duration, Instant};

use kvrail::topology::Memory;
use kvrail::{Access, Batch, ErrorKind, Eternal, Landed, Location, NumaPolicy};

use super::{contents, engine, fill, pair, pattern, region, run};

#[test]
fn permissions_bind_peers_and_a_refusal_hurts_nobody_else() {
    run(async {
        let (ours, theirs, peer) = pair().await;
        let readable = region(&theirs, 4096, Access::READ);
        let writable = region(&theirs, 1 << 20, Access::READ_WRITE);
        let hidden = region(&theirs, 4096, Access::LOCAL);
        let source = region(&ours, 1 << 20, Access::LOCAL);
        let bytes = pattern(3, source.len());
        fill(&source, &bytes);
        for _ in 0..10 {
            let mut batch = Batch::new(&peer);
            let page = |at: usize| source.share(at..at + 4096).unwrap();
            for at in (0..1 << 20).step_by(65_536) {
                batch.write(&page(at), writable.addr() + at as u64);
            }
            batch.write(&page(0), readable.addr());
            batch.write(&page(0), hidden.addr());
            batch.write(&page(0), writable.addr() + (1 << 20) - 1);
            batch.write(&page(4096), writable.addr() + 4096);
            let outcome = ours.transfer(batch).await.unwrap_err().into_outcome();
            let kinds: Vec<_> = outcome.statuses().iter().map(|s| s.as_ref().err()).collect();
            assert!(kinds[..16].iter().all(Option::is_none), "{kinds:?}");
            for refused in &kinds[16..19] {
                let error = refused.expect("it is not permitted");
                assert_eq!((error.kind(), error.landed()), (ErrorKind::Refused, Landed::No));
            }
            assert!(kinds[19].is_none(), "{kinds:?}");
        }
        assert!(contents(&readable).iter().chain(&contents(&hidden)).all(|&byte| byte == 0));
        assert_eq!(contents(&writable)[4096..8192], bytes[4096..8192]);
        let target = region(&ours, 4096, Access::LOCAL);
        let mut batch = Batch::new(&peer);
        batch.read(target.lease(0..4096).unwrap(), hidden.addr());
        let failed = ours.transfer(batch).await.unwrap_err();
        assert_eq!(failed.error().kind(), ErrorKind::Refused);
        assert_eq!(failed.into_outcome().into_leases().len(), 1, "the lease comes back");
    });
}

/// Whoever serves peers keeps a picture of the regions; it must not keep the memory.
#[test]
fn memory_that_was_unregistered_goes() {
    run(async {
        let (ours, theirs, peer) = pair().await;
        let source = region(&ours, 4096, Access::LOCAL);
        let target = region(&theirs, 4096, Access::WRITE);
        let start = format!("{:x}-", target.addr());
        let is_mapped = || {
            let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
            maps.lines().any(|line| line.starts_with(&start))
        };
        // Every shard is asked for it, more than once.
        for _ in 0..16 {
            let mut batch = Batch::new(&peer);
            batch.write(&source.share(0..4096).unwrap(), target.addr());
            ours.transfer(batch).await.unwrap();
        }
        assert!(is_mapped());
        theirs.unregister(target).await.unwrap();
        // Whoever was describing the regions to somebody may still be letting go of them.
        let patience = Instant::now() + Duration::from_secs(10);
        while is_mapped() {
            assert!(Instant::now() < patience, "nobody asks for it, and it is still there");
            std::thread::yield_now();
        }
    });
}

#[test]
fn foreign_memory_is_written_in_place_until_it_is_unregistered() {
    run(async {
        let (ours, theirs, peer) = pair().await;
        let memory = Eternal::new(1 << 20);
        let target = theirs.register(memory.foreign(), Access::READ_WRITE).unwrap();
        let source = region(&ours, 1 << 20, Access::LOCAL);
        let bytes = pattern(4, source.len());
        fill(&source, &bytes);
        let mut batch = Batch::new(&peer);
        batch.write(&source.share(0..source.len()).unwrap(), target.addr());
        ours.transfer(batch).await.unwrap();
        theirs.unregister(target.clone()).await.unwrap();
        assert!(memory.contents() == bytes);
        fill(&source, &pattern(5, source.len()));
        let mut batch = Batch::new(&peer);
        batch.write(&source.share(0..4096).unwrap(), target.addr());
        let failed = ours.transfer(batch).await.unwrap_err();
        assert_eq!(failed.error().kind(), ErrorKind::Refused);
        assert!(memory.contents() == bytes, "it is not written any more");
        assert_eq!(theirs.unregister(target).await.unwrap_err().kind(), ErrorKind::Refused);
    });
}

#[test]
fn impossible_regions_are_refused_with_the_numbers() {
    let engine = engine();
    let node = kvrail::Location::Cpu(None);
    for (len, what) in [(0, "0 bytes"), (1 << 50, "bytes free")] {
        let error = engine.allocate(len, node, Access::READ).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.to_string().contains(what), "{error}");
    }
    let memory = Eternal::new(8192);
    engine.register(memory.foreign(), Access::READ).unwrap();
    let error = engine.register(memory.foreign(), Access::READ).unwrap_err();
    assert!(error.to_string().contains("overlaps"), "{error}");
}

#[test]
fn a_region_is_on_the_node_that_its_policy_names() {
    let engine = engine();
    let memory = Memory::here();
    let Some(node) = memory.usable().next().map(|node| node.id) else {
        // A kernel without nodes has memory without binding, and says why there is no other.
        let bind = NumaPolicy::Bind(vec![0]);
        let error = engine.allocate_with(4096, &bind, Access::READ).unwrap_err();
        assert!(error.to_string().contains("leave the node open"), "{error}");
        return;
    };
    for (policy, location) in [
        (NumaPolicy::Bind(vec![node]), Location::Cpu(Some(node))),
        (NumaPolicy::Prefer(node), Location::Cpu(Some(node))),
        (NumaPolicy::Interleave(vec![node]), Location::Cpu(None)),
    ] {
        let region = engine.allocate_with(1 << 20, &policy, Access::READ).unwrap();
        assert_eq!(region.location(), location, "{policy}");
        assert!(region.node().is_none_or(|found| found == node), "{policy}");
    }
    for policy in [NumaPolicy::Bind(vec![]), NumaPolicy::Prefer(4000)] {
        let error = engine.allocate_with(1 << 20, &policy, Access::READ).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
        assert!(error.to_string().contains("what fits now"), "{error}");
    }
}
