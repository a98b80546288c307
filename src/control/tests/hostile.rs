//! Whatever arrives, the daemon lives, stays within its bounds and serves the next client.
//!
//! Deadlines under test are short, deadlines of the tests long: nothing here measures time.

use super::*;

/// A control plane that loses patience early.
fn impatient() -> (Control, Arc<Engine>) {
    let mut config = config("127.0.0.1");
    config.limits.request = Duration::from_millis(200);
    config.limits.linger = Duration::from_millis(100);
    start(config)
}

/// The opposite: only eviction ends a connection within the raw client's patience.
fn patient() -> ControlConfig {
    let mut config = config("127.0.0.1");
    config.limits.request = Duration::from_secs(600);
    config
}

/// Sends `bytes`, expects no answer, and that the daemon still serves.
fn is_dropped(control: &Control, bytes: &[u8]) {
    let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned();
    let raw = Raw::connect(control).send_what_it_takes(bytes);
    assert_eq!(raw.receive(), b"", "{shown:?} was answered");
    assert_eq!(probe_raw(control)[8], 3, "no service after {shown:?}");
}

#[test]
fn lengths_out_of_bounds_are_dropped() {
    let (control, _) = impatient();
    for length in [0, (1 << 20) + 1, 1 << 32, u64::MAX, 1 << 63] {
        is_dropped(&control, &[&length.to_le_bytes()[..], b"\x03{}"].concat());
    }
}

#[test]
fn unknown_types_are_dropped() {
    let (control, _) = impatient();
    for first in [4, 5, b'!', 0x7f, 0x80, 0xff] {
        is_dropped(&control, &frame(&[&[first], &b"{}"[..]].concat()));
    }
}

#[test]
fn mistyped_bodies_are_dropped() {
    let (control, engine) = impatient();
    let bodies: [&[u8]; 12] = [
        b"",
        b"null",
        b"[1]",
        b"\"text\"",
        b"{",
        b"{}}",
        b"{\"a\":\xff}",
        b"\xef\xbb\xbf{}",
        b"{\"notify_msg\":7}",
        b"{\"notify_msg\":[\"x\"]}",
        b"{\"name\":{},\"notify_msg\":\"x\"}",
        b"[\"name\",\"text\"]",
    ];
    for body in bodies {
        is_dropped(&control, &frame(&[b"\x02", body].concat()));
    }
    for kind in [0, 1, 3] {
        is_dropped(&control, &frame(&[&[kind], &b"[1]"[..]].concat()));
    }
    assert!(engine.notes.lock().unwrap().is_empty());
}

#[test]
fn deep_nesting_is_no_stack_overflow() {
    let (control, _) = impatient();
    let depth = 500_000;
    for kind in 0..=3 {
        let open = [&[kind], &b"{\"a\":"[..], &b"[".repeat(depth)].concat();
        is_dropped(&control, &frame(&open));
    }
    is_dropped(&control, &frame(&b"{\"a\":".repeat(200_000)));
    let closed = [b"\x03{\"a\":", &b"[".repeat(depth)[..], &b"]".repeat(depth), b"}"].concat();
    // Well-formed: whether it is answered is no matter, that the daemon lives is.
    Raw::connect(&control).send(&frame(&closed)).receive();
    assert_eq!(probe_raw(&control)[8], 3);
}

#[test]
fn random_bytes_are_survived() {
    let (control, _) = impatient();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..200 {
        let mut bytes: Vec<u8> = (0..round).map(|_| next_random(&mut state)).collect();
        if round % 2 == 0 {
            bytes = frame(&[&[next_random(&mut state) % 4], &bytes[..]].concat());
        }
        Raw::connect(&control).send_what_it_takes(&bytes).shutdown_write_if_open().receive();
    }
    assert_eq!(probe_raw(&control)[8], 3);
}

/// xorshift64.
fn next_random(state: &mut u64) -> u8 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 32) as u8
}

#[test]
fn truncated_frames_are_dropped_when_the_client_leaves() {
    let (control, _) = start(config("127.0.0.1"));
    let whole = frame(b"\x03{}");
    for cut in 0..whole.len() {
        let raw = Raw::connect(&control).send(&whole[..cut]).shutdown_write_if_open();
        assert_eq!(raw.receive(), b"", "cut at {cut}");
    }
    assert_eq!(probe_raw(&control)[8], 3);
}

#[test]
fn a_silent_client_is_dropped() {
    let (control, _) = impatient();
    assert_eq!(Raw::connect(&control).receive(), b"");
    assert_eq!(Raw::connect(&control).send(&frame(b"\x03{}")[..10]).receive(), b"");
}

