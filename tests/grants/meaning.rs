//! What a grant permits: these bytes, this operation, this peer, until then.

use std::time::Duration;

use kvrail::{Access, Batch, ErrorKind, GrantOptions, Pages, REFERENCE_BYTES, Reference, Strided};

use super::{contents, fill, on_every_way, pattern, region};

const LEN: usize = 64 << 10;

#[test]
fn what_is_granted_is_reached_in_every_shape() {
    on_every_way(|pair| async move {
        let (far, near) = (region(&pair.owner, LEN), region(&pair.holder, LEN));
        let bytes = pattern(1, LEN);
        fill(&near, &bytes);
        let grant = pair.owner.grant(&far, 0..LEN, Access::READ_WRITE, GrantOptions::default());
        let grant = grant.unwrap();
        // As it comes by the application's own messages.
        let reference: Reference = grant.reference().to_string().parse().unwrap();
        let at = |offset: u64| reference.addr() + offset;
        let lease = near.share(0..LEN).unwrap();
        let mut batch = Batch::new(&pair.peer);
        batch.write_to(&lease.slice(0..1000).unwrap(), &reference, 0);
        let pages =
            Pages { page_bytes: 500, local: vec![1000, 1500], remote: vec![at(1000), at(1500)] };
        batch.write_pages_to(&lease, &reference, pages);
        let (rows, row_bytes) = (2, 1000);
        let remote = at(2000);
        let rows = Strided { rows, row_bytes, local_stride: 1000, remote, remote_stride: 1000 };
        batch.write_strided_to(&lease.slice(2000..4000).unwrap(), &reference, rows);
        batch.write_to(&lease.slice(4000..LEN).unwrap(), &reference, 4000);
        drop(lease);
        drop(pair.holder.transfer(batch).await.unwrap());
        assert!(contents(&far) == bytes, "{:?}: what was written", pair.way);
        fill(&near, &vec![0; LEN]);
        let (left, right) = near.lease(0..LEN).unwrap().split_at(2000).unwrap();
        let (middle, right) = right.split_at(2000).unwrap();
        let mut batch = Batch::new(&pair.peer);
        let pages = Pages { page_bytes: 1000, local: vec![0, 1000], remote: vec![at(0), at(1000)] };
        batch.read_pages_from(left, &reference, pages);
        batch.read_strided_from(middle, &reference, rows);
        batch.read_from(right, &reference, 4000);
        drop(pair.holder.transfer(batch).await.unwrap());
        assert!(contents(&near) == bytes, "{:?}: what was read", pair.way);
    });
}

/// The reference with something else in it: a key from there, an address, a length.
fn forged(reference: &Reference, at: usize, change: impl Fn(u64) -> u64) -> Reference {
    let mut bytes = reference.to_bytes();
    let mut word = [0; 8];
    let count = (REFERENCE_BYTES - at).min(8);
    word[..count].copy_from_slice(&bytes[at..][..count]);
    let changed = change(u64::from_le_bytes(word)).to_le_bytes();
    bytes[at..][..count].copy_from_slice(&changed[..count]);
    Reference::from_bytes(&bytes)
}

