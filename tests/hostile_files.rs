//! Alone in its process, whose limit of descriptors it lowers: strangers that take them all make
//! room for peers.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use kvrail::{Access, Engine, Location};

const FLOOD: &str = "KVRAIL_TEST_FLOOD";

/// More than the engine may open in the test.
const STRANGERS: usize = 300;

fn data_port(name: &str) -> u16 {
    let mut stream = TcpStream::connect(name).unwrap();
    stream.write_all(&[&3u64.to_le_bytes()[..], b"\x01{}"].concat()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&answer[9..]).unwrap();
    json["tcp_data_port"].as_u64().unwrap() as u16
}

/// The other process: strangers that stay, then a peer that asks for something.
fn flood(target: &str) {
    let (port, addr) = target.split_once(' ').unwrap();
    let connect = || TcpStream::connect(("127.0.0.1", port.parse::<u16>().unwrap())).unwrap();
    let _strangers: Vec<TcpStream> = (0..STRANGERS).map(|_| connect()).collect();
    let mut peer = connect();
    peer.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let addr: u64 = addr.parse().unwrap();
    peer.write_all(&[4u64.to_le_bytes(), addr.to_le_bytes(), [0; 8]].concat()).unwrap();
    peer.read_exact(&mut [0; 4]).expect("the peer is served");
}

#[test]
fn strangers_that_take_all_descriptors_make_room_for_peers() {
    if let Ok(target) = std::env::var(FLOOD) {
        return flood(&target);
    }
    let engine = Engine::builder().start().unwrap();
    let region = engine.allocate(4_096, Location::Cpu(None), Access::READ).unwrap();
    let target = format!("{} {}", data_port(engine.name()), region.addr());
    let mut other = Command::new(std::env::current_exe().unwrap());
    let other = other.args(["--exact", "strangers_that_take_all_descriptors_make_room_for_peers"]);
    let open = std::fs::read_dir("/proc/self/fd").unwrap().count();
    let limit = |soft: usize| {
        // From outside, so that no unsafe code is needed.
        let pid = std::process::id().to_string();
        let limit = format!("--nofile={soft}:");
        let set = Command::new("prlimit").args(["--pid", &pid, &limit]).status();
        assert!(set.expect("prlimit of util-linux").success());
    };
    let mut child = other.env(FLOOD, target).spawn().unwrap();
    limit(open + 100);
    let status = child.wait().unwrap();
    limit(1_024);
    assert!(status.success());
}
