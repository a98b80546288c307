//! What is posted where, what a completion proves, and what follows the data.

use kvrail_reactors::verbs::{Operation, Status};

use super::*;
use crate::ErrorKind;
use crate::Landed;
use crate::limits::RDMA_EVENTS_MAX;
use crate::receipt::Proof;

#[test]
fn one_signal_answers_for_what_was_posted_before_it() {
    let mut ours = Ours::new(RdmaLimits { queues: 1, signals: Signals::Every(4), ..limits() }, 1);
    ours.carry(writes(1, 6));
    let signalled: Vec<bool> = ours.posted.iter().map(|(.., r)| r.is_signalled).collect();
    assert_eq!(signalled.iter().filter(|is| !**is).count(), signalled.len() - 2, "{signalled:?}");
    ours.complete(0, Status::Success);
    let ending = ours.ending(1);
    assert_eq!((ending.kind, ending.fenced), (None, Fenced::Answered));
    assert_eq!((ending.local, ending.landed), (Proof::Quiet, Landed::Yes));
    assert_eq!(ending.slices, [Ok(()); 6]);
}

#[test]
fn slices_are_spread_over_rails_and_windows_bound_them() {
    let limits = RdmaLimits { queues: 1, window_bytes: 2 * SLICE_BYTES, ..limits() };
    let mut ours = Ours::new(limits, 2);
    // Both rails open first: one slice each way teaches nothing about their speed.
    ours.carry(writes(1, 8));
    assert_eq!([0, 1].map(|rail| ours.posted_on(rail)), [2, 2]);
    ours.complete(0, Status::Success);
    assert_eq!(ours.posted_on(0), 2, "there is room again");
    for _ in 0..4 {
        ours.complete(0, Status::Success);
        ours.complete(1, Status::Success);
    }
    assert_eq!(ours.ending(1).kind, None);
}

#[test]
fn a_notice_goes_behind_writes_and_after_reads() {
    let is_notice = |posted: &(u8, QpNumber, WorkRequest)| {
        matches!(posted.2.operation, Operation::WriteWithImmediate(_))
    };
    let mut ours = Ours::new(RdmaLimits { queues: 1, ..limits() }, 1);
    ours.carry(noticed(writes(1, 2)));
    assert_eq!(ours.posted.iter().position(is_notice), Some(2), "on the same queue, last");
    ours.complete(0, Status::Success);
    assert_eq!(ours.ending(1).kind, None);

    // The owner uses what was read as soon as it is told; a device reads again what got lost.
    ours.carry(noticed(reads(2, 2)));
    assert!(!ours.posted.iter().any(is_notice), "a read is under way");
    ours.complete(0, Status::Success);
    assert!(ours.posted.iter().any(is_notice));
    ours.complete(0, Status::Success);
    assert_eq!(ours.ending(2).kind, None);
}

#[test]
fn every_queue_that_carries_data_sends_a_notice() {
    let mut ours = Ours::new(RdmaLimits { queues: 1, window_bytes: SLICE_BYTES, ..limits() }, 2);
    ours.carry(noticed(writes(1, 2)));
    let notices: Vec<u8> = ours
        .posted
        .iter()
        .filter(|(.., request)| matches!(request.operation, Operation::WriteWithImmediate(_)))
        .map(|(rail, ..)| *rail)
        .collect();
    assert_eq!((notices.len(), notices.contains(&0), notices.contains(&1)), (2, true, true));
}

#[test]
fn a_full_mailbox_is_not_written_until_the_peer_has_read() {
    let mut ours = Ours::new(RdmaLimits { queues: 1, ..limits() }, 1);
    for id in 1..=5 {
        ours.carry(noticed(writes(id, 1)));
    }
    let sent = |ours: &Ours| {
        let is_notice = |r: &WorkRequest| matches!(r.operation, Operation::WriteWithImmediate(_));
        ours.posted.iter().filter(|(.., request)| is_notice(request)).count()
    };
    assert_eq!(sent(&ours), 4, "as many as there are slots");
    let read = ours.posted.iter().find(|(.., r)| r.operation == Operation::Read).unwrap();
    read.2.local.as_ref().unwrap().write(0, &1u64.to_le_bytes()).unwrap();
    ours.complete(0, Status::Success);
    assert_eq!(sent(&ours), 1, "one slot is free");
}

#[test]
fn a_read_reads_the_generation_after_its_bytes_and_believes_only_the_expected_one() {
    for (found, expected) in [(4u64, None), (5, Some(ErrorKind::Stale))] {
        let mut ours = Ours::new(limits(), 1);
        let guard = Some(Guard { addr: 0x2_0000, keys: keys(1), expected: 4 });
        ours.carry(Order { guard, ..reads(1, 3) });
        assert_eq!(ours.posted.len(), 3, "the word is not read before the bytes are there");
        ours.complete(0, Status::Success);
        let word = ours.posted[0].2.clone();
        assert_eq!((word.operation, word.remote_addr), (Operation::Read, 0x2_0000));
        word.local.unwrap().write(0, &found.to_le_bytes()).unwrap();
        ours.complete(0, Status::Success);
        assert_eq!(ours.ending(1).kind, expected);
    }
}

#[test]
fn a_guard_on_a_write_is_refused() {
    let mut ours = Ours::new(limits(), 1);
    let guard = Some(Guard { addr: 0, keys: keys(1), expected: 1 });
    let refused = ours.machine.carry(Order { guard, ..writes(1, 1) }, 0);
    assert_eq!(refused, Err(ErrorKind::Refused));
}

#[test]
fn an_event_without_a_number_waits_once() {
    let limits = RdmaLimits { window_requests: 2, ..limits() };
    let mut ours = Ours::new(limits, 1);
    let peer = ours.machine.peers.get_mut(&PEER).unwrap();
    for _ in 0..RDMA_EVENTS_MAX {
        peer.events.number().unwrap();
    }
    ours.carry(noticed(writes(1, 6)));
    for _ in 0..3 {
        ours.complete(0, Status::Success);
    }
    let peer = ours.machine.peers.get_mut(&PEER).unwrap();
    assert_eq!(peer.numberless.len(), 1);
    peer.events.over(0);
    ours.after(1);
    ours.complete(0, Status::Success);
    assert_eq!(ours.ending(1).kind, None);
}
