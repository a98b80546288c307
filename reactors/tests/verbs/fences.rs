//! Behind which fence nothing lands any more, and behind which something does.

use super::*;

/// The guest's NICs have this path MTU.
const PACKET_BYTES: usize = 4_096;

/// Cuts a chain of writes off at some moment and has the target reuse its memory when our side is
/// drained, or when both are; answers whether bytes of it landed behind that.
fn lands_behind_the_fence(a: &mut Side, b: &mut Side, pause: Duration, both: bool) -> bool {
    reconnect(a, b);
    a.fill(1);
    let chain: Vec<_> = (0..8).map(|id| request(id, Operation::Write, a, b)).collect();
    a.post(chain);
    std::thread::sleep(pause);
    a.nic.fence(u64::from(a.qp.number.0));
    if both {
        b.nic.set_error(b.qp.number);
    }
    let ends = a.ends(8);
    assert!(ends.iter().map(|(id, _)| *id).eq(0..8), "each once, in order: {ends:?}");
    if both {
        let marker = WorkRequest { local: None, ..request(99, Operation::Nothing, b, a) };
        b.post(vec![marker]);
        assert_eq!(b.ends(1), [(99, Status::Flushed)]);
        assert_eq!(b.nic.state(b.qp.number), None, "it is gone");
    }
    b.fill(7);
    std::thread::sleep(Duration::from_millis(3));
    b.bytes().iter().any(|&byte| byte != 7)
}

/// Moments that differ from try to try, up to 4 ms: a chain takes some 50 in the guest.
fn pauses(tries: u64) -> impl Iterator<Item = Duration> {
    (0..tries).map(|k| Duration::from_micros(k.wrapping_mul(0x9E37_79B9) % 4_000))
}

#[test]
#[ignore = "needs rxe0 and rxe1: cargo xtask vm"]
fn behind_the_fences_of_both_sides_nothing_lands() {
    let (mut a, mut b) = pair();
    for (number, pause) in pauses(500).enumerate() {
        let lands = lands_behind_the_fence(&mut a, &mut b, pause, true);
        assert!(!lands, "try {number}, cut off after {pause:?}");
    }
}

/// What the field does, and why it is not enough: our side in error recalls nothing that has left.
#[test]
#[ignore = "needs rxe0 and rxe1: cargo xtask vm"]
fn behind_a_fence_of_our_side_alone_bytes_do_land() {
    let (mut a, mut b) = pair();
    let found = pauses(500).any(|pause| lands_behind_the_fence(&mut a, &mut b, pause, false));
    assert!(found, "in 500 tries: the test above shows nothing");
}

/// Taking a window back in the middle of a write through it. Soft-RoCE looks at a window when a
/// packet comes, so the one that it is storing still lands: seen 1 time in 1,200. There, only the
/// end of the queue pair proves that memory is quiet.
#[test]
#[ignore = "needs rxe0 and rxe1: cargo xtask vm"]
fn behind_an_invalidated_window_no_more_than_a_packet_lands() {
    let (mut a, mut b) = pair();
    let mut cut_off = 0;
    for (number, pause) in pauses(150).enumerate() {
        reconnect(&mut a, &mut b);
        let window = b.nic.window().unwrap();
        let access = RemoteAccess { read: false, write: true };
        let open =
            WorkRequest { key: b.key(), ..request(1, Operation::Bind { window, access }, &b, &b) };
        b.post(vec![open]);
        assert_eq!(b.ends(1), [(1, Status::Success)]);
        let through = |id| WorkRequest { key: window, ..request(id, Operation::Write, &a, &b) };
        let chain = (0..8).map(through).collect();
        a.post(chain);
        std::thread::sleep(pause);
        let close =
            WorkRequest { local: None, ..request(2, Operation::Invalidate(window), &b, &b) };
        b.post(vec![close]);
        let ends = b.ends(1);
        b.fill(7);
        std::thread::sleep(Duration::from_millis(3));
        let landed = b.bytes().iter().filter(|&&byte| byte != 7).count();
        let most = PACKET_BYTES;
        assert!(landed <= most, "try {number}, taken back after {pause:?}: {landed}, {ends:?}");
        // Once in a thousand, soft-RoCE's requester stands still behind a refusal.
        a.nic.fence(u64::from(a.qp.number.0));
        cut_off += usize::from(a.ends(8)[7].1 != Status::Success);
        b.nic.close_window(window);
    }
    assert!(cut_off > 15, "{cut_off} of 150 were under way: the rest shows nothing");
}

/// Our own memory is quiet when our queue is drained, whatever the peer still sends.
#[test]
#[ignore = "needs rxe0 and rxe1: cargo xtask vm"]
fn behind_a_drained_queue_no_answer_lands_here() {
    let (mut a, mut b) = pair();
    for (number, pause) in pauses(150).enumerate() {
        reconnect(&mut a, &mut b);
        let chain: Vec<_> = (0..8).map(|id| request(id, Operation::Read, &a, &b)).collect();
        a.post(chain);
        std::thread::sleep(pause);
        a.nic.fence(u64::from(a.qp.number.0));
        a.ends(8);
        a.fill(7);
        std::thread::sleep(Duration::from_millis(3));
        assert!(a.bytes().iter().all(|&byte| byte == 7), "try {number}, cut off after {pause:?}");
    }
}