#[test]
fn a_dripping_client_is_dropped() {
    let (control, _) = impatient();
    let mut raw = Raw::connect(&control);
    let mut dripped = 0;
    raw.0.write_all(&frame(&[b' '; 1000])[..8]).unwrap();
    // Each byte is within any patience for a single read; only a bound on the whole ends this.
    while raw.0.write_all(b" ").is_ok() {
        dripped += 1;
        assert!(dripped < 500, "dripping was never ended");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(probe_raw(&control)[8], 3);
}

#[test]
fn a_client_that_never_reads_is_dropped() {
    let (control, engine) = impatient();
    // Whether the answer fits the socket buffers or not, the seat must come back.
    *engine.buffers.lock().unwrap() = (1..10_000).map(|n| buffer(n << 20, 4096)).collect();
    let idle: Vec<Raw> = (0..8).map(|_| Raw::connect(&control).send(&frame(b"\x01{}"))).collect();
    for raw in &idle {
        wait_for_reset(&raw.0);
    }
    assert_eq!(probe_raw(&control)[8], 3);
}

/// Writes until the daemon's side is gone: the proof that it gave up, without reading its answer.
fn wait_for_reset(mut stream: &TcpStream) {
    for _ in 0..1000 {
        if stream.write_all(b"x").is_err() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("the daemon never gave up");
}

#[test]
fn a_thousand_half_open_connections_keep_nobody_out() {
    let (control, _) = start(patient());
    let count = 1000.min(open_files_max() / 2);
    let half_open: Vec<Raw> =
        (0..count).map(|n| Raw::connect(&control).send(&frame(b"\x03{}")[..n % 10])).collect();
    for _ in 0..20 {
        assert_eq!(probe_raw(&control)[8], 3);
    }
    drop(half_open);
}

/// The soft limit; both ends of a connection count in a test.
fn open_files_max() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    line.split_whitespace().nth(3).unwrap().parse().unwrap_or(usize::MAX)
}

#[test]
fn newcomers_take_the_seats_of_the_longest_waiting() {
    let mut config = patient();
    config.limits.connections = 4;
    let (control, _) = start(config);
    let mut silent: Vec<Raw> = (0..5).map(|_| Raw::connect(&control)).collect();
    let youngest = silent.pop().unwrap();
    assert_eq!(silent.remove(0).receive(), b"", "the first made room for the fifth");
    assert_eq!(youngest.send(&frame(b"\x03{}")).receive()[8], 3);
}

#[test]
fn half_sent_frames_hold_a_bounded_amount_together() {
    let mut config = patient();
    config.limits.buffered_bytes = 3 << 20;
    let (control, _) = start(config);
    let mut most = frame(&[b'{'; 1 << 20]);
    most.pop();
    let large: Vec<Raw> =
        (0..16).map(|_| Raw::connect(&control)).map(|raw| raw.send_what_it_takes(&most)).collect();
    assert_eq!(probe_raw(&control)[8], 3);
    let evicted = large.into_iter().take(8).map(Raw::receive).filter(|bytes| bytes.is_empty());
    assert_eq!(evicted.count(), 8, "the first to fill their buffers made room for the last");
}

#[test]
fn endless_notifications_meet_the_bound() {
    let (control, engine) = start(config("127.0.0.1"));
    let request = frame(b"\x02{\"name\":\"flood\",\"notify_msg\":\"x\"}");
    for number in 0..50 {
        let reply = Raw::connect(&control).send(&request).receive();
        let verdict = if number < engine.room { "success" } else { "" };
        let expected = format!("\u{2}{{\"name\":\"\",\"notify_msg\":\"{verdict}\"}}\n");
        assert_eq!(reply, frame(expected.as_bytes()));
    }
    assert_eq!(engine.notes.lock().unwrap().len(), engine.room);
}

#[test]
fn a_second_request_on_a_connection_is_ignored() {
    let (control, engine) = start(config("127.0.0.1"));
    let note = frame(b"\x02{\"name\":\"n\",\"notify_msg\":\"x\"}");
    Raw::connect(&control).send(&[&note[..], &note].concat()).receive();
    assert_eq!(engine.notes.lock().unwrap().len(), 1);
}

#[test]
fn a_descriptor_that_nobody_could_read_is_not_sent() {
    let (control, engine) = start(config("127.0.0.1"));
    *engine.buffers.lock().unwrap() = (1..40_000).map(|n| buffer(n << 20, 4096)).collect();
    assert_eq!(wait(control.publish()).unwrap_err().kind(), ErrorKind::Refused);
    is_dropped(&control, &frame(b"\x01{}"));
}
