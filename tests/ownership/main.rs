//! The failures that engines of this kind are known for, each safe here: transfers that are
//! aborted, time out or lose their connection while bytes are under way, and memory that is
//! reused at once. Whole engines over TCP, with a relay between them that stands still.

mod relay;

use std::time::Duration;

use kvrail::runtime::Driver;
use kvrail::{
    Access, Batch, Engine, ErrorKind, Fenced, Landed, Lease, Location, Peer, Proof, Region,
    Transfer,
};

use self::relay::Relay;

const MIB: usize = 1 << 20;

/// More than all buffers on the way hold.
const LEN: usize = 64 * MIB;

fn engine(driver: Driver) -> Engine {
    Engine::builder().bind([127, 0, 0, 1].into()).same_host(false).driver(driver).start().unwrap()
}

fn region(engine: &Engine) -> Region {
    engine.allocate(LEN, Location::Cpu(None), Access::READ_WRITE).unwrap()
}

fn fill(region: &Region, byte: u8) {
    region.lease(0..LEN).unwrap().copy_in(0, &vec![byte; LEN]).unwrap();
}

/// Whether every byte is this one.
fn is_all(region: &Region, byte: u8) -> bool {
    let mut bytes = vec![0; LEN];
    region.share(0..LEN).unwrap().copy_out(0, &mut bytes).unwrap();
    bytes.iter().all(|&found| found == byte)
}

/// Two engines with a relay before the second.
struct Stage {
    ours: Engine,
    near: Region,
    owner: Engine,
    far: Region,
    relay: Relay,
    peer: Peer,
}

impl Stage {
    async fn new(ours: Engine, requests: usize, answers: usize) -> Self {
        let owner = engine(ours.driver());
        let (near, far) = (region(&ours), region(&owner));
        fill(&near, 1);
        fill(&far, 2);
        let relay = Relay::new(owner.name(), requests, answers);
        let peer = ours.open(&relay.name).await.unwrap();
        Self { ours, near, owner, far, relay, peer }
    }

    fn write(&self) -> Transfer {
        let mut batch = Batch::new(&self.peer);
        batch.write(&self.near.share(0..LEN).unwrap(), self.far.addr());
        self.ours.transfer(batch)
    }

