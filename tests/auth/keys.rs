//! Pre-shared keys.

use kvrail::{Access, Authentication, Batch, ErrorKind, GrantOptions};

use crate::{Keys, LEN, Way, content, read, region, run, status, write};

#[test]
fn who_holds_a_key_reads_and_writes_by_every_path() {
    run(async {
        let keys = Keys::new();
        for way in [Way::Host, Way::Tcp] {
            let of = |file: &[(&str, u8)]| way.builder().authentication(keys.of(file)).start();
            let owner = of(&[("decode", 2), ("prefill", 1)]).unwrap();
            let other = of(&[("prefill", 1)]).unwrap();
            let memory = region(&owner, Access::READ_WRITE, 7);
            let peer = other.open(owner.name()).await.unwrap();
            assert_eq!((peer.path(), peer.buffers().len()), (way.path(), 1));
            assert_eq!(read(&other, &peer, memory.addr()).await.unwrap(), 7);
            write(&other, &peer, memory.addr(), 9).await.unwrap();
            assert_eq!(content(&memory), 9);
            other.notify(&peer, "done").await.unwrap();
            assert_eq!(owner.notification().await.bytes, b"done");
        }
    });
}

#[test]
fn a_wrong_key_and_none_open_nothing() {
    run(async {
        let keys = Keys::new();
        let owner = Way::Tcp.builder().authentication(keys.of(&[("decode", 2), ("prefill", 1)]));
        let owner = owner.start().unwrap();
        let thief = keys.of(&[("prefill", 9)]);
        for authentication in [thief, Authentication::Off] {
            let other = Way::Tcp.builder().authentication(authentication).start().unwrap();
            assert!(other.open(owner.name()).await.is_err());
            // Nor does the owner take it for a peer.
            assert!(owner.open(other.name()).await.is_err());
        }
    });
}

#[test]
fn a_grant_is_for_whoever_has_proven_the_holders_name() {
    run(async {
        let keys = Keys::new();
        for way in [Way::Host, Way::Tcp] {
            let of = |file: &[(&str, u8)]| way.builder().authentication(keys.of(file)).start();
            let owner = of(&[("decode", 2), ("a", 1), ("b", 3)]).unwrap();
            let memory = region(&owner, Access::LOCAL, 7);
            let options = GrantOptions { holder: Some("a".into()), ..Default::default() };
            let grant = owner.grant(&memory, 0..LEN, Access::READ, options).unwrap();
            let reference = grant.reference();
            for (name, byte, may) in [("a", 1, true), ("b", 3, false)] {
                let other = of(&[(name, byte)]).unwrap();
                let peer = other.open(owner.name()).await.unwrap();
                let target = region(&other, Access::LOCAL, 0);
                let mut batch = Batch::new(&peer);
                batch.read_from(target.lease(0..LEN).unwrap(), &reference, 0);
                let status = status(other.transfer(batch).await);
                assert_eq!(status.is_ok(), may, "{way:?} {name} {status:?}");
                if let Err(error) = status {
                    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
                }
            }
        }
    });
}
