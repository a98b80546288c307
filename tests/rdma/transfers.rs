//! What transfers mean over RDMA: the same as over any other path.

use std::sync::{Arc, Mutex};

use kvrail::{ErrorKind, Fenced, GrantOptions, Landed, Proof};

use super::*;

#[test]
#[ignore = "needs soft-RoCE NICs: cargo xtask test --only rdma"]
fn bytes_go_both_ways() {
    let pair = Pair::new(2, 2 * MIB);
    fill(&pair.near, 1);
    let mut batch = Batch::new(&pair.peer);
    // Odd places, odd lengths, longer than a slice, and one byte.
    for range in [1..70_001, 80_000..80_001, 100_000..2 * MIB - 3] {
        let addr = pair.far.addr() + range.start as u64;
        batch.write(&pair.near.share(range).unwrap(), addr);
    }
    let outcome = pair.transfer(batch).unwrap();
    let receipt = outcome.receipt();
    assert_eq!((receipt.landed(), receipt.fenced()), (Landed::Yes, Fenced::Answered));
    for range in [1..70_001, 80_000..80_001, 100_000..2 * MIB - 3] {
        assert_eq!(first_wrong(&pair.far, range, 1), None);
    }
    assert_eq!(bytes(&pair.far)[0], 0, "nothing beside it");
    fill(&pair.far, 2);
    drop(outcome);
    pair.transfer(pair.reading(0, 2 * MIB)).unwrap();
    assert_eq!(first_wrong(&pair.near, 0..2 * MIB, 2), None);
    pair.stop();
}

#[test]
#[ignore = "needs soft-RoCE NICs: cargo xtask test --only rdma"]
fn a_counter_advances_behind_its_data_and_once_however_many_rails_there_are() {
    let pair = Pair::new(2, MIB);
    let counter = pair.b.counter(7).unwrap();
    for round in 1..=50 {
        fill(&pair.near, round);
        let mut batch = pair.writing(0, MIB);
        batch.count(7, 3);
        let transfer = pair.a.transfer(batch);
        // Whoever hears of it finds the data.
        run(counter.reached(3 * round as u64));
        assert_eq!(first_wrong(&pair.far, 0..MIB, round), None, "round {round}");
        run(transfer).unwrap();
        assert_eq!(counter.value(), 3 * round as u64);
    }
    let mut batch = pair.writing(0, 64);
    batch.count(8, 1);
    let failed = pair.transfer(batch).unwrap_err();
    assert_eq!(failed.error().kind(), ErrorKind::Refused, "nobody has opened that one");
    pair.stop();
}

#[test]
#[ignore = "needs soft-RoCE NICs: cargo xtask test --only rdma"]
fn messages_arrive_behind_their_data() {
    let pair = Pair::new(1, MIB);
    fill(&pair.near, 3);
    let mut batch = pair.writing(0, MIB);
    batch.notify(*b"layer 3");
    pair.transfer(batch).unwrap();
    let notification = run(pair.b.notification());
    assert_eq!((&notification.from[..], &notification.bytes[..]), (pair.a.name(), &b"layer 3"[..]));
    assert_eq!(first_wrong(&pair.far, 0..MIB, 3), None);
    pair.stop();
}

#[test]
#[ignore = "needs soft-RoCE NICs: cargo xtask test --only rdma"]
fn memory_registered_after_opening_is_reached_and_memory_that_is_gone_is_not() {
    let pair = Pair::new(1, MIB);
    let late = pair.b.allocate(MIB, Location::Cpu(None), Access::READ_WRITE).unwrap();
    fill(&pair.near, 4);
    let mut batch = Batch::new(&pair.peer);
    batch.write(&pair.near.share(0..MIB).unwrap(), late.addr());
    pair.transfer(batch).unwrap();
    assert_eq!(first_wrong(&late, 0..MIB, 4), None);
    let addr = late.addr();
    run(pair.b.unregister(late)).unwrap();
    let mut batch = Batch::new(&pair.peer);
    batch.write(&pair.near.share(0..64).unwrap(), addr);
    let failed = pair.transfer(batch).unwrap_err();
    assert_eq!(failed.error().kind(), ErrorKind::Refused, "{}", failed.error());
    pair.transfer(pair.writing(0, MIB)).unwrap();
    pair.stop();
}

#[test]
#[ignore = "needs soft-RoCE NICs: cargo xtask test --only rdma"]
fn registering_tells_how_far_it_is() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = told.clone();
    let engine = builder(&OURS)
        .on_registering(move |done, all| tell.lock().unwrap().push((done, all)))
        .start()
        .unwrap();
    engine.allocate(MIB, Location::Cpu(None), Access::READ_WRITE).unwrap();
    let told = told.lock().unwrap();
    assert_eq!(told.last(), Some(&(2 * MIB, 2 * MIB)), "on both NICs");
    assert!(told.is_sorted(), "{told:?}");
    run(engine.stop());
}

#[test]
#[ignore = "needs soft-RoCE NICs: cargo xtask test --only rdma"]
fn permissions_are_the_nics_to_enforce() {
    let pair = Pair::new(1, MIB);
    let read_only = pair.b.allocate(MIB, Location::Cpu(None), Access::READ).unwrap();
    fill(&read_only, 5);
    let peer = run(pair.a.open(pair.b.name())).unwrap();
    let mut batch = Batch::new(&peer);
    batch.read(pair.near.lease(0..MIB).unwrap(), read_only.addr());
    pair.transfer(batch).unwrap();
    assert_eq!(first_wrong(&pair.near, 0..MIB, 5), None);
    let mut batch = Batch::new(&peer);
    batch.write(&pair.near.share(0..64).unwrap(), read_only.addr());
    let failed = pair.transfer(batch).unwrap_err();
    assert_eq!(failed.error().kind(), ErrorKind::Refused, "{}", failed.error());
    assert!(failed.error().to_string().contains("access"), "{}", failed.error());
    pair.stop();
}

#[test]
#[ignore = "needs soft-RoCE NICs: cargo xtask test --only rdma"]
fn a_grant_lets_in_until_it_is_taken_back() {
    let pair = Pair::new(1, MIB);
    let hidden = pair.b.allocate(MIB, Location::Cpu(None), Access::LOCAL).unwrap();
    let grant = pair.b.grant(&hidden, 4096..8192, Access::WRITE, GrantOptions::default()).unwrap();
    let reference = grant.reference();
    fill(&pair.near, 6);
    let write = || {
        let mut batch = Batch::new(&pair.peer);
        batch.write_to(&pair.near.share(4096..8192).unwrap(), &reference, 0);
        pair.transfer(batch)
    };
    write().unwrap();
    assert_eq!(first_wrong(&hidden, 4096..8192, 6), None);
    run(grant.revoke());
    let failed = write().unwrap_err();
    assert_eq!(failed.error().kind(), ErrorKind::Stale, "{}", failed.error());
    assert_eq!(failed.receipt().remote(), Proof::Quiet);
    pair.transfer(pair.writing(0, MIB)).unwrap();
    pair.stop();
}
