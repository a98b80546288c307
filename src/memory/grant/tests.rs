//! Grants over real regions, and over a ledger as a peer sees it.

use futures_lite::future::{block_on, poll_once};
use kvrail_reactors::host::ledger::LedgerView;

use super::super::tests::region;
use super::*;
use crate::ErrorKind;

fn grants() -> Arc<Grants> {
    Arc::new(Grants::new(Some(GrantLedger::new(GRANTS_MAX).unwrap())))
}

fn granting(region: &Region) -> Granting<'_> {
    let (access, range) = (Access::READ, 100..200);
    Granting { region, range, access, holder: None, expires_ns: None, generation: 0 }
}

fn read(grants: &Grants, grant: &Reference) -> Result<(Slice, Use), Denied> {
    grants.find(grant.key, "peer", grant.addr, grant.len, Operation::Read)
}

#[test]
fn a_strike_is_at_once_and_quiet_comes_with_the_last_use() {
    let (grants, region) = (grants(), region(4096));
    let grant = grants.add(granting(&region)).unwrap();
    let reference = grant.reference();
    assert_eq!((reference.addr(), reference.len()), (region.addr() + 100, 100));
    let (memory, used) = read(&grants, &reference).unwrap();
    assert_eq!((memory.addr(), memory.len()), (reference.addr(), 100));
    let other = used.clone();
    let mut revoked = std::pin::pin!(grant.revoke());
    assert!(block_on(poll_once(&mut revoked)).is_none());
    assert!(used.is_struck() && other.is_struck());
    assert_eq!(read(&grants, &reference).unwrap_err(), Denied::Stale);
    drop(used);
    assert!(block_on(poll_once(&mut revoked)).is_none());
    drop(other);
    assert!(block_on(poll_once(&mut revoked)).is_some());
}

#[test]
fn a_dropped_grant_and_one_that_expired_are_stale() {
    let (grants, region) = (grants(), region(4096));
    let reference = grants.add(granting(&region)).unwrap().reference();
    assert_eq!(read(&grants, &reference).unwrap_err(), Denied::Stale);
    let grant = grants.add(Granting { expires_ns: Some(50), ..granting(&region) }).unwrap();
    let later = grants.add(Granting { expires_ns: Some(60), ..granting(&region) }).unwrap();
    assert_eq!(grants.strike_expired(49), Some(50));
    assert!(grant.holds() && read(&grants, &grant.reference()).is_ok());
    assert_eq!(grants.strike_expired(50), Some(60));
    assert!(!grant.holds() && later.holds());
    assert_eq!(read(&grants, &grant.reference()).unwrap_err(), Denied::Stale);
    drop(later);
    assert_eq!(grants.strike_expired(0), None);
}

#[test]
fn the_ledger_says_what_the_table_says() {
    let (grants, region) = (grants(), region(4096));
    let view = LedgerView::map(grants.ledger().unwrap().fd(), GRANTS_MAX).unwrap();
    let grant = grants.add(Granting { holder: Some("peer".into()), ..granting(&region) }).unwrap();
    let Reference { addr, len, key, .. } = grant.reference();
    let row = view.row(key.slot as usize, key.word).unwrap();
    assert_eq!(check(row, "peer", addr, len, Operation::Read), Ok(()));
    assert_eq!(check(row, "other", addr, len, Operation::Read), Err(Denied::Refused));
    assert_eq!(check(row, "peer", addr, len, Operation::Write), Err(Denied::Refused));
    drop(grant);
    assert_eq!(view.row(key.slot as usize, key.word), None);
}

#[test]
fn what_grants_nothing_is_refused_and_a_region_takes_its_grants_along() {
    let (grants, region) = (grants(), region(4096));
    for range in [0..0, 4000..4097, 5000..6000] {
        let error = grants.add(Granting { range, ..granting(&region) }).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    }
    let access = Access::LOCAL;
    let error = grants.add(Granting { access, ..granting(&region) }).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    let other = super::super::tests::region(4096);
    let (a, b) = (grants.add(granting(&region)).unwrap(), grants.add(granting(&other)).unwrap());
    grants.strike_region(&region);
    assert!(!a.holds() && b.holds());
    grants.close();
    assert!(!b.holds());
    assert_eq!(grants.add(granting(&region)).unwrap_err().kind(), ErrorKind::Closed);
}

#[test]
fn time_is_kept_while_somebody_asks_for_it() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let (grants, region) = (grants(), region(4096));
    let since = Instant::now();
    let now_ns = move || since.elapsed().as_nanos() as u64;
    runtime.block_on(async {
        let keeper = grants.clone();
        let keeping = async move { keeper.keep_time(now_ns).await };
        let struck = async {
            tokio::task::yield_now().await;
            let end_ns = now_ns() + 1_000_000;
            let expires_ns = Some(end_ns);
            let grant = grants.add(Granting { expires_ns, ..granting(&region) }).unwrap();
            grant.strike.quiet.clone().wait().await;
            assert!(now_ns() >= end_ns && !grant.holds());
        };
        tokio::select! { () = keeping => {}, () = struck => {} }
    });
}
