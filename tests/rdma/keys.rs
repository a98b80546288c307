//! Peers that prove who they are, over NICs: queue pairs are for them alone, and a policy holds.

use kvrail::{Authentication, ErrorKind, GrantOptions, Peers, Policy, Rule};
use tempfile::TempDir;

use super::*;

const LEN: usize = MIB;

/// A file of keys in this folder, each a name and the byte that it is made of.
fn keys(folder: &TempDir, file: &str, keys: &[(&str, u8)]) -> Authentication {
    let line =
        |(name, byte): &(&str, u8)| format!("{name} = {}\n", format!("{byte:02x}").repeat(32));
    let path = folder.path().join(file);
    std::fs::write(&path, keys.iter().map(line).collect::<String>()).unwrap();
    Authentication::Keys(path)
}

/// Queue pairs that a device has, as the kernel counts them.
fn queue_pairs(device: &str) -> usize {
    let mut command = Command::new("rdma");
    let output = command.args(["resource", "show", "qp", "link", device]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().filter(|line| line.contains("lqpn")).count()
}

fn full_of(engine: &Engine, label: Option<&str>, round: usize) -> Region {
    let region = engine.allocate(LEN, Location::Cpu(None), Access::READ_WRITE).unwrap();
    label.into_iter().for_each(|label| region.set_label(label).unwrap());
    fill(&region, round);
    region
}

fn write(from: &Engine, source: &Region, to: &Peer, addr: u64) -> Result<Outcome, Failed> {
    let mut batch = Batch::new(to);
    batch.write(&source.share(0..LEN).unwrap(), addr);
    run(from.transfer(batch))
}

fn read(into: &Engine, target: &Region, from: &Peer, addr: u64) -> Result<Outcome, Failed> {
    let mut batch = Batch::new(from);
    batch.read(target.lease(0..LEN).unwrap(), addr);
    run(into.transfer(batch))
}

#[track_caller]
fn is_refused(result: Result<Outcome, Failed>) {
    let failed = result.unwrap_err();
    assert_eq!(failed.error().kind(), ErrorKind::Refused, "{}", failed.error());
}

/// An owner that knows `prefill`, under a policy for it: all of the cache, weights to read.
fn owner(folder: &TempDir) -> Engine {
    let prefill = || Peers::Named("prefill".into());
    let policy = Policy::Rules(vec![
        Rule::new(prefill(), Access::READ_WRITE).of(["cache"]),
        Rule::new(prefill(), Access::READ).of(["weights"]),
    ]);
    let keys = keys(folder, "owner", &[("decode", 1), ("prefill", 2), ("watcher", 3)]);
    builder(&THEIRS[..1]).authentication(keys).policy(policy).start().unwrap()
}

fn prefill(folder: &TempDir) -> Engine {
    let keys = keys(folder, "prefill", &[("prefill", 2), ("decode", 1)]);
    builder(&OURS[..1]).authentication(keys).start().unwrap()
}

#[test]
#[ignore = "needs soft-RoCE NICs: cargo xtask test --only rdma"]
fn a_policy_holds_over_nics() {
    let folder = tempfile::tempdir().unwrap();
    let (owner, prefill) = (owner(&folder), prefill(&folder));
    let [cache, weights] =
        [("cache", 1), ("weights", 2)].map(|(label, round)| full_of(&owner, Some(label), round));
    let private = full_of(&owner, None, 3);
    let near = full_of(&prefill, None, 4);
    let peer = run(prefill.open(owner.name())).unwrap();
    assert_eq!((peer.path(), peer.buffers().len()), (PathKind::Rdma, 2));

    let packets = |bytes: usize| (bytes / 4096) as u64;
    let before = sent(OURS[0]);
    write(&prefill, &near, &peer, cache.addr()).unwrap();
    assert!(sent(OURS[0]) - before >= packets(LEN), "the cache goes by the NICs");
    assert_eq!(first_wrong(&cache, 0..LEN, 4), None);

    // A NIC's key would be good for writing them, too: they go by TCP.
    let before = sent(THEIRS[0]);
    read(&prefill, &near, &peer, weights.addr()).unwrap();
    assert_eq!(first_wrong(&near, 0..LEN, 2), None);
    assert!(sent(THEIRS[0]) - before < packets(LEN), "weights don't");

    for addr in [weights.addr(), private.addr()] {
        is_refused(write(&prefill, &near, &peer, addr));
    }
    is_refused(read(&prefill, &near, &peer, private.addr()));
    assert_eq!(first_wrong(&weights, 0..LEN, 2), None);
    assert_eq!(first_wrong(&private, 0..LEN, 3), None);
    drop((near, peer));
    run(prefill.stop());
    run(owner.stop());
}

#[test]
#[ignore = "needs soft-RoCE NICs: cargo xtask test --only rdma"]
fn a_window_opens_no_more_than_the_policy_permits() {
    let folder = tempfile::tempdir().unwrap();
    let (owner, prefill) = (owner(&folder), prefill(&folder));
    let (weights, private) = (full_of(&owner, Some("weights"), 2), full_of(&owner, None, 3));
    let grant = |region| owner.grant(region, 0..LEN, Access::READ_WRITE, GrantOptions::default());
    let (of_weights, of_private) = (grant(&weights).unwrap(), grant(&private).unwrap());
    let near = full_of(&prefill, None, 4);
    let peer = run(prefill.open(owner.name())).unwrap();
    assert_eq!(peer.path(), PathKind::Rdma);
    let write = |reference| {
        let mut batch = Batch::new(&peer);
        batch.write_to(&near.share(0..LEN).unwrap(), &reference, 0);
        run(prefill.transfer(batch))
    };
    let read = |reference| {
        let mut batch = Batch::new(&peer);
        batch.read_from(near.lease(0..LEN).unwrap(), &reference, 0);
        run(prefill.transfer(batch))
    };
    let before = sent(THEIRS[0]);
    read(of_weights.reference()).unwrap();
    assert!(sent(THEIRS[0]) - before >= (LEN / 4096) as u64, "by a window");
    assert_eq!(first_wrong(&near, 0..LEN, 2), None);
    fill(&near, 4);
    is_refused(write(of_weights.reference()));
    is_refused(write(of_private.reference()));
    is_refused(read(of_private.reference()));
    assert_eq!(first_wrong(&weights, 0..LEN, 2), None);
    assert_eq!(first_wrong(&private, 0..LEN, 3), None);
    drop((near, peer));
    run(prefill.stop());
    run(owner.stop());
}

#[test]
#[ignore = "needs soft-RoCE NICs: cargo xtask test --only rdma"]
fn without_a_key_there_is_no_queue_pair() {
    let folder = tempfile::tempdir().unwrap();
    let (owner, prefill) = (owner(&folder), prefill(&folder));
    let cache = full_of(&owner, Some("cache"), 1);
    let before = queue_pairs(THEIRS[0]);
    let wrong = keys(&folder, "thief", &[("prefill", 9), ("decode", 1)]);
    for authentication in [wrong, Authentication::Off] {
        let thief = builder(&OURS[1..]).authentication(authentication).start().unwrap();
        assert!(run(thief.open(owner.name())).is_err());
        run(thief.stop());
        assert_eq!(queue_pairs(THEIRS[0]), before);
    }
    let known = keys(&folder, "known", &[("watcher", 3), ("decode", 1)]);
    let watcher = builder(&OURS[1..]).authentication(known).start().unwrap();
    let peer = run(watcher.open(owner.name())).unwrap();
    let count = |engine: &Engine, peer: &Peer| {
        let mut batch = Batch::new(peer);
        batch.count(7, 1);
        run(engine.transfer(batch))
    };
    let counter = owner.counter(7).unwrap();
    assert!(count(&watcher, &peer).is_err(), "no rule permits it anything");
    assert_eq!((queue_pairs(THEIRS[0]), counter.value()), (before, 0));
    run(watcher.stop());
    let near = full_of(&prefill, None, 4);
    let peer = run(prefill.open(owner.name())).unwrap();
    write(&prefill, &near, &peer, cache.addr()).unwrap();
    assert!(queue_pairs(THEIRS[0]) > before, "they are counted");
    count(&prefill, &peer).unwrap();
    assert_eq!(counter.value(), 1);
    drop((near, peer));
    run(prefill.stop());
    run(owner.stop());
}