    async fn stands_still(&self) {
        while !self.relay.is_still() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// Runs a test on each driver that the kernel gives, and fails it rather than hang.
fn run<F: Future<Output = ()>>(test: impl Fn(Driver) -> F) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    for driver in [Driver::Auto, Driver::Epoll] {
        let limit = Duration::from_secs(60);
        runtime.block_on(async { tokio::time::timeout(limit, test(driver)).await.unwrap() });
    }
}

#[test]
fn abort_while_the_write_lands_and_reuse_at_once() {
    run(|driver| async move {
        let stage = Stage::new(engine(driver), 5 * MIB, usize::MAX).await;
        let transfer = stage.write();
        stage.stands_still().await;
        let outcome = transfer.cancel().await;
        let error = outcome.statuses()[0].as_ref().unwrap_err();
        assert_eq!((error.kind(), error.landed()), (ErrorKind::Cancelled, Landed::Maybe));
        let receipt = *outcome.receipt();
        assert_eq!((receipt.local(), receipt.remote()), (Proof::Quiet, Proof::Quiet));
        assert_eq!((receipt.fenced(), receipt.landed()), (Fenced::Lane, Landed::Maybe));
        assert!(!is_all(&stage.far, 2), "some of it had landed, or this test shows nothing");
        // The next tenant, while the network still holds the old one's bytes.
        fill(&stage.far, 3);
        stage.relay.open();
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(is_all(&stage.far, 3), "bytes of an aborted write land behind its receipt");
        drop(outcome);
        assert!(!stage.near.is_leased(0..LEN), "leases are back");
    });
}

#[test]
fn stopping_the_engine_ends_what_is_under_way_with_proof() {
    run(|driver| async move {
        let stage = Stage::new(engine(driver), 5 * MIB, usize::MAX).await;
        let transfer = stage.write();
        stage.stands_still().await;
        stage.ours.stop().await;
        let failed = transfer.await.unwrap_err();
        assert_eq!(failed.error().kind(), ErrorKind::Closed);
        let receipt = failed.receipt();
        assert_eq!((receipt.remote(), receipt.fenced()), (Proof::Quiet, Fenced::Lane));
        assert_eq!(receipt.landed(), Landed::Maybe);
        fill(&stage.far, 3);
        stage.relay.open();
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(is_all(&stage.far, 3), "bytes of a stopped engine land behind its receipt");
        let mut batch = Batch::new(&stage.peer);
        batch.write(&stage.near.share(0..4096).unwrap(), stage.far.addr());
        let failed = stage.ours.transfer(batch).await.unwrap_err();
        assert_eq!(
            (failed.error().kind(), failed.receipt().landed()),
            (ErrorKind::Closed, Landed::No)
        );
    });
}

#[test]
fn stopping_beside_an_owner_out_of_reach_proves_nothing_and_comes_to_its_end() {
    run(|driver| async move {
        let stage = Stage::new(engine(driver), 5 * MIB, usize::MAX).await;
        let transfer = stage.write();
        stage.stands_still().await;
        stage.relay.silence_control();
        tokio::join!(stage.ours.stop(), stage.ours.stop());
        let failed = transfer.await.unwrap_err();
        assert_eq!(failed.error().kind(), ErrorKind::Closed);
        assert_eq!(failed.receipt().remote(), Proof::Unproven);
    });
}

#[test]
fn closing_a_peer_ends_what_is_under_way_to_it_and_nothing_else() {
    run(|driver| async move {
        let stage = Stage::new(engine(driver), 5 * MIB, usize::MAX).await;
        let transfer = stage.write();
        stage.stands_still().await;
        stage.ours.close(stage.peer.clone()).await.unwrap();
        let failed = transfer.await.unwrap_err();
        assert_eq!(failed.error().kind(), ErrorKind::Closed, "{failed}");
        let receipt = failed.receipt();
        assert_eq!((receipt.remote(), receipt.fenced()), (Proof::Quiet, Fenced::Lane));
        fill(&stage.far, 3);
        stage.relay.open();
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(is_all(&stage.far, 3), "bytes to a closed peer land behind its receipt");
        drop(failed);
        let failed = stage.write().await.unwrap_err();
        let ended = (failed.error().kind(), failed.receipt().landed());
        assert_eq!(ended, (ErrorKind::Closed, Landed::No), "{failed}");
        drop(failed);
        assert!(!stage.near.is_leased(0..LEN), "leases are back");
        stage.ours.close(stage.peer.clone()).await.unwrap();
        let peer = stage.ours.open(&stage.relay.name).await.unwrap();
        let anew = Stage { peer, ..stage };
        anew.write().await.unwrap();
        assert!(is_all(&anew.far, 1));
        let error = anew.ours.close(anew.ours.local()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    });
}

#[test]
fn a_peer_that_knows_no_fences_proves_nothing() {
    run(|driver| async move {
        let ours = Engine::builder().bind([127, 0, 0, 1].into()).same_host(false);
        let ours = ours.driver(driver).tcp_version_1(true).start().unwrap();
        let stage = Stage::new(ours, 5 * MIB, usize::MAX).await;
        let transfer = stage.write();
        stage.stands_still().await;
        let receipt = *transfer.cancel().await.receipt();
        assert_eq!((receipt.local(), receipt.remote()), (Proof::Quiet, Proof::Unproven));
        assert_eq!((receipt.fenced(), receipt.landed()), (Fenced::Nobody, Landed::Maybe));
    });
}

#[test]
fn an_owner_out_of_reach_proves_nothing_and_holds_nobody_up() {
    run(|driver| async move {
        let stage = Stage::new(engine(driver), 5 * MIB, usize::MAX).await;
        let transfer = stage.write();
        stage.stands_still().await;
        stage.relay.silence_control();
        let outcome = transfer.cancel().await;
        assert_eq!(outcome.receipt().remote(), Proof::Unproven);
        assert_eq!(outcome.statuses()[0].as_ref().unwrap_err().kind(), ErrorKind::Cancelled);
    });
}

#[test]
fn release_with_most_bytes_unposted_tells_what_landed() {
    run(|driver| async move {
        let stage = Stage::new(engine(driver), usize::MAX, usize::MAX).await;
        for byte in 10..20 {
            fill(&stage.far, 2);
            fill(&stage.near, byte);
            let transfer = stage.write();
            tokio::time::sleep(Duration::from_micros(u64::from(byte - 10) * 700)).await;
            let receipt = *transfer.cancel().await.receipt();
            assert_eq!(receipt.remote(), Proof::Quiet, "{receipt:?}");
            match receipt.landed() {
                Landed::No => assert!(is_all(&stage.far, 2), "{receipt:?}"),
                Landed::Yes => assert!(is_all(&stage.far, byte), "{receipt:?}"),
                Landed::Maybe => {}
            }
            fill(&stage.far, 3);
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert!(is_all(&stage.far, 3), "late bytes behind {receipt:?}");
        }
    });
}

#[test]
fn a_time_out_during_a_read_leaves_no_store_behind() {
    run(|driver| async move {
        let stage = Stage::new(engine(driver), usize::MAX, 5 * MIB).await;
        let mut batch = Batch::new(&stage.peer);
        batch.read(stage.near.lease(0..LEN).unwrap(), stage.far.addr());
        batch.deadline(Duration::from_millis(300));
        let failed = stage.ours.transfer(batch).await.unwrap_err();
        assert_eq!(failed.error().kind(), ErrorKind::Expired, "{failed}");
        assert_eq!(failed.receipt().remote(), Proof::Quiet, "{:?}", failed.receipt());
        let leases = failed.into_outcome().into_leases();
        assert!(matches!(leases[..], [Lease::Undefined(_)]), "some of it has come");
        drop(leases);
        fill(&stage.near, 3);
        stage.relay.open();
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(is_all(&stage.near, 3), "the peer's answer lands behind the deadline");
    });
}

#[test]
fn a_prepared_read_that_failed_leaves_undefined_bytes_until_one_ends_well() {
    run(|driver| async move {
        let stage = Stage::new(engine(driver), usize::MAX, 5 * MIB).await;
        let read = || {
            let mut batch = Batch::new(&stage.peer);
            batch.read(stage.near.lease(0..LEN).unwrap(), stage.far.addr());
            stage.ours.prepare(batch).unwrap()
        };
        let prepared = read();
        let transfer = stage.ours.post(&prepared);
        stage.stands_still().await;
        assert!(transfer.cancel().await.statuses()[0].is_err());
        let leases = prepared.into_leases().unwrap();
        assert!(matches!(leases[..], [Lease::Undefined(_)]), "some of it has come");
        drop(leases);
        stage.relay.open();
        let prepared = read();
        stage.ours.post(&prepared).await.unwrap();
        assert!(matches!(prepared.into_leases().unwrap()[..], [Lease::Exclusive(_)]));
    });
}

#[test]
fn a_lost_connection_is_fenced_before_its_requests_go_out_again() {
    run(|driver| async move {
        let stage = Stage::new(engine(driver), 5 * MIB, usize::MAX).await;
        let counter = stage.owner.counter(7).unwrap();
        let mut batch = Batch::new(&stage.peer);
        batch.write(&stage.near.share(0..LEN).unwrap(), stage.far.addr());
        batch.count(7, 1);
        let transfer = stage.ours.transfer(batch);
        stage.stands_still().await;
        stage.relay.hang_up();
        stage.relay.open();
        let outcome = transfer.await.unwrap();
        assert_eq!(outcome.receipt().landed(), Landed::Yes);
        assert!(is_all(&stage.far, 1));
        assert_eq!(counter.value(), 1, "counted once");
    });
}

#[test]
fn an_owner_unmaps_during_a_stalled_write() {
    run(|driver| async move {
        let Stage { ours, near, owner, far, relay, peer } =
            Stage::new(engine(driver), 5 * MIB, usize::MAX).await;
        let mut batch = Batch::new(&peer);
        batch.write(&near.share(0..LEN).unwrap(), far.addr());
        let transfer = ours.transfer(batch);
        while !relay.is_still() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        owner.unregister(far.clone()).await.unwrap();
        // Nothing reaches the memory any more, whatever the network still brings.
        relay.open();
        let failed = transfer.await.unwrap_err();
        assert_eq!(failed.error().kind(), ErrorKind::Refused, "{failed}");
        assert_eq!(failed.receipt().remote(), Proof::Quiet, "{:?}", failed.receipt());
    });
}
