//! Peers that can't prove anything, as Mooncake's, where an option lets them in. An engine without
//! authentication stands in for them: on the wire it is one.

use kvrail::{Access, ErrorKind, Peers, Policy, Rule};

use crate::policy::tells_nothing;
use crate::{Keys, Way, content, read, region, run, write};

#[test]
fn mooncake_is_let_in_by_an_option_and_only_to_what_a_policy_permits() {
    run(async {
        let keys = Keys::new();
        let own = keys.of(&[("owner", 1), ("peer", 2)]);
        let policy = Policy::Rules(vec![
            Rule::new(Peers::All, Access::READ_WRITE),
            Rule::new(Peers::Mooncake, Access::READ_WRITE).of(["shared"]),
        ]);
        let builder = Way::Tcp.builder().authentication(own).policy(policy);
        let owner = builder.allow_mooncake(true).start().unwrap();
        let shared = region(&owner, Access::READ_WRITE, 5);
        shared.set_label("shared").unwrap();
        let private = region(&owner, Access::READ_WRITE, 6);
        let mooncake = Way::Tcp.builder().start().unwrap();
        let peer = mooncake.open(owner.name()).await.unwrap();
        assert_eq!(peer.buffers().len(), 1);
        assert_eq!(read(&mooncake, &peer, shared.addr()).await.unwrap(), 5);
        write(&mooncake, &peer, shared.addr(), 8).await.unwrap();
        let error = read(&mooncake, &peer, private.addr()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
        let keyed = Way::Tcp.builder().authentication(keys.of(&[("peer", 2)])).start().unwrap();
        let peer = keyed.open(owner.name()).await.unwrap();
        assert_eq!(read(&keyed, &peer, private.addr()).await.unwrap(), 6);
        assert_eq!((content(&shared), content(&private)), (8, 6));
        // It is one way: this engine talks to nobody who proves nothing.
        assert!(owner.open(mooncake.name()).await.is_err());
    });
}

#[test]
fn without_a_rule_it_reaches_nothing_and_is_told_of_nothing() {
    run(async {
        let keys = Keys::new();
        let builder = Way::Tcp.builder().authentication(keys.of(&[("owner", 1)]));
        let owner = builder.allow_mooncake(true).start().unwrap();
        let memory = region(&owner, Access::READ_WRITE, 5);
        let mooncake = Way::Tcp.builder().start().unwrap();
        let peer = mooncake.open(owner.name()).await.unwrap();
        assert_eq!(peer.buffers().len(), 0);
        let error = read(&mooncake, &peer, memory.addr()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
        assert!(write(&mooncake, &peer, memory.addr(), 8).await.is_err());
        assert_eq!(content(&memory), 5);
        tells_nothing(&mooncake, &peer, &owner).await;
    });
}
