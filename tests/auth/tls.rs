//! Certificates.

use kvrail::{Access, Authentication, Engine, ErrorKind, PeerNames, Peers, Policy, Rule, TlsFiles};

use crate::authority::{Authority, Files};
use crate::{Way, read, region, run, write};

fn of(files: Files) -> Authentication {
    let Files { certificate, key, authorities } = files;
    Authentication::Tls(TlsFiles { certificate, key, authorities, names: PeerNames::Opened })
}

fn start(way: Way, files: Files) -> Engine {
    way.builder().authentication(of(files)).start().unwrap()
}

#[test]
fn a_certificates_name_decides_what_its_engine_reaches() {
    run(async {
        let authority = Authority::new();
        for way in [Way::Host, Way::Tcp] {
            let policy = Policy::Rules(vec![
                Rule::new(Peers::Named("spiffe://cluster/prefill".into()), Access::READ_WRITE),
                Rule::new(Peers::All, Access::READ),
            ]);
            let builder = way.builder().authentication(of(authority.issue("decode")));
            let owner = builder.policy(policy).start().unwrap();
            let memory = region(&owner, Access::READ_WRITE, 7);
            for (name, may_write) in [("spiffe://cluster/prefill", true), ("other", false)] {
                let engine = start(way, authority.issue(name));
                let peer = engine.open(owner.name()).await.unwrap();
                assert_eq!(peer.path(), way.path());
                assert_eq!(read(&engine, &peer, memory.addr()).await.unwrap(), 7);
                let written = write(&engine, &peer, memory.addr(), 7).await;
                assert_eq!(written.is_ok(), may_write, "{way:?} {name}: {written:?}");
            }
        }
    });
}

#[test]
fn wrong_and_expired_certificates_open_nothing() {
    run(async {
        let authority = Authority::new();
        let owner = start(Way::Tcp, authority.issue("decode"));
        let late = start(Way::Tcp, authority.issue_expired("late"));
        let other = start(Way::Tcp, Authority::new().issue("decode"));
        for engine in [late, other] {
            let error = engine.open(owner.name()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
        }
        let plain = Way::Tcp.builder().start().unwrap();
        assert!(plain.open(owner.name()).await.is_err());
        assert!(owner.open(plain.name()).await.is_err());
    });
}
