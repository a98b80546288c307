//! Peers that die, stop, refuse or ask for what they may not have.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};

use kvrail::{ErrorKind, Landed};

use super::*;

/// A process of its own that serves memory.
struct Target {
    process: Child,
    name: String,
}

impl Target {
    fn start(devices: &[&str], bytes: usize) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_kvrail"))
            .args(["bench", "--mode", "target", "--protocol", "rdma", "--path", "rdma"])
            .args(["--device-name", &devices.join(",")])
            .args(["--buffer-size", &bytes.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let name = line.trim().strip_prefix("segment ").expect("its name").to_owned();
        Self { process, name }
    }

    fn signal(&self, signal: &str) {
        sh(&format!("kill -{signal} {}", self.process.id()));
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn writing(peer: &Peer, near: &Region) -> Batch {
    let mut batch = Batch::new(peer);
    batch.write(&near.share(0..near.len()).unwrap(), peer.buffers()[0].addr);
    batch
}

#[test]
#[ignore = "needs soft-RoCE NICs: cargo xtask test --only rdma"]
fn a_killed_peer_ends_transfers_as_lost() {
    let target = Target::start(&THEIRS[..1], 16 * MIB);
    let engine = engine(&OURS[..1]);
    let near = engine.allocate(16 * MIB, Location::Cpu(None), Access::READ_WRITE).unwrap();
    let peer = run(engine.open(&target.name)).unwrap();
    drop(run(engine.transfer(writing(&peer, &near))).unwrap());
    // Over a second of work, however quick the machine.
    let transfers: Vec<_> = (0..8).map(|_| engine.transfer(writing(&peer, &near))).collect();
    std::thread::sleep(Duration::from_millis(100));
    target.signal("KILL");
    let failed = transfers.into_iter().map(run).find_map(Result::err).unwrap();
    assert_eq!(failed.error().kind(), ErrorKind::Lost, "{}", failed.error());
    assert_eq!(failed.receipt().landed(), Landed::Maybe);
    drop((failed, target));
    // Another process is another peer.
    let next = Target::start(&THEIRS[..1], 16 * MIB);
    let peer = run(engine.open(&next.name)).unwrap();
    run(engine.transfer(writing(&peer, &near))).unwrap();
    run(engine.stop());
}

#[test]
#[ignore = "needs soft-RoCE NICs: cargo xtask test --only rdma"]
fn a_peer_that_is_stopped_for_six_seconds_costs_nothing() {
    let target = Target::start(&THEIRS[..1], 16 * MIB);
    let engine = engine(&OURS[..1]);
    let near = engine.allocate(16 * MIB, Location::Cpu(None), Access::READ_WRITE).unwrap();
    let peer = run(engine.open(&target.name)).unwrap();
    drop(run(engine.transfer(writing(&peer, &near))).unwrap());
    target.signal("STOP");
    // Its NIC goes on by itself: that is the point of RDMA.
    run(engine.transfer(writing(&peer, &near))).unwrap();
    std::thread::sleep(Duration::from_secs(6));
    target.signal("CONT");
    run(engine.transfer(writing(&peer, &near))).unwrap();
    run(engine.stop());
}

#[test]
#[ignore = "needs soft-RoCE NICs: cargo xtask test --only rdma"]
fn a_remote_access_error_fails_the_guilty_and_no_bystander() {
    let pair = Pair::new(1, 4 * MIB);
    fill(&pair.near, 1);
    let stale = pair.b.allocate(MIB, Location::Cpu(None), Access::READ_WRITE).unwrap();
    let peer = run(pair.a.open(pair.b.name())).unwrap();
    let addr = stale.addr();
    // It has a key by now; its owner takes the memory back, and doesn't tell.
    let mut warm = Batch::new(&peer);
    warm.write(&pair.near.share(0..64).unwrap(), addr);
    pair.transfer(warm).unwrap();
    run(pair.b.unregister(stale)).unwrap();
    let bystander = pair.a.transfer(pair.writing(0, 4 * MIB));
    let mut guilty = Batch::new(&peer);
    guilty.write(&pair.near.share(0..64).unwrap(), addr);
    let guilty = pair.a.transfer(guilty);
    let failed = run(guilty).unwrap_err();
    assert_eq!(failed.error().kind(), ErrorKind::Refused, "{}", failed.error());
    assert!(failed.error().to_string().contains("remote access error"), "{}", failed.error());
    run(bystander).unwrap();
    assert_eq!(first_wrong(&pair.far, 0..4 * MIB, 1), None);
    pair.stop();
}

#[test]
#[ignore = "needs soft-RoCE NICs: cargo xtask test --only rdma"]
fn a_thousand_connections_that_fail_leave_nothing() {
    let pair = Pair::new(1, MIB);
    let refuse = |times: usize| {
        for _ in 0..times {
            let stale = pair.b.allocate(4096, Location::Cpu(None), Access::READ_WRITE).unwrap();
            let peer = run(pair.a.open(pair.b.name())).unwrap();
            let addr = stale.addr();
            run(pair.b.unregister(stale)).unwrap();
            let mut batch = Batch::new(&peer);
            batch.write(&pair.near.share(0..64).unwrap(), addr);
            let failed = pair.transfer(batch).unwrap_err();
            assert_eq!(failed.error().kind(), ErrorKind::Refused, "{}", failed.error());
        }
    };
    refuse(20);
    let before = Held::now();
    refuse(1000);
    eventually("everything is given back", || before.is_no_less_than(&Held::now()));
    pair.transfer(pair.writing(0, MIB)).unwrap();
    pair.stop();
}

/// A Mooncake peer that asks for an endpoint at one of our NICs, and what it is answered.
fn shake_hands(engine: &Engine, device: &str, queue: u32) -> String {
    let gid = (0..16).map(|at| match at {
        10 | 11 => "ff".to_owned(),
        12 => "0a".to_owned(),
        13 => "09".to_owned(),
        15 => "01".to_owned(),
        _ => "00".to_owned(),
    });
    let request = serde_json::json!({
        "local_gid": gid.collect::<Vec<_>>().join(":"),
        "local_lid": 0,
        "local_nic_path": "10.9.0.1:1@rxe0",
        "payload": "",
        "peer_nic_path": format!("{}@{device}", engine.name()),
        "qp_num": [queue, queue + 1],
        "ready_ack": false,
        "reply_msg": "",
    });
    let text = request.to_string();
    let mut stream = TcpStream::connect(engine.name()).unwrap();
    let length = (text.len() as u64 + 1).to_le_bytes();
    stream.write_all(&[&length[..], &[0], text.as_bytes()].concat()).unwrap();
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).unwrap();
    let reply: serde_json::Value = serde_json::from_slice(&reply[9..]).unwrap();
    reply["reply_msg"].as_str().unwrap().to_owned()
}

#[test]
#[ignore = "needs soft-RoCE NICs: cargo xtask test --only rdma"]
fn a_thousand_handshakes_refused_or_left_alone_leave_nothing() {
    let engine = engine(&THEIRS[..1]);
    assert_eq!(shake_hands(&engine, THEIRS[0], 100), "");
    let before = Held::now();
    for round in 1..=500 {
        // From the same NIC each time: the last one's endpoint makes room.
        assert_eq!(shake_hands(&engine, THEIRS[0], 100 + 2 * round), "", "round {round}");
        assert_ne!(shake_hands(&engine, "nobody's", 100), "");
    }
    eventually("everything is given back", || before.is_no_less_than(&Held::now()));
    // None of them ever said that it was ready.
    eventually("the last one goes too", || Held::now().queue_pairs + 2 <= before.queue_pairs);
    run(engine.stop());
}

/// What this process holds of the kernel's and of memory.
#[derive(Debug)]
struct Held {
    queue_pairs: usize,
    regions: usize,
    descriptors: usize,
    bytes: usize,
}

/// Memory that comes and goes with allocators and page tables, in bytes.
const SLACK_BYTES: usize = 8 * MIB;

impl Held {
    fn now() -> Self {
        let count = |what: &str| {
            let output = Command::new("rdma").args(["resource", "show", what]).output().unwrap();
            String::from_utf8_lossy(&output.stdout).lines().count()
        };
        let status = std::fs::read_to_string("/proc/self/statm").unwrap();
        let pages: usize = status.split(' ').nth(1).unwrap().parse().unwrap();
        Self {
            queue_pairs: count("qp"),
            regions: count("mr"),
            descriptors: std::fs::read_dir("/proc/self/fd").unwrap().count(),
            bytes: pages * 4096,
        }
    }

    fn is_no_less_than(&self, now: &Self) -> bool {
        let is_so = now.queue_pairs <= self.queue_pairs
            && now.regions <= self.regions
            && now.descriptors <= self.descriptors
            && now.bytes <= self.bytes + SLACK_BYTES;
        if !is_so {
            eprintln!("{self:?} before, {now:?} now");
        }
        is_so
    }
}
