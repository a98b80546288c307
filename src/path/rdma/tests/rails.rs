//! Rails: which of our NICs and which of the peer's, whose keys, and peers that fence nothing.

use super::*;
use crate::receipt::Proof;
use crate::{ErrorKind, Landed};

const ENDS: [Ends; 2] =
    [Ends { nic: 3, theirs: 1, node: None }, Ends { nic: 2, theirs: 0, node: None }];

fn limits_of_one() -> RdmaLimits {
    RdmaLimits { queues: 1, window_bytes: SLICE_BYTES, ..limits() }
}

#[test]
fn each_rail_has_a_nic_of_ours_and_the_key_of_one_of_the_peers() {
    let mut ours = Ours::over(limits_of_one(), &ENDS, true);
    ours.carry(writes(1, 2));
    let posted = |nic| ours.posted.iter().find(|(at, ..)| *at == nic).map(|posted| posted.2.key);
    assert_eq!(posted(3), Some(RemoteKey(2)), "its second NIC's");
    assert_eq!(posted(2), Some(RemoteKey(1)));
    let theirs: Vec<u8> = ours.asked.iter().map(|(_, theirs)| *theirs).collect();
    assert_eq!(theirs, [1, 0]);
    ours.complete(3, Status::Success);
    ours.complete(2, Status::Success);
    assert_eq!(ours.ending(1).kind, None);
}

#[test]
fn a_port_is_one_of_our_nics_whatever_the_number_of_the_rail() {
    let mut ours = Ours::over(limits_of_one(), &ENDS, true);
    ours.machine.port(3, false, 0);
    ours.carry(writes(1, 2));
    assert_eq!((ours.posted_on(3), ours.posted_on(2)), (0, 1));
    ours.machine.port(3, true, 0);
    ours.act();
    assert_eq!(ours.posted_on(3), 1);
}

#[test]
fn the_first_status_that_says_something_is_the_ending_s() {
    let mut ours = Ours::over(limits_of_one(), &ENDS[..1], true);
    ours.carry(writes(1, 1));
    ours.complete(3, Status::RemoteAccess);
    ours.fenced(ours.opened[0], &[]);
    let endpoint = ours.opened[0];
    let culprit = ours.ending(1).culprit;
    assert_eq!(culprit, Some(Culprit { ends: ENDS[0], status: Status::RemoteAccess, endpoint }));
}

#[test]
fn a_peer_that_fences_nothing_gets_no_write_twice_and_no_question() {
    let mut ours = Ours::over(limits_of_one(), &ENDS, false);
    ours.carry(writes(1, 2));
    ours.complete(2, Status::Success);
    ours.complete(3, Status::RetryExceeded);
    assert!(ours.told.is_empty(), "{:?}", ours.told);
    let ending = ours.ending(1);
    assert_eq!((ending.kind, ending.landed), (Some(ErrorKind::Lost), Landed::Maybe));
    assert_eq!((ending.local, ending.remote()), (Proof::Quiet, Proof::Unproven));
    let lost = SliceEnd { kind: ErrorKind::Lost, landed: Landed::Maybe };
    assert!(ending.slices.contains(&Ok(())) && ending.slices.contains(&Err(lost)));
}

#[test]
fn reads_go_to_another_rail_whether_it_fences_or_not() {
    let mut ours = Ours::over(limits_of_one(), &ENDS, false);
    ours.carry(reads(1, 2));
    ours.complete(3, Status::RetryExceeded);
    ours.complete(2, Status::Success);
    assert_eq!(ours.posted_on(2), 1, "nothing comes in by the old one any more");
    ours.complete(2, Status::Success);
    assert_eq!(ours.ending(1).kind, None);
}

#[test]
fn a_nic_is_given_no_more_than_its_completion_queue_holds() {
    let limits = RdmaLimits { queues: 1, nic_requests: 3, ..limits() };
    let mut ours = Ours::over(limits, &ENDS[..1], true);
    ours.carry(writes(1, 5));
    assert_eq!(ours.posted_on(3), 3);
    ours.complete(3, Status::Success);
    assert_eq!(ours.posted_on(3), 2, "the others have room now");
    ours.complete(3, Status::Success);
    assert_eq!(ours.ending(1).kind, None);
    ours.carry(writes(2, 3));
    assert_eq!(ours.posted_on(3), 3, "nothing was counted twice");
}
