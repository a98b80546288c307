//! Alone in their process and one at a time, so that the counts are their own: hostile connections
//! leave no descriptor behind and take no memory, and an engine that goes takes its own along.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use kvrail::{Access, Engine, Location};

static ALONE: Mutex<()> = Mutex::new(());

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

fn header(opcode: u8, addr: u64, len: u64) -> Vec<u8> {
    let mut bytes = [len.to_le_bytes(), addr.to_le_bytes(), [0; 8]].concat();
    bytes[16] = opcode;
    bytes
}

/// Connections that end in every way a stranger can end them.
fn attacked() {
    let engine = Engine::builder().start().unwrap();
    let region = engine.allocate(1 << 20, Location::Cpu(None), Access::READ_WRITE).unwrap();
    let port = data_port(engine.name());
    let idle = files();
    let request = |opcode, len| header(opcode, region.addr(), len);
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
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    attacked(); // what the process keeps for good, it has now
    let before = at_rest();
    (0..3).for_each(|_| attacked());
    let after = settled(before);
    assert!(after <= before, "{before} before, {after} after");
}

/// Resident memory of this process, in bytes.
fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4_096
}

#[test]
fn requests_without_end_whose_answers_nobody_reads_take_no_memory() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let engine = Engine::builder().start().unwrap();
    let region = engine.allocate(1 << 20, Location::Cpu(None), Access::READ_WRITE).unwrap();
    let port = data_port(engine.name());
    let request = header(0x80, region.addr(), 1 << 20).repeat(1_000);
    let before = resident_bytes();
    let streams: Vec<TcpStream> =
        (0..20).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
    for mut stream in &streams {
        stream.set_nonblocking(true).unwrap();
        let start = Instant::now();
        let mut sent = 0;
        while sent < 64 << 20 && start.elapsed() < Duration::from_millis(200) {
            sent += stream.write(&request[sent % 24..]).unwrap_or_default();
        }
        assert!(sent < 64 << 20, "it reads without end");
    }
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 32 << 20, "{grown} bytes for 20 connections");
    // Somebody who reads is answered meanwhile.
    let mut good = TcpStream::connect(("127.0.0.1", port)).unwrap();
    good.write_all(&header(0, region.addr(), 8)).unwrap();
    good.read_exact(&mut [0; 8]).unwrap();
}
