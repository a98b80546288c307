//! Devices: what they are, and what they report by themselves.

use std::process::Command;

use kvrail_reactors::verbs::{AsyncEvent, Device};

use super::*;

/// Makes a network interface with an RDMA device on it, which no other test has. Both end with the
/// guest.
fn make(link: &str, device: &str) {
    let peer = format!("{link}p");
    run(&["ip", "link", "add", link, "type", "veth", "peer", "name", &peer]);
    run(&["ip", "link", "set", &peer, "up"]);
    run(&["ip", "link", "set", link, "up"]);
    run(&["rdma", "link", "add", device, "type", "rxe", "netdev", link]);
}

fn run(words: &[&str]) {
    let status = Command::new(words[0]).args(&words[1..]).status().unwrap();
    assert!(status.success(), "{words:?}: {status}");
}

/// Waits until the device has reported this.
fn reported(device: &Device, awaited: AsyncEvent) {
    let (since, mut seen) = (Instant::now(), Vec::new());
    while !seen.contains(&awaited) {
        seen.extend(device.events());
        assert!(since.elapsed() < PATIENCE, "{seen:?}");
    }
}

#[test]
#[ignore = "needs rxe0 and rxe1: cargo xtask vm"]
fn a_device_that_is_not_there_is_named() {
    let error = Adapter::open("mlx5_99").unwrap_err();
    assert!(error.to_string().contains("mlx5_99"), "{error}");
}

#[test]
#[ignore = "needs rxe0 and rxe1: cargo xtask vm"]
fn a_software_device_says_so() {
    let device = Device::open("rxe0").unwrap();
    assert!(device.is_software(), "vendor {:#x}, part {}", device.vendor(), device.part());
    let limits = device.limits();
    assert!(limits.queue_pairs > 0 && limits.shared_receives > 0 && limits.pieces > 1);
    assert!(device.port().unwrap().message_bytes >= 1 << 20);
}

#[test]
#[ignore = "needs rxe0 and rxe1: cargo xtask vm"]
fn a_port_and_its_addresses_are_reported_as_they_come_and_go() {
    make("own0", "own_rxe0");
    let device = Device::open("own_rxe0").unwrap();
    run(&["ip", "addr", "add", "10.77.0.1/24", "dev", "own0"]);
    reported(&device, AsyncEvent::GidChanged);
    run(&["ip", "link", "set", "own0", "down"]);
    reported(&device, AsyncEvent::PortDown);
    assert!(!device.port().unwrap().is_up);
    run(&["ip", "link", "set", "own0", "up"]);
    reported(&device, AsyncEvent::PortUp);
    assert!(device.port().unwrap().is_up);
}

/// Told by hand: a soft-RoCE device is not deleted while somebody has it open.
#[test]
#[ignore = "needs rxe0 and rxe1: cargo xtask vm"]
fn a_device_that_is_gone_flushes_all_that_was_posted() {
    let (mut a, b) = pair();
    let holders = Arc::strong_count(&a.region);
    let write =
        |id| WorkRequest { is_signalled: id % 2 == 0, ..request(id, Operation::Write, &a, &b) };
    let list: Vec<_> = (0..64).map(write).collect();
    a.post(list);
    let other = a.nic.create_qp().unwrap();
    a.nic.told(AsyncEvent::DeviceFatal);
    assert!(!a.nic.has(a.qp.number) && !a.nic.has(other.number));
    let mut ends = Vec::new();
    while ends.last().is_none_or(|(id, _)| *id < 63) {
        ends.extend(a.ends(1));
    }
    let first = ends.iter().position(|(_, status)| *status == Status::Flushed).unwrap();
    let (done, flushed) = ends.split_at(first);
    assert!(done.iter().all(|(id, status)| id % 2 == 0 && status.is_success()), "{ends:?}");
    // Those before the last success are done, signalled or not; behind it each is flushed.
    let next = done.last().map_or(0, |(id, _)| id + 1);
    assert!(flushed.iter().copied().eq((next..64).map(|id| (id, Status::Flushed))), "{ends:?}");
    assert!(a.nic.create_qp().is_err());
    assert!(a.nic.arm(), "nothing comes any more");
    assert_eq!(a.nic.poll(1, &mut Vec::new()), 0);
    assert_eq!(Arc::strong_count(&a.region), holders, "nothing posted holds it");
}

#[test]
#[ignore = "needs rxe0 and rxe1: cargo xtask vm"]
fn what_others_queues_report_is_theirs() {
    let (mut a, b) = pair();
    for event in [
        AsyncEvent::CompletionsFailed(u32::MAX),
        AsyncEvent::ReceivesFailed(u32::MAX),
        AsyncEvent::LastReceive(a.qp.number),
        AsyncEvent::PortDown,
    ] {
        a.nic.told(event);
    }
    a.post(vec![request(1, Operation::Write, &a, &b)]);
    assert_eq!(a.ends(1), [(1, Status::Success)]);
}
