//! Letters: one way, in order, lost with their connection, and no way in for anything else.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::*;
use crate::control::Letter;
use crate::control::wire::{self, Kind};

fn letter(number: u64) -> Letter {
    let body = serde_json::json!({ "number": number });
    Letter { from: "somebody".into(), incarnation: 1, to: u64::MAX, body }
}

/// Waits until so many letters have come; returns their numbers.
fn numbers(engine: &Engine, count: usize) -> Vec<u64> {
    let since = Instant::now();
    while engine.letters.lock().unwrap().len() < count {
        assert!(since.elapsed() < Duration::from_secs(20), "letters are missing");
        std::thread::sleep(Duration::from_millis(5));
    }
    let letters = engine.letters.lock().unwrap();
    letters.iter().map(|letter| letter.body["number"].as_u64().unwrap()).collect()
}

#[test]
fn letters_arrive_in_their_order() {
    let (near, _) = start(config("127.0.0.1"));
    let (far, engine) = start(config("127.0.0.1"));
    let name = far.name().into();
    (0..200).for_each(|number| near.send(&name, &letter(number)));
    assert_eq!(numbers(&engine, 200), (0..200).collect::<Vec<_>>());
    assert_eq!(engine.letters.lock().unwrap()[0], letter(0));
}

#[test]
fn one_that_comes_in_pieces_and_the_next_in_the_same_breath_are_both_read() {
    let (far, engine) = start(config("127.0.0.1"));
    let mut stream = TcpStream::connect(far.name()).unwrap();
    let both = [letter(1), letter(2)].map(|letter| letter.sealed().unwrap()).concat();
    let (first, rest) = both.split_at(20);
    stream.write_all(first).unwrap();
    std::thread::sleep(Duration::from_millis(30));
    stream.write_all(rest).unwrap();
    assert_eq!(numbers(&engine, 2), [1, 2]);
    stream.write_all(&letter(3).sealed().unwrap()).unwrap();
    assert_eq!(numbers(&engine, 3), [1, 2, 3]);
}

#[test]
fn whatever_else_comes_among_letters_ends_the_connection() {
    let (far, engine) = start(config("127.0.0.1"));
    let nonsense = wire::encode(Kind::Letter, false, b"[]").unwrap();
    let question = wire::encode(Kind::Probe, false, b"{}").unwrap();
    for bad in [nonsense, question, vec![0; 64]] {
        let mut stream = TcpStream::connect(far.name()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(&letter(1).sealed().unwrap()).unwrap();
        // It may be closed already when the last byte is on its way.
        let _ = stream.write_all(&bad);
        let end = stream.read(&mut [0; 1]);
        assert!(!matches!(end, Ok(1..)), "nothing is answered");
    }
    assert_eq!(numbers(&engine, 3), [1, 1, 1]);
}

#[test]
fn a_connection_that_its_reader_closed_is_made_anew() {
    let (near, _) = start(config("127.0.0.1"));
    let far = TcpListener::bind("127.0.0.1:0").unwrap();
    far.set_nonblocking(true).unwrap();
    let name: Arc<str> = far.local_addr().unwrap().to_string().into();
    for number in 1..=3 {
        let since = Instant::now();
        // One that is written just when the connection closes is lost.
        let mut stream = loop {
            near.send(&name, &letter(number));
            std::thread::sleep(Duration::from_millis(20));
            match far.accept() {
                Ok((stream, _)) => break stream,
                Err(_) => assert!(since.elapsed() < Duration::from_secs(20), "nobody comes"),
            }
        };
        stream.set_nonblocking(false).unwrap();
        let mut read = vec![0; letter(number).sealed().unwrap().len()];
        stream.read_exact(&mut read).unwrap();
        assert_eq!(read, letter(number).sealed().unwrap());
    }
}