#[test]
fn nothing_else_is_reached() {
    on_every_way(|pair| async move {
        let (far, near) = (region(&pair.owner, LEN), region(&pair.holder, 100));
        let bytes = pattern(1, LEN);
        fill(&far, &bytes);
        let grant = |access, holder: Option<&str>| {
            let options =
                GrantOptions { holder: holder.map(str::to_owned), ..GrantOptions::default() };
            pair.owner.grant(&far, 1000..1100, access, options).unwrap()
        };
        let both = grant(Access::READ_WRITE, None);
        let read = grant(Access::READ, Some(pair.holder.name()));
        let write = grant(Access::WRITE, None);
        let other = grant(Access::READ_WRITE, Some("another:1"));
        let (address, len, word, slot) = (0, 8, 24, 32);
        let good = both.reference();
        let past = forged(&forged(&good, address, |addr| addr + 1), len, |len| len + 100);
        let cases = [
            (good, None, None),
            (read.reference(), None, Some(ErrorKind::Refused)),
            (write.reference(), Some(ErrorKind::Refused), None),
            (other.reference(), Some(ErrorKind::Refused), Some(ErrorKind::Refused)),
            (past, Some(ErrorKind::Refused), Some(ErrorKind::Refused)),
            (forged(&good, word, |word| word ^ 1), Some(ErrorKind::Stale), Some(ErrorKind::Stale)),
            (forged(&good, word, |_| 0), Some(ErrorKind::Stale), Some(ErrorKind::Stale)),
            (forged(&good, slot, |_| 77), Some(ErrorKind::Stale), Some(ErrorKind::Stale)),
            (forged(&good, slot, |_| !0), Some(ErrorKind::Stale), Some(ErrorKind::Stale)),
        ];
        for (number, (reference, reads, writes)) in cases.into_iter().enumerate() {
            let (status, lease) = pair.read(near.lease(0..100).unwrap(), &reference).await;
            drop(lease);
            let kind = status.err().map(|error| error.kind());
            assert_eq!(kind, reads, "{:?}: read {number}", pair.way);
            let before = contents(&far);
            let status = pair.write(&near, &reference).await;
            let kind = status.err().map(|error| error.kind());
            assert_eq!(kind, writes, "{:?}: write {number}", pair.way);
            assert!(writes.is_none() || contents(&far) == before, "nothing was written");
        }
        // Outside of the reference itself, the owner isn't even asked.
        let mut batch = Batch::new(&pair.peer);
        batch.read_from(near.lease(0..100).unwrap(), &good, 1);
        let failed = pair.holder.transfer(batch).await.unwrap_err();
        assert_eq!(failed.error().kind(), ErrorKind::Refused);
        drop(failed);
        // What holds for all is not what is granted to one.
        let mut batch = Batch::new(&pair.peer);
        batch.read(near.lease(0..100).unwrap(), good.addr());
        let is_permitted = pair.holder.transfer(batch).await.is_ok();
        assert_eq!(is_permitted, pair.way.is_local(), "the owner may, nobody else");
    });
}

#[test]
fn one_that_is_over_fails_no_other_of_its_batch() {
    on_every_way(|pair| async move {
        let (far, near) = (region(&pair.owner, 3 << 20), region(&pair.holder, 3 << 20));
        let third = 1 << 20;
        fill(&far, &pattern(1, far.len()));
        let grant = |at: usize| {
            let (range, options) = (at * third..(at + 1) * third, GrantOptions::default());
            pair.owner.grant(&far, range, Access::READ, options).unwrap()
        };
        let grants = [grant(0), grant(1), grant(2)];
        let references = grants.each_ref().map(kvrail::Grant::reference);
        let [_first, second, _third] = grants;
        drop(second);
        let mut batch = Batch::new(&pair.peer);
        let (left, right) = near.lease(0..near.len()).unwrap().split_at(third).unwrap();
        let (middle, right) = right.split_at(third).unwrap();
        for (lease, reference) in [left, middle, right].into_iter().zip(&references) {
            batch.read_from(lease, reference, 0);
        }
        let outcome = pair.holder.transfer(batch).await.unwrap_err().into_outcome();
        let kinds: Vec<_> = outcome.statuses().iter().map(|s| s.as_ref().err()).collect();
        assert!(kinds[0].is_none() && kinds[2].is_none(), "{:?}: {kinds:?}", pair.way);
        assert_eq!(kinds[1].unwrap().kind(), ErrorKind::Stale);
        drop(outcome);
        let (got, expected) = (contents(&near), contents(&far));
        assert!(got[..third] == expected[..third] && got[2 * third..] == expected[2 * third..]);
    });
}

#[test]
fn one_that_has_expired_is_stale() {
    on_every_way(|pair| async move {
        let (far, near) = (region(&pair.owner, 100), region(&pair.holder, 100));
        let granted = |after| {
            let options = GrantOptions { expires_after: Some(after), ..GrantOptions::default() };
            pair.owner.grant(&far, 0..100, Access::READ, options).unwrap()
        };
        let (hour, soon) = (granted(Duration::from_secs(3600)), granted(Duration::from_millis(50)));
        let (status, _) = pair.read(near.lease(0..100).unwrap(), &hour.reference()).await;
        status.unwrap();
        while soon.holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let (status, _) = pair.read(near.lease(0..100).unwrap(), &soon.reference()).await;
        assert_eq!(status.unwrap_err().kind(), ErrorKind::Stale, "{:?}", pair.way);
        assert!(hour.holds());
    });
}
