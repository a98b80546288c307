//! Alone in its process, so that the counts are its own: hostile connections leave no descriptor
//! behind, and an engine that goes takes all of its own along.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use kvrail::{Access, Engine, Location};

fn files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Descriptors, once what closes in the background had time to.
fn settled(at_most: usize) -> usize {
    for _ in 0..1_000 {
        if files() <= at_most {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    files()
}

fn data_port(name: &str) -> u16 {
    let mut stream = TcpStream::connect(name).unwrap();
    stream.write_all(&[&3u64.to_le_bytes()[..], b"\x01{}"].concat()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&answer[9..]).unwrap();
    json["tcp_data_port"].as_u64().unwrap() as u16
}

/// Connections that end in every way a stranger can end them.
fn attacked() {
    let engine = Engine::builder().start().unwrap();
    let region = engine.allocate(1 << 20, Location::Cpu(None), Access::READ_WRITE).unwrap();
    let port = data_port(engine.name());
    let idle = files();
    let request = |opcode: u8, len: u64| {
        let mut bytes = [len.to_le_bytes(), region.addr().to_le_bytes(), [0; 8]].concat();
        bytes[16] = opcode;
        bytes
    };
    let attacks = [
        vec![],
        vec![7; 10],
        vec![0xff; 1_000],
        request(0x80, 1 << 20),
        request(0x80, 0),
        request(0, u64::MAX),
        [request(0x81, 1 << 20), vec![1; 1_000]].concat(),
        [request(1, 1_000), vec![1; 1_000]].concat(),
        request(0xC0, u64::MAX),
        request(0x80, 1).repeat(2_000),
    ];
    for _ in 0..30 {
        for attack in &attacks {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            let _ = stream.write_all(attack);
        }
    }
    assert!(settled(idle) <= idle, "connections stay open: {} of {idle}", files());
    drop(region);
    drop(engine);
}

/// Descriptors, once their number stands still.
fn at_rest() -> usize {
    let mut count = files();
    loop {
        std::thread::sleep(Duration::from_millis(300));
        match files() {
            same if same == count => return count,
            other => count = other,
        }
    }
}

#[test]
fn hostile_connections_leave_no_descriptor() {
    attacked(); // what the process keeps for good, it has now
    let before = at_rest();
    (0..3).for_each(|_| attacked());
    let after = settled(before);
    assert!(after <= before, "{before} before, {after} after");
}
