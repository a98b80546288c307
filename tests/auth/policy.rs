//! Policies: which peer reaches which region.

use kvrail::{
    Access, Batch, Engine, ErrorKind, GrantOptions, Peers, Policy, Reference, Region, Rule,
};

use crate::{Keys, LEN, Way, content, read, region, run, status, write};

/// An owner with a region of each kind, under a policy.
struct Owner {
    engine: Engine,
    cache: Region,
    weights: Region,
    private: Region,
}

const KEYS: [(&str, u8); 3] = [("owner", 1), ("prefill", 2), ("watcher", 3)];

fn owner(keys: &Keys, way: Way) -> Owner {
    let policy = Policy::Rules(vec![
        Rule::new(Peers::Named("prefill".into()), Access::WRITE).of(["cache"]),
        Rule::new(Peers::All, Access::READ).of(["weights"]),
    ]);
    let builder = way.builder().authentication(keys.of(&KEYS)).policy(policy);
    let engine = builder.start().unwrap();
    let labelled = |label, byte| {
        let region = region(&engine, Access::READ_WRITE, byte);
        region.set_label(label).unwrap();
        region
    };
    let (cache, weights) = (labelled("cache", 10), labelled("weights", 20));
    let private = region(&engine, Access::READ_WRITE, 30);
    Owner { engine, cache, weights, private }
}

fn peer_engine(keys: &Keys, way: Way, index: usize) -> Engine {
    way.builder().authentication(keys.of(&KEYS[index..=index])).start().unwrap()
}

fn is_refused<T: std::fmt::Debug>(result: Result<T, kvrail::Error>, what: &str) {
    assert_eq!(result.expect_err(what).kind(), ErrorKind::Refused, "{what}");
}

#[test]
fn a_peer_reaches_what_its_rules_permit_and_the_rest_is_refused() {
    run(async {
        let keys = Keys::new();
        for way in [Way::Host, Way::Tcp] {
            let owner = owner(&keys, way);
            let (cache, weights) = (owner.cache.addr(), owner.weights.addr());
            let private = owner.private.addr();
            let prefill = peer_engine(&keys, way, 1);
            let peer = prefill.open(owner.engine.name()).await.unwrap();
            assert_eq!(peer.path(), way.path());
            let mut listed: Vec<_> = peer.buffers().iter().map(|buffer| buffer.addr).collect();
            listed.sort();
            let mut expected = [cache, weights];
            expected.sort();
            assert_eq!(listed, expected, "what it may not reach is not told");
            write(&prefill, &peer, cache, 11).await.unwrap();
            assert_eq!(read(&prefill, &peer, weights).await.unwrap(), 20);
            is_refused(read(&prefill, &peer, cache).await, "it may write the cache, not read it");
            is_refused(write(&prefill, &peer, weights, 66).await, "it may not write weights");
            is_refused(read(&prefill, &peer, private).await, "no rule permits that");
            is_refused(write(&prefill, &peer, private, 66).await, "no rule permits that");
            let watcher = peer_engine(&keys, way, 2);
            let peer = watcher.open(owner.engine.name()).await.unwrap();
            assert_eq!(read(&watcher, &peer, weights).await.unwrap(), 20);
            is_refused(write(&watcher, &peer, cache, 66).await, "that is the rule of another");
            let contents = [&owner.cache, &owner.weights, &owner.private].map(content);
            assert_eq!(contents, [11, 20, 30], "{way:?}");
        }
    });
}

async fn read_under(
    engine: &Engine,
    owner: &Engine,
    grant: Reference,
) -> Result<(), kvrail::Error> {
    let peer = engine.open(owner.name()).await?;
    let target = region(engine, Access::LOCAL, 0);
    let mut batch = Batch::new(&peer);
    batch.read_from(target.lease(0..LEN)?, &grant, 0);
    status(engine.transfer(batch).await)
}

#[test]
fn a_grant_opens_nothing_that_the_policy_refuses() {
    run(async {
        let keys = Keys::new();
        for way in [Way::Host, Way::Tcp] {
            let owner = owner(&keys, way);
            let prefill = peer_engine(&keys, way, 1);
            let grant = |region| {
                let granted =
                    owner.engine.grant(region, 0..LEN, Access::READ, GrantOptions::default());
                granted.unwrap()
            };
            let (weights, private) = (grant(&owner.weights), grant(&owner.private));
            read_under(&prefill, &owner.engine, weights.reference()).await.unwrap();
            let refused = read_under(&prefill, &owner.engine, private.reference()).await;
            is_refused(refused, "it was granted by mistake");
        }
    });
}

#[test]
fn a_label_stays_and_a_policy_takes_authentication() {
    let keys = Keys::new();
    let owner = owner(&keys, Way::Tcp);
    owner.cache.set_label("cache").unwrap();
    let error = owner.cache.set_label("weights").unwrap_err();
    assert!(error.to_string().contains("cache"), "{error}");
    assert_eq!((owner.cache.label(), owner.private.label()), (Some("cache"), None));
    let error = Way::Tcp.builder().policy(Policy::Rules(Vec::new())).start().unwrap_err();
    assert!(error.to_string().contains("without authentication"), "{error}");
}
