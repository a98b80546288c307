//! Memory that is taken back while peers read it or write to it: the owner gets it back soon, what
//! was under way ends as it should, and nothing shows afterwards.

use std::time::Duration;

use kvrail::{Access, ErrorKind, GrantOptions, Region};

use super::{SOON, contents, fill, on_every_way, pattern, region};

const LEN: usize = 64 << 20;

fn first(region: &Region) -> u8 {
    let mut byte = [0];
    region.share(0..1).map_or(0, |lease| lease.copy_out(0, &mut byte).map_or(0, |()| byte[0]))
}

#[test]
fn a_read_that_ends_well_has_bytes_from_before() {
    on_every_way(|pair| async move {
        let (far, near) = (region(&pair.owner, LEN), region(&pair.holder, LEN));
        let (before, after) = (pattern(1, LEN), vec![0xEE; LEN]);
        for round in 0..6u32 {
            fill(&far, &before);
            let options = GrantOptions::default();
            let grant = pair.owner.grant(&far, 0..LEN, Access::READ, options).unwrap();
            let reference = grant.reference();
            let lease = near.lease(0..LEN).unwrap();
            let reading = pair.read(lease, &reference);
            let revoking = async {
                tokio::time::sleep(Duration::from_millis(u64::from(round * 2))).await;
                assert!(grant.revoke().await < SOON);
                fill(&far, &after);
            };
            let ((status, lease), ()) = tokio::join!(reading, revoking);
            drop(lease);
            match status {
                Ok(()) => assert!(contents(&near) == before, "{:?}: another's bytes", pair.way),
                Err(error) => assert_eq!(error.kind(), ErrorKind::Stale, "{error}"),
            }
            // From here on it is stale for certain.
            let (status, _) = pair.read(near.lease(0..LEN).unwrap(), &reference).await;
            assert_eq!(status.unwrap_err().kind(), ErrorKind::Stale);
        }
    });
}

#[test]
fn nothing_is_written_behind_a_revocation() {
    on_every_way(|pair| async move {
        let (far, near) = (region(&pair.owner, LEN), region(&pair.holder, LEN));
        fill(&near, &vec![0xAB; LEN]);
        let expected = pattern(2, LEN);
        for _ in 0..3 {
            fill(&far, &[0]);
            let options = GrantOptions::default();
            let grant = pair.owner.grant(&far, 0..LEN, Access::WRITE, options).unwrap();
            let reference = grant.reference();
            let writing = pair.write(&near, &reference);
            let revoking = async {
                // In mid-copy, unless the writer is done already.
                let target = far.clone();
                let seen = tokio::task::spawn_blocking(move || {
                    while first(&target) == 0 {
                        std::hint::spin_loop();
                    }
                });
                seen.await.unwrap();
                assert!(grant.revoke().await < SOON);
                fill(&far, &expected);
            };
            let (status, ()) = tokio::join!(writing, revoking);
            if let Err(error) = status {
                assert_eq!(error.kind(), ErrorKind::Stale, "{:?}: {error}", pair.way);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert!(contents(&far) == expected, "{:?}: nothing shows afterwards", pair.way);
        }
    });
}
