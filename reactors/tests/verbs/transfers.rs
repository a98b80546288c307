//! Bytes, words and completions that go where they should.

use kvrail_reactors::verbs::{QpNumber, QpState};

use super::*;

#[test]
#[ignore = "needs rxe0 and rxe1: cargo xtask vm"]
fn bytes_go_both_ways() {
    let (mut a, b) = pair();
    assert_eq!(a.nic.state(a.qp.number), Some(QpState::ReadyToSend));
    a.post(vec![request(7, Operation::Write, &a, &b)]);
    assert_eq!(a.ends(1), [(7, Status::Success)]);
    assert!(b.bytes().iter().all(|&byte| byte == 1));
    b.fill(3);
    a.post(vec![request(8, Operation::Read, &a, &b)]);
    assert_eq!(a.ends(1), [(8, Status::Success)]);
    assert!(a.bytes().iter().all(|&byte| byte == 3));
}

#[test]
#[ignore = "needs rxe0 and rxe1: cargo xtask vm"]
fn a_chain_completes_with_its_last() {
    let (mut a, b) = pair();
    let piece = |k: usize| WorkRequest {
        local: Some(a.slice(k * 4096, 4096 - k)),
        remote_addr: b.region.addr() + k as u64 * 4096,
        is_signalled: k == 63,
        ..request(k as u64, Operation::Write, &a, &b)
    };
    let chain = (0..64).map(piece).collect();
    a.post(chain);
    assert_eq!(a.ends(1), [(63, Status::Success)]);
    let bytes = b.bytes();
    for k in 0..64 {
        let (page, len) = (&bytes[k * 4096..][..4096], 4096 - k);
        assert!(page[..len].iter().all(|&byte| byte == 1) && page[len..].iter().all(|&b| b == 2));
    }
}

#[test]
#[ignore = "needs rxe0 and rxe1: cargo xtask vm"]
fn small_writes_travel_with_their_request_and_a_word_arrives_behind_them() {
    let (mut a, mut b) = pair();
    let small = WorkRequest {
        local: Some(a.slice(0, 64)),
        ..request(1, Operation::WriteWithImmediate(0xfeed_0001), &a, &b)
    };
    let bare = WorkRequest { local: None, ..request(2, Operation::WriteWithImmediate(9), &a, &b) };
    a.post(vec![small, bare]);
    assert_eq!(a.ends(2), [(1, Status::Success), (2, Status::Success)]);
    let words: Vec<_> = b.take(2).into_iter().map(|completion| completion.what).collect();
    assert_eq!(words, [Completed::Received(0xfeed_0001), Completed::Received(9)]);
    let bytes = b.bytes();
    assert!(bytes[..64].iter().all(|&byte| byte == 1) && bytes[64] == 2);
}

#[test]
#[ignore = "needs rxe0 and rxe1: cargo xtask vm"]
fn an_armed_queue_wakes_its_sleeper() {
    let (mut a, b) = pair();
    let is_readable = |nic: &Nic, ms: i64| {
        let fd = nic.fd();
        let mut fds = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
        let limit = rustix::time::Timespec { tv_sec: 0, tv_nsec: ms * 1_000_000 };
        rustix::event::poll(&mut fds, Some(&limit)).unwrap() == 1
    };
    assert!(a.nic.arm());
    assert!(!is_readable(&a.nic, 1), "nothing is there");
    a.post(vec![request(1, Operation::Write, &a, &b)]);
    assert!(is_readable(&a.nic, 999), "the completion wakes");
    assert_eq!(a.ends(1), [(1, Status::Success)]);
    assert!(a.nic.arm());
    assert!(!is_readable(&a.nic, 1), "its event was taken");
}

#[test]
#[ignore = "needs rxe0 and rxe1: cargo xtask vm"]
fn a_full_queue_is_an_answer_and_unknown_pairs_are_none() {
    let (mut a, b) = pair();
    let many = (0..=u64::from(DEPTHS.work_requests))
        .map(|id| request(id, Operation::Write, &a, &b))
        .collect();
    let back = a.nic.submit(Post { qp: a.qp.number, requests: many }).unwrap_err();
    assert_eq!(back.requests.len(), DEPTHS.work_requests as usize + 1, "all of it comes back");
    let nobody = QpNumber(u32::MAX);
    assert!(a.nic.submit(Post { qp: nobody, requests: Vec::new() }).is_err());
    assert_eq!(a.nic.state(nobody), None);
    a.nic.set_error(nobody);
    a.nic.destroy(a.qp.number);
    assert_eq!(a.nic.state(a.qp.number), None);
}

#[test]
#[ignore = "needs rxe0 and rxe1: cargo xtask vm"]
fn packet_numbers_begin_where_nobody_guesses() {
    let (mut a, mut b) = pair();
    let mut firsts: Vec<u32> = [&mut a, &mut b]
        .into_iter()
        .flat_map(|side| std::iter::repeat_with(|| side.nic.create_qp().unwrap()).take(8))
        .map(|qp| qp.first_packet)
        .collect();
    let steps: Vec<_> = firsts.windows(2).map(|pair| pair[1].wrapping_sub(pair[0])).collect();
    assert!(steps.iter().any(|step| *step != steps[0]), "{firsts:x?}");
    assert!(firsts.iter().all(|first| *first < 1 << 24), "they have 24 bits: {firsts:x?}");
    firsts.sort_unstable();
    firsts.dedup();
    // Two of 16 random ones are the same once in some 140,000 times.
    assert!(firsts.len() >= 15, "{firsts:x?}");
}

#[test]
#[ignore = "needs rxe0 and rxe1: cargo xtask vm"]
fn mooncakes_way_leads_there_too() {
    let (mut a, mut b) = pair();
    for side in [&mut a, &mut b] {
        side.nic.destroy(side.qp.number);
        side.qp = side.nic.create_qp_from(0).unwrap();
        assert_eq!(side.qp.first_packet, 0);
    }
    let (to_a, to_b) = (a.qp, b.qp);
    for (side, peer, device) in [(&mut a, to_b, "rxe1"), (&mut b, to_a, "rxe0")] {
        let port = side.adapter.device().port().unwrap();
        let gid = Adapter::open(device).unwrap().device().gid(GID).unwrap();
        let way = Way::mooncake(&port, GID, gid, port.lid);
        side.nic.connect(side.qp.number, peer, &way).unwrap();
    }
    a.post(vec![request(1, Operation::Write, &a, &b), request(2, Operation::Read, &a, &b)]);
    assert_eq!(a.ends(2), [(1, Status::Success), (2, Status::Success)]);
    assert!(b.bytes().iter().all(|&byte| byte == 1));
}
