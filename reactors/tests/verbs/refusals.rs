//! What is not permitted, and how it ends.

use kvrail_reactors::verbs::{AsyncEvent, QpNumber, QpState};

use super::*;

#[test]
#[ignore = "needs rxe0 and rxe1: cargo xtask vm"]
fn what_a_key_does_not_cover_ends_the_pair_and_nothing_lands() {
    let (mut a, b) = pair();
    let beyond =
        WorkRequest { remote_addr: b.region.addr() + 4096, ..request(1, Operation::Write, &a, &b) };
    let behind = request(2, Operation::Write, &a, &b);
    a.post(vec![beyond, behind]);
    assert_eq!(a.ends(2), [(1, Status::RemoteAccess), (2, Status::Flushed)]);
    assert_eq!(a.nic.state(a.qp.number), Some(QpState::Error));
    let since = Instant::now();
    while b.nic.state(b.qp.number) != Some(QpState::Error) {
        assert!(since.elapsed() < PATIENCE, "the peer's side is in error too");
    }
    let violated = AsyncEvent::AccessViolated(b.qp.number);
    let events = b.nic.events();
    assert!(events.is_empty() || events.contains(&violated), "{events:?}");
    assert_eq!(b.bytes()[LEN - 1], 2);
}

#[test]
#[ignore = "needs rxe0 and rxe1: cargo xtask vm"]
fn memory_that_is_not_registered_never_reaches_the_device() {
    let (mut a, b) = pair();
    let stray = Arc::new(Region::allocate(4096, None).unwrap());
    let stray = WorkRequest {
        local: Some(Slice::new(stray, 0, 4096).unwrap()),
        ..request(1, Operation::Write, &a, &b)
    };
    a.post(vec![stray, request(2, Operation::Write, &a, &b)]);
    assert_eq!(a.ends(2), [(1, Status::LocalProtection), (2, Status::Flushed)]);
    assert_eq!(a.nic.state(a.qp.number), Some(QpState::Error));
}

/// Whoever learns of a failure takes all before it for done.
#[test]
#[ignore = "needs rxe0 and rxe1: cargo xtask vm"]
fn what_never_reaches_the_device_ends_behind_what_did() {
    let (mut a, b) = pair();
    let stray = Arc::new(Region::allocate(4096, None).unwrap());
    let stray = WorkRequest {
        local: Some(Slice::new(stray, 0, 4096).unwrap()),
        ..request(8, Operation::Write, &a, &b)
    };
    a.post((0..4).map(|id| request(id, Operation::Write, &a, &b)).collect());
    let mut behind: Vec<_> = (4..8).map(|id| request(id, Operation::Write, &a, &b)).collect();
    behind.extend([stray, request(9, Operation::Write, &a, &b)]);
    a.post(behind);
    a.post(vec![request(10, Operation::Write, &a, &b)]);
    let ends = a.ends(11);
    assert!(ends.iter().map(|(id, _)| *id).eq(0..11), "{ends:?}");
    let own = [(8, Status::LocalProtection), (9, Status::Flushed), (10, Status::Flushed)];
    assert_eq!(ends[8..], own);
    let cut = ends.iter().position(|(_, status)| !status.is_success()).unwrap();
    assert!(ends[cut..8].iter().all(|(_, status)| *status == Status::Flushed), "{ends:?}");
}

/// A window to write to its first bytes.
fn opened(side: &mut Side) -> RemoteKey {
    let window = side.nic.window().unwrap();
    let open = WorkRequest {
        id: 1,
        operation: Operation::Bind { window, access: RemoteAccess { read: false, write: true } },
        local: Some(side.slice(0, 4096)),
        remote_addr: side.region.addr(),
        key: side.key(),
        is_signalled: true,
    };
    side.post(vec![open]);
    assert_eq!(side.ends(1), [(1, Status::Success)]);
    window
}

/// Soft-RoCE waits most of a minute for each of them when a queue pair is destroyed before.
#[test]
#[ignore = "needs rxe0 and rxe1: cargo xtask vm"]
fn open_windows_hold_up_neither_a_queue_pairs_end_nor_a_nics() {
    let (mut a, mut b) = pair();
    let since = Instant::now();
    opened(&mut b);
    b.nic.destroy(b.qp.number);
    opened(&mut a);
    drop((a, b));
    assert!(since.elapsed() < PATIENCE, "it took {:?}", since.elapsed());
}

#[test]
#[ignore = "needs rxe0 and rxe1: cargo xtask vm"]
fn a_window_is_open_until_it_is_invalidated() {
    let (mut a, mut b) = pair();
    let window = opened(&mut b);
    let through = |id, a: &Side, b: &Side| WorkRequest {
        local: Some(a.slice(0, 4096)),
        key: window,
        ..request(id, Operation::Write, a, b)
    };
    a.post(vec![through(2, &a, &b)]);
    assert_eq!(a.ends(1), [(2, Status::Success)]);
    let close = WorkRequest {
        id: 3,
        operation: Operation::Invalidate(window),
        local: None,
        remote_addr: 0,
        key: window,
        is_signalled: true,
    };
    b.post(vec![close]);
    assert_eq!(b.ends(1), [(3, Status::Success)]);
    b.fill(5);
    a.post(vec![through(4, &a, &b)]);
    assert_eq!(a.ends(1), [(4, Status::RemoteAccess)]);
    assert!(b.bytes().iter().all(|&byte| byte == 5), "nothing of it landed");
    b.nic.close_window(window);
}

#[test]
#[ignore = "needs rxe0 and rxe1: cargo xtask vm"]
fn a_thousand_connections_that_fail_leave_nothing() {
    let (mut a, mut b) = pair();
    let mut rest = None;
    for cycle in 0..1_000 {
        reconnect(&mut a, &mut b);
        if cycle % 2 == 0 {
            let key = RemoteKey(!b.key().0);
            let guilty = WorkRequest { key, ..request(cycle, Operation::Write, &a, &b) };
            a.post(vec![guilty]);
            assert_eq!(a.ends(1), [(cycle, Status::RemoteAccess)]);
        } else {
            let nowhere = QpAddress { number: QpNumber(0xff_ffff), ..b.qp };
            let error = a.nic.connect(a.qp.number, nowhere, &way(&a, &b)).unwrap_err();
            assert!(error.to_string().contains("queue pair"), "{error}");
        }
        if cycle == 100 {
            rest = Some(held());
        }
    }
    let (files, kib) = held();
    let (files_then, kib_then) = rest.unwrap();
    assert_eq!(files, files_then, "descriptors");
    assert!(kib < kib_then + 4_096, "{kib_then} KiB grew to {kib}");
    reconnect(&mut a, &mut b);
    a.post(vec![request(1, Operation::Write, &a, &b)]);
    assert_eq!(a.ends(1), [(1, Status::Success)]);
}

/// Descriptors, and KiB of memory of its own.
fn held() -> (usize, u64) {
    let files = std::fs::read_dir("/proc/self/fd").unwrap().count();
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    (files, line.split_whitespace().next().unwrap().parse().unwrap())
}
