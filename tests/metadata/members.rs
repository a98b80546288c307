//! etcd as a cluster of three: one member is killed, or hangs, while engines move data and look
//! each other up. Two are a majority, so what was published stays, by the lease that it has.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use etcd_client::{Client, ConnectOptions, GetOptions};
use kvrail::Engine;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::outages::{IN_TIME, under_load};
use crate::service::{blocking, etcd, folder, free_ports};
use crate::{eventually, keys, named, reads, region, wait};

const MEMBERS: usize = 3;

/// A member that hangs costs each of its users one request, 3 s, and renewals come every 4 s: so
/// none is late even on a machine that is busy.
const LEASE: Duration = Duration::from_secs(12);

/// Three members on loopback; ends with this value.
struct Cluster {
    ports: [u16; MEMBERS],
    members: Vec<Child>,
    _folder: TempDir,
}

impl Cluster {
    fn start() -> Self {
        let folder = folder();
        let all: [u16; 2 * MEMBERS] = free_ports();
        let (ports, peer_ports) = all.split_first_chunk::<MEMBERS>().expect("twice as many");
        let peer = |at: usize| format!("{}=http://127.0.0.1:{}", name(at), peer_ports[at]);
        let others: Vec<_> = (0..MEMBERS).map(peer).collect();
        let start = |at: usize| {
            let mut command = etcd(name(at), ports[at], peer_ports[at], &others.join(","));
            command.current_dir(&folder);
            spawn(command)
        };
        let members = (0..MEMBERS).map(start).collect();
        let cluster = Self { ports: *ports, members, _folder: folder };
        for at in 0..MEMBERS {
            eventually("a member answers", || cluster.found(at, "no such key", true).is_ok());
        }
        cluster
    }

    /// All members, this one before the others: it is the one that is asked.
    fn url(&self, first: usize) -> String {
        let mut ports = self.ports;
        ports.rotate_left(first);
        let members = ports.map(|port| format!("127.0.0.1:{port}"));
        format!("etcd://{}", members.join(";"))
    }

    /// An engine that asks this member as long as that answers.
    fn engine(&self, first: usize, name: &str) -> Engine {
        let builder = named(name, &self.url(first)).metadata_lease(LEASE);
        builder.start().expect("an engine")
    }

    /// What a member knows by itself of a key: its creation and its lease; none where it is not
    /// there. With `is_agreed` what the majority knows.
    fn found(&self, at: usize, key: &str, is_agreed: bool) -> Result<Option<(i64, i64)>, String> {
        blocking(async {
            let options = ConnectOptions::new().with_timeout(Duration::from_secs(5));
            let address = format!("127.0.0.1:{}", self.ports[at]);
            let mut client = Client::connect([address], Some(options)).await?;
            let options = GetOptions::new();
            let options = if is_agreed { options } else { options.with_serializable() };
            let mut found = client.get(key, Some(options)).await?.take_kvs();
            Ok(found.pop().map(|pair| (pair.create_revision(), pair.lease())))
        })
        .map_err(|error: etcd_client::Error| error.to_string())
    }

    /// Whether a member leads.
    fn leads(&self, at: usize) -> bool {
        blocking(async {
            let address = format!("127.0.0.1:{}", self.ports[at]);
            let status = Client::connect([address], None).await?.status().await?;
            let header = status.header().expect("every answer has one");
            Ok::<_, etcd_client::Error>(header.member_id() == status.leader())
        })
        .expect("it answers")
    }

    /// A member that leads, or one that follows.
    fn one(&self, is_leader: bool) -> usize {
        (0..MEMBERS).find(|at| self.leads(*at) == is_leader).expect("one leads, two follow")
    }

    fn signal(&self, at: usize, signal: Signal) {
        kill_process(Pid::from_child(&self.members[at]), signal).expect("it lives");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for member in &mut self.members {
            // It may have been killed before.
            let _ = member.kill();
            let _ = member.wait();
        }
    }
}

fn name(at: usize) -> &'static str {
    ["one", "two", "three"][at]
}

fn spawn(mut command: Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap_or_else(|error| {
        panic!("{command:?}: {error}; it comes with Debian's package etcd-server")
    })
}

/// Trouble for a member, over two leases: what `far` has published stays as it is, and whoever
/// looks it up finds it in time.
fn two_leases_without(cluster: &Cluster, lost: usize, near: &Engine) {
    let witness = (lost + 1) % MEMBERS;
    let entries = || keys("far").map(|key| cluster.found(witness, &key, false).expect("it lives"));
    let before = entries();
    assert!(before.iter().all(Option::is_some), "{before:?}");
    let (start, mut lookups) = (Instant::now(), 0);
    while start.elapsed() < 2 * LEASE {
        let asked = Instant::now();
        wait(near.open("far")).expect("two of three members know it");
        assert!(asked.elapsed() < IN_TIME, "{:?}", asked.elapsed());
        assert_eq!(entries(), before, "neither gone nor published again");
        lookups += 1;
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(lookups > 1, "{lookups} lookups in two leases");
}

/// `trouble` for one member, under load; then for who comes anew.
fn a_member_is_in(trouble: Signal, is_leader: bool) {
    let cluster = Cluster::start();
    let lost = cluster.one(is_leader);
    let [near, far] = ["near", "far"].map(|name| cluster.engine(lost, name));
    let _memory = region(&far, 7);
    reads(&near, "far", 7);
    under_load(&cluster.url(lost), || {
        cluster.signal(lost, trouble);
        two_leases_without(&cluster, lost, &near);
        reads(&cluster.engine(lost, "late"), "far", 7);
    });
    if trouble == Signal::STOP {
        cluster.signal(lost, Signal::CONT);
    }
    wait(far.stop());
    let witness = (lost + 1) % MEMBERS;
    for key in keys("far") {
        assert_eq!(cluster.found(witness, &key, true), Ok(None), "it has left");
    }
}

#[test]
fn a_killed_follower_is_not_missed() {
    a_member_is_in(Signal::KILL, false);
}

#[test]
fn a_killed_leader_is_not_missed() {
    a_member_is_in(Signal::KILL, true);
}

#[test]
fn a_follower_that_hangs_is_not_waited_for() {
    a_member_is_in(Signal::STOP, false);
}

#[test]
fn a_leader_that_hangs_is_not_waited_for() {
    a_member_is_in(Signal::STOP, true);
}
