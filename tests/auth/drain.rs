//! An engine that drains, among peers that prove who they are.

use std::time::Duration;

use kvrail::{Access, Engine, ErrorKind, Peer, Peers, Policy, Rule};

use crate::{Keys, Way, read, region, run};

/// Far more than a drain needs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Reads until it is refused; by an error of which kind.
async fn read_on(engine: &Engine, peer: &Peer, addr: u64) -> ErrorKind {
    loop {
        if let Err(error) = read(engine, peer, addr).await {
            return error.kind();
        }
    }
}

#[test]
fn guests_by_every_path_are_told_and_fail_nothing() {
    run(async {
        let keys = Keys::new();
        for way in [Way::Host, Way::Tcp] {
            let of = |file: &[(&str, u8)]| way.builder().authentication(keys.of(file)).start();
            let owner = of(&[("decode", 2), ("prefill", 1)]).unwrap();
            let guest = of(&[("prefill", 1), ("decode", 2)]).unwrap();
            let memory = region(&owner, Access::READ, 7);
            let peer = guest.open(owner.name()).await.unwrap();
            assert_eq!(peer.path(), way.path());
            let reading = read_on(&guest, &peer, memory.addr());
            let (drained, kind) = futures_lite::future::zip(owner.drain(PATIENCE), reading).await;
            assert!(drained.is_complete(), "{way:?}: {drained:?}");
            assert_eq!(kind, ErrorKind::Draining, "{way:?}");
        }
    });
}

#[test]
fn one_who_proves_nothing_is_no_guest_and_holds_nothing_up() {
    run(async {
        let keys = Keys::new();
        let own = keys.of(&[("decode", 2)]);
        let policy = Policy::Rules(vec![Rule::new(Peers::Mooncake, Access::READ)]);
        let builder = Way::Tcp.builder().authentication(own).policy(policy);
        let owner = builder.allow_mooncake(true).start().unwrap();
        let memory = region(&owner, Access::READ, 7);
        let other = Way::Tcp.builder().start().unwrap();
        let peer = other.open(owner.name()).await.unwrap();
        assert_eq!(read(&other, &peer, memory.addr()).await.unwrap(), 7);
        let drained = owner.drain(PATIENCE).await;
        assert!(drained.is_complete(), "{drained:?}");
    });
}
