//! A reference that is older than what its bytes hold now: stale after reuse, stale after a
//! restart, never OK with another prompt's bytes.

use kvrail::metadata::server::{MetadataServer, ServerLimits};
use kvrail::{Access, BlockPool, Engine, ErrorKind, GrantOptions, Landed, Lease, Metadata};

use super::{contents, ended, fill, on_every_way, pattern, region};

const BLOCK: usize = 16 << 10;

#[test]
fn a_block_that_was_taken_again_is_stale() {
    on_every_way(|pair| async move {
        let (far, near) = (region(&pair.owner, BLOCK), region(&pair.holder, BLOCK));
        let pool = BlockPool::new(far.clone(), BLOCK).unwrap();
        let block = pool.take().unwrap();
        block.lease().unwrap().copy_in(0, &pattern(1, BLOCK)).unwrap();
        let options = GrantOptions::default;
        let grant = pair.owner.grant_block(&block, Access::READ_WRITE, options()).unwrap();
        let old = grant.reference();
        assert_eq!(old.generation(), 1);
        let (status, _) = pair.read(near.lease(0..BLOCK).unwrap(), &old).await;
        status.unwrap();
        assert!(contents(&near) == pattern(1, BLOCK));
        drop(block);
        let block = pool.take().expect("nobody uses it");
        block.lease().unwrap().copy_in(0, &pattern(2, BLOCK)).unwrap();
        let new = pair.owner.grant_block(&block, Access::READ_WRITE, options()).unwrap();
        let (status, lease) = pair.read(near.lease(0..BLOCK).unwrap(), &old).await;
        let error = status.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Stale, "{:?}: {error}", pair.way);
        drop(lease);
        fill(&near, &pattern(3, BLOCK));
        let error = pair.write(&near, &old).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Stale, "{:?}: {error}", pair.way);
        assert!(contents(&far) == pattern(2, BLOCK), "nothing was written");
        let (status, _) = pair.read(near.lease(0..BLOCK).unwrap(), &new.reference()).await;
        status.unwrap();
        assert!(contents(&near) == pattern(2, BLOCK));
        assert!(!grant.holds() && new.holds());
    });
}

#[test]
fn a_region_that_was_unregistered_is_stale_and_so_is_a_stopped_engine() {
    on_every_way(|pair| async move {
        let (far, other) = (region(&pair.owner, BLOCK), region(&pair.owner, BLOCK));
        let near = region(&pair.holder, BLOCK);
        let grant = |region| {
            pair.owner.grant(region, 0..BLOCK, Access::READ, GrantOptions::default()).unwrap()
        };
        let (first, second) = (grant(&far), grant(&other));
        for grant in [&first, &second] {
            let (status, _) = pair.read(near.lease(0..BLOCK).unwrap(), &grant.reference()).await;
            status.unwrap();
        }
        pair.owner.unregister(far.clone()).await.unwrap();
        let (status, _) = pair.read(near.lease(0..BLOCK).unwrap(), &first.reference()).await;
        assert_eq!(status.unwrap_err().kind(), ErrorKind::Stale, "{:?}", pair.way);
        let (status, _) = pair.read(near.lease(0..BLOCK).unwrap(), &second.reference()).await;
        status.unwrap();
        let gone = pair.owner.grant(&far, 0..BLOCK, Access::READ, GrantOptions::default());
        assert_eq!(gone.unwrap_err().kind(), ErrorKind::Refused);
        pair.owner.stop().await;
        let (status, _) = pair.read(near.lease(0..BLOCK).unwrap(), &second.reference()).await;
        status.unwrap_err();
    });
}

/// An owner that starts again under its name: its table begins anew, with grants in the same slots
/// for the same addresses, and an old reference is none of them.
#[test]
fn a_reference_from_before_a_restart_is_not_taken_for_a_new_one() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let server = MetadataServer::start(("127.0.0.1", 0), ServerLimits::default()).unwrap();
        let url = format!("http://{}/metadata", server.address());
        let start = || {
            Engine::builder()
                .name("owner")
                .metadata(Metadata::Http(url.clone()))
                .advertise("127.0.0.1")
        };
        // One piece of memory that outlives its engine, as a cache of the application's does.
        let memory = kvrail::Eternal::new(BLOCK);
        let holder: Engine =
            Engine::builder().metadata(Metadata::Http(url.clone())).name("holder").start().unwrap();
        let near = region(&holder, BLOCK);
        let mut old = None;
        for round in 1..=2 {
            let owner = start().start().unwrap();
            let far = owner.register(memory.foreign(), Access::LOCAL).unwrap();
            fill(&far, &pattern(round, BLOCK));
            let grant = owner.grant(&far, 0..BLOCK, Access::READ_WRITE, GrantOptions::default());
            let grant = grant.unwrap();
            let peer = holder.open("owner").await.unwrap();
            if let Some(old) = old.replace(grant.reference()) {
                assert_eq!(old.addr(), grant.reference().addr());
                let mut batch = kvrail::Batch::new(&peer);
                batch.read_from(near.lease(0..BLOCK).unwrap(), &old, 0);
                let (status, leases) = ended(holder.transfer(batch).await);
                let error = status.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Stale);
                let may_be_mixed = error.landed() != Landed::No;
                assert_eq!(matches!(leases[..], [Lease::Undefined(_)]), may_be_mixed, "{error:?}");
                drop(leases);
                let mut batch = kvrail::Batch::new(&peer);
                batch.write_to(&near.share(0..BLOCK).unwrap(), &old, 0);
                let error = ended(holder.transfer(batch).await).0.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Stale);
                assert!(contents(&far) == pattern(2, BLOCK), "nothing was written");
            }
            owner.stop().await;
        }
        holder.stop().await;
    });
}
