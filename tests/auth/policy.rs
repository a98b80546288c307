//! Policies: which peer reaches which region.

use kvrail::{
    Access, Batch, Engine, ErrorKind, GrantOptions, Peer, Peers, Policy, Reference, Region, Rule,
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

/// Whether a batch's count and its notification came through.
async fn tell(engine: &Engine, peer: &Peer, counter: u64) -> Result<(), kvrail::Error> {
    let mut batch = Batch::new(peer);
    batch.count(counter, 1).notify("behind the data");
    engine.transfer(batch).await.map(drop).map_err(|failed| failed.error().clone())
}

/// What this engine tells the owner does not come through, by any way that there is.
pub(crate) async fn tells_nothing(engine: &Engine, peer: &Peer, owner: &Engine) {
    let counter = owner.counter(7).unwrap();
    is_refused(tell(engine, peer, 7).await, "a count");
    assert!(engine.notify(peer, "by the control channel").await.is_err());
    assert_eq!(counter.value(), 0);
    assert!(owner.try_notification().is_none());
}

#[test]
fn who_may_reach_nothing_tells_nothing() {
    run(async {
        let keys = Keys::new();
        for way in [Way::Host, Way::Tcp] {
            let policy = Policy::Rules(vec![
                Rule::new(Peers::Named("prefill".into()), Access::WRITE).of(["cache"]),
            ]);
            let builder = way.builder().authentication(keys.of(&KEYS)).policy(policy);
            let owner = builder.start().unwrap();
            let _cache = region(&owner, Access::READ_WRITE, 1);
            let [prefill, watcher] = [1, 2].map(|index| peer_engine(&keys, way, index));
            let peer = watcher.open(owner.name()).await.unwrap();
            tells_nothing(&watcher, &peer, &owner).await;
            let peer = prefill.open(owner.name()).await.unwrap();
            let counter = owner.counter(8).unwrap();
            tell(&prefill, &peer, 8).await.unwrap();
            prefill.notify(&peer, "by the control channel").await.unwrap();
            let notified = std::iter::from_fn(|| owner.try_notification()).count();
            assert_eq!((counter.value(), notified), (1, 2), "{way:?}");
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
