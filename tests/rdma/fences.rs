//! Memory in flight has an owner: behind a receipt that says so, neither side's memory is touched
//! any more, on real verbs.

use kvrail::{ErrorKind, Eternal, GrantOptions, Proof};

use super::*;

/// Cancelled transfers, at random moments.
const TRIES: usize = 500;

const LEN: usize = MIB;

/// A write that is cancelled: it takes four times as long as one gets to end by itself.
const CANCELLED_LEN: usize = 3 * MIB;

/// How long memory is watched that should be quiet: ten times what a packet takes to arrive here.
const WATCH: Duration = Duration::from_millis(4);

#[test]
#[ignore = "needs soft-RoCE NICs: cargo xtask test --only rdma"]
fn a_cancelled_write_whose_receipt_says_quiet_changes_nothing_any_more() {
    let pair = Pair::new(1, CANCELLED_LEN);
    let (mut quiet, mut cut_off) = (0, 0);
    for round in 0..TRIES {
        fill(&pair.near, round);
        let transfer = pair.a.transfer(pair.writing(0, CANCELLED_LEN));
        std::thread::sleep(Duration::from_micros(fastrand::u64(0..30_000)));
        let outcome = run(transfer.cancel());
        let receipt = *outcome.receipt();
        if receipt.remote() == Proof::Quiet {
            quiet += 1;
            let before = bytes(&pair.far);
            std::thread::sleep(WATCH);
            assert_eq!(before, bytes(&pair.far), "round {round}: {receipt:?}");
        }
        cut_off += usize::from(outcome.statuses().iter().any(Result::is_err));
    }
    println!("{quiet} of {TRIES} were quiet, {cut_off} were cut off");
    assert!(quiet > TRIES * 9 / 10, "{quiet} of {TRIES}: the target answers");
    assert!(cut_off > TRIES / 10, "{cut_off} of {TRIES} were cancelled in time");
    pair.stop();
}

#[test]
#[ignore = "needs soft-RoCE NICs: cargo xtask test --only rdma"]
fn a_revoked_grant_lets_nothing_in() {
    let pair = Pair::new(1, LEN);
    for round in 0..40 {
        fill(&pair.near, round);
        let options = GrantOptions::default();
        let grant = pair.b.grant(&pair.far, 0..LEN, Access::WRITE, options).unwrap();
        let mut batch = Batch::new(&pair.peer);
        batch.write_to(&pair.near.share(0..LEN).unwrap(), &grant.reference(), 0);
        let transfer = pair.a.transfer(batch);
        std::thread::sleep(Duration::from_micros(fastrand::u64(0..40_000)));
        run(grant.revoke());
        let before = bytes(&pair.far);
        std::thread::sleep(WATCH);
        assert_eq!(before, bytes(&pair.far), "round {round}");
        if let Err(failed) = run(transfer) {
            assert_eq!(failed.error().kind(), ErrorKind::Stale, "{}", failed.error());
        }
    }
    pair.stop();
}

#[test]
#[ignore = "needs soft-RoCE NICs: cargo xtask test --only rdma"]
fn a_stale_read_is_refused() {
    let pair = Pair::new(1, LEN);
    fill(&pair.far, 1);
    let grant = pair.b.grant(&pair.far, 0..LEN, Access::READ, GrantOptions::default()).unwrap();
    let reference = grant.reference();
    let read = || {
        let mut batch = Batch::new(&pair.peer);
        batch.read_from(pair.near.lease(0..LEN).unwrap(), &reference, 0);
        pair.transfer(batch)
    };
    drop(read().unwrap());
    assert_eq!(first_wrong(&pair.near, 0..LEN, 1), None);
    run(grant.revoke());
    fill(&pair.far, 2);
    let failed = read().unwrap_err();
    assert_eq!(failed.error().kind(), ErrorKind::Stale, "{}", failed.error());
    pair.stop();
}

#[test]
#[ignore = "needs soft-RoCE NICs: cargo xtask test --only rdma"]
fn unregistered_memory_is_quiet_when_that_returns() {
    let pair = Pair::new(1, LEN);
    let memory = Eternal::new(LEN);
    for round in 0..40 {
        fill(&pair.near, round);
        let region = pair.b.register(memory.foreign(), Access::READ_WRITE).unwrap();
        let peer = run(pair.a.open(pair.b.name())).unwrap();
        let mut batch = Batch::new(&peer);
        batch.write(&pair.near.share(0..LEN).unwrap(), region.addr());
        let transfer = pair.a.transfer(batch);
        std::thread::sleep(Duration::from_micros(fastrand::u64(0..40_000)));
        run(pair.b.unregister(region)).unwrap();
        // Looked at as the owner's own memory, which it is again.
        let own = pair.b.register(memory.foreign(), Access::LOCAL).unwrap();
        let before = bytes(&own);
        std::thread::sleep(WATCH);
        assert_eq!(before, bytes(&own), "round {round}");
        if let Err(failed) = run(transfer) {
            assert_eq!(failed.error().kind(), ErrorKind::Refused, "{}", failed.error());
        }
        run(pair.b.unregister(own)).unwrap();
    }
    pair.stop();
}
