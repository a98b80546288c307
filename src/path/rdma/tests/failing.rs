//! Rails that fail: fenced at the target before anything goes elsewhere, and never reset.

use kvrail_reactors::verbs::Status;

use super::*;
use crate::limits::RDMA_ATTEMPTS_MAX;
use crate::receipt::Proof;
use crate::{ErrorKind, Landed};

/// A transfer of two writes under way on two rails.
fn under_way(order: Order) -> Ours {
    let limits = RdmaLimits { queues: 1, window_bytes: SLICE_BYTES, ..limits() };
    let mut ours = Ours::new(limits, 2);
    ours.carry(order);
    assert_eq!([0, 1].map(|rail| ours.posted_on(rail) > 0), [true; 2]);
    ours
}

#[test]
fn slices_of_a_failed_rail_go_elsewhere_only_behind_the_fence() {
    let mut ours = under_way(writes(1, 2));
    ours.complete(1, Status::Success);
    ours.complete(0, Status::RetryExceeded);
    let name = ours.opened[0];
    assert!(ours.told.contains(&Message::Fence { name }));
    assert!(ours.posted.is_empty(), "nobody has fenced it");
    assert!(ours.destroyed.is_empty());
    ours.fenced(name, &[]);
    assert_eq!(ours.posted_on(1), 1);
    assert_eq!(ours.destroyed, [QpNumber(1)]);
    ours.complete(1, Status::Success);
    let ending = ours.ending(1);
    assert_eq!((ending.kind, ending.fenced), (None, Fenced::Target));
    assert_eq!(ours.ended.len(), 1);
}

#[test]
fn what_has_arrived_is_not_sent_again() {
    let mut ours = under_way(noticed(writes(1, 2)));
    ours.complete(1, Status::Success);
    let lost = ours.complete(0, Status::RetryExceeded);
    assert_eq!(lost.len(), 2, "a slice, and the notice behind it");
    // Both parts have arrived: the counter has advanced, and its owner uses the memory again.
    ours.fenced(ours.opened[0], &[(0, 0b11)]);
    assert!(ours.posted.is_empty());
    assert_eq!((ours.ending(1).kind, ours.ending(1).landed), (None, Landed::Yes));
}

#[test]
fn what_has_not_arrived_is_sent_again_with_its_notice() {
    let mut ours = under_way(noticed(writes(1, 2)));
    ours.complete(1, Status::Success);
    ours.complete(0, Status::RetryExceeded);
    // The part of rail 1 only; which number it has, its first notice has said.
    let peer = &ours.machine.transfers.iter().next().unwrap().1.items;
    let lost = peer.iter().find(|item| !item.stage.is_final()).unwrap().part.unwrap();
    ours.fenced(ours.opened[0], &[(0, 0b11 & !(1 << lost))]);
    assert_eq!(ours.posted_on(1), 2);
    ours.complete(1, Status::Success);
    assert_eq!(ours.ending(1).kind, None);
}

#[test]
fn an_answer_about_an_older_endpoint_proves_nothing_about_a_newer_one() {
    let mut ours = Ours::new(RdmaLimits { queues: 1, ..limits() }, 1);
    ours.carry(writes(1, 1));
    ours.complete(0, Status::RetryExceeded);
    let first = ours.opened[0];
    ours.fenced(first, &[]);
    ours.after(limits().pause_ns);
    ours.complete(0, Status::RetryExceeded);
    let second = ours.opened[1];
    assert!(second.generation > first.generation);
    ours.fenced(first, &[]);
    assert_eq!(ours.destroyed.len(), 1, "the second is not fenced");
    let later = EndpointName { generation: second.generation + 3, ..second };
    ours.fenced(EndpointName { rail: 1, ..later }, &[]);
    assert_eq!(ours.destroyed.len(), 1, "nor is it by an answer about another rail");
    ours.fenced(later, &[]);
    assert_eq!(ours.destroyed.len(), 2, "a later one's covers it");
}

#[test]
fn an_old_endpoints_completion_that_is_queued_behind_a_reconnect_ends_nothing_of_the_new_one() {
    let mut ours = Ours::new(RdmaLimits { queues: 1, ..limits() }, 1);
    ours.carry(writes(1, 1));
    let (_, old_qp, old) = ours.posted[0].clone();
    ours.complete(0, Status::RetryExceeded);
    ours.fenced(ours.opened[0], &[]);
    assert_eq!(ours.destroyed, [old_qp]);
    // A NIC gives the numbers of the dead to the living.
    ours.qps = 0;
    ours.after(limits().pause_ns);
    let (_, new_qp, new) = ours.posted[0].clone();
    assert_eq!((ours.opened.len(), new_qp), (2, old_qp));
    assert_ne!(new.id, old.id);
    let errors = ours.errors.len();
    for status in [Status::Success, Status::Flushed, Status::RetryExceeded] {
        ours.machine.completed(0, (old_qp, old.id, status), ours.now_ns);
        ours.act();
        assert!(ours.ended.is_empty() && ours.errors.len() == errors, "{status:?}");
    }
    ours.complete(0, Status::Success);
    assert_eq!((ours.ending(1).kind, ours.ended.len()), (None, 1));
}

#[test]
fn a_cancelled_transfer_is_drained_here_and_fenced_there_before_it_ends() {
    let mut ours = under_way(writes(1, 2));
    ours.machine.cancel(1, ErrorKind::Cancelled, ours.now_ns);
    ours.act();
    ours.after(limits().grace_ns - 1);
    assert!(ours.errors.is_empty(), "it may end by itself");
    ours.after(1);
    assert_eq!(ours.errors.len(), 2);
    for name in ours.opened.clone() {
        ours.fenced(name, &[]);
    }
    assert!(ours.destroyed.is_empty() && ours.ended.is_empty(), "nothing is flushed");
    ours.complete(0, Status::Flushed);
    ours.complete(1, Status::Flushed);
    assert_eq!(ours.destroyed.len(), 2);
    let ending = ours.ending(1);
    assert_eq!(ending.kind, Some(ErrorKind::Cancelled));
    assert_eq!((ending.local, ending.remote()), (Proof::Quiet, Proof::Quiet));
    assert_eq!((ending.fenced, ending.landed), (Fenced::Target, Landed::Maybe));
    assert_eq!(ending.took_ns, limits().grace_ns);
}

#[test]
fn a_fence_that_nobody_answers_is_asked_again_and_proves_nothing() {
    let mut ours = under_way(writes(1, 2));
    ours.complete(1, Status::Success);
    ours.complete(0, Status::RetryExceeded);
    let name = ours.opened[0];
    ours.after(limits().fence_retry_ns);
    let asked = ours.told.iter().filter(|told| **told == Message::Fence { name });
    assert_eq!(asked.count(), 2);
    ours.after(limits().fence_max_ns);
    let ending = ours.ending(1);
    assert_eq!((ending.kind, ending.fenced), (Some(ErrorKind::Lost), Fenced::Nobody));
    assert_eq!(ending.remote(), Proof::Unproven);
    assert!(ours.posted.is_empty(), "memory that may change is not written again");
}

#[test]
fn a_slice_that_fails_on_rail_after_rail_is_lost() {
    let mut ours = Ours::new(RdmaLimits { queues: 1, ..limits() }, 1);
    ours.carry(writes(1, 1));
    for _ in 0..RDMA_ATTEMPTS_MAX {
        assert_eq!(ours.complete(0, Status::RetryExceeded).len(), 1);
        ours.fenced(*ours.opened.last().unwrap(), &[]);
        ours.after(u64::from(2 * RDMA_ATTEMPTS_MAX) * limits().pause_ns);
    }
    let ending = ours.ending(1);
    assert_eq!((ending.kind, ending.landed), (Some(ErrorKind::Lost), Landed::Maybe));
    assert_eq!((ending.fenced, ending.remote()), (Fenced::Target, Proof::Quiet));
}

#[test]
fn a_silent_nic_is_given_up_and_its_memory_kept_until_it_speaks() {
    let mut ours = under_way(writes(1, 2));
    ours.complete(1, Status::Success);
    ours.after(limits().silence_ns);
    ours.fenced(ours.opened[0], &[]);
    assert!(ours.posted_on(1) == 0 && ours.destroyed.is_empty(), "it may yet drain");
    ours.after(limits().drain_max_ns);
    assert_eq!(ours.posted_on(1), 1, "the target is quiet: a write goes elsewhere");
    ours.complete(1, Status::Success);
    let ending = ours.ending(1);
    assert_eq!((ending.kind, ending.local), (None, Proof::Unproven));
    assert!(ours.released.is_empty());
    ours.complete(0, Status::Flushed);
    assert_eq!((&ours.released[..], &ours.destroyed[..]), (&[1][..], &[QpNumber(1)][..]));
}

#[test]
fn reads_of_a_silent_nic_are_lost_since_it_may_store_them_yet() {
    let mut ours = under_way(reads(1, 2));
    ours.complete(1, Status::Success);
    ours.after(limits().silence_ns);
    ours.fenced(ours.opened[0], &[]);
    ours.after(limits().drain_max_ns);
    let ending = ours.ending(1);
    assert_eq!((ending.kind, ending.local), (Some(ErrorKind::Lost), Proof::Unproven));
    ours.complete(0, Status::Success);
    assert_eq!(ours.released, [1]);
}

#[test]
fn who_asks_for_too_much_fails_alone() {
    let mut ours = Ours::new(RdmaLimits { queues: 1, ..limits() }, 1);
    ours.carry(writes(1, 1));
    ours.carry(writes(2, 1));
    let [(_, qp, guilty), (_, _, bystander)] = &ours.posted[..] else { panic!("two") };
    let (qp, guilty, bystander) = (*qp, guilty.id, bystander.id);
    ours.posted.clear();
    ours.machine.completed(0, (qp, guilty, Status::RemoteAccess), ours.now_ns);
    ours.machine.completed(0, (qp, bystander, Status::Flushed), ours.now_ns);
    ours.act();
    ours.fenced(ours.opened[0], &[]);
    assert_eq!(ours.ending(1).kind, Some(ErrorKind::Refused));
    assert_eq!(ours.opened.len(), 2, "the rail does not rest");
    ours.complete(0, Status::Success);
    assert_eq!(ours.ending(2).kind, None);
}

#[test]
fn a_process_that_took_the_name_of_another_gets_nothing_of_its() {
    let mut ours = under_way(writes(1, 2));
    ours.complete(1, Status::Success);
    ours.complete(0, Status::RetryExceeded);
    let (name, process) = (ours.opened[0], Incarnation(6));
    ours.process = Some(process);
    ours.tell(Message::Fenced { name, target: process, arrived: vec![(0, 1)] });
    ours.after(limits().pause_ns);
    assert_eq!(ours.posted_on(0), 0);
    assert_eq!(ours.errors.len(), 2, "the other rail's end is gone too");
    ours.tell(Message::Fenced { name: ours.opened[1], target: process, arrived: Vec::new() });
    assert_eq!((ours.ending(1).kind, ours.ending(1).fenced), (Some(ErrorKind::Lost), Fenced::Gone));

    ours.carry(Order { target: Some(PROCESS), ..writes(2, 1) });
    ours.after(limits().pause_ns);
    assert_eq!(ours.ending(2).kind, Some(ErrorKind::Lost), "it has keys of the dead");
    assert_eq!(ours.ending(2).landed, Landed::No);
    ours.carry(Order { target: Some(process), ..writes(3, 1) });
    ours.complete(0, Status::Success);
    ours.complete(1, Status::Success);
    assert_eq!(ours.ending(3).kind, None);
}

#[test]
fn an_order_for_the_next_process_ends_what_leads_to_the_last() {
    let mut ours = under_way(writes(1, 2));
    ours.complete(0, Status::Success);
    ours.complete(1, Status::Success);
    let next = Incarnation(6);
    ours.process = Some(next);
    ours.now_ns += 1;
    ours.carry(Order { target: Some(next), ..writes(2, 1) });
    assert_eq!(ours.errors.len(), 2);
    ours.after(1);
    ours.complete(0, Status::Success);
    ours.complete(1, Status::Success);
    assert_eq!(ours.ending(2).kind, None);
}

#[test]
fn an_event_stays_open_while_its_notice_may_be_read() {
    let mut ours = under_way(noticed(writes(1, 2)));
    ours.complete(0, Status::Success);
    ours.complete(1, Status::Success);
    assert_eq!(ours.ending(1).kind, None);
    let name = ours.opened[0];
    ours.tell(Message::Broken { name, is_rail_well: false });
    ours.after(limits().fence_max_ns);
    assert!(!ours.destroyed.is_empty(), "nobody has fenced it, and nothing waits for that");
    let floor = |ours: &Ours| ours.machine.peers[&PEER].events.floor();
    ours.machine.peers.get_mut(&PEER).unwrap().events.read(0);
    assert_eq!(floor(&ours), 0, "its peer may read it yet");
    ours.told.clear();
    ours.after(limits().fence_max_ns);
    assert!(ours.told.contains(&Message::Fence { name }), "asked again");
    ours.fenced(EndpointName { generation: name.generation - 1, ..name }, &[]);
    assert_eq!(floor(&ours), 0);
    ours.fenced(name, &[]);
    assert_eq!(floor(&ours), 1);
}

#[test]
fn a_peer_that_nobody_reaches_is_lost_and_a_new_order_gets_its_own_time() {
    let mut ours = Ours::new(limits(), 1);
    ours.process = None;
    ours.carry(writes(1, 1));
    for _ in 0..100 {
        ours.after(limits().lost_ns / 20);
        for name in ours.opened.clone() {
            ours.fenced(name, &[]);
        }
    }
    let ending = ours.ending(1);
    assert_eq!((ending.kind, ending.landed), (Some(ErrorKind::Lost), Landed::No));
    ours.now_ns += 10 * limits().lost_ns;
    ours.carry(writes(2, 1));
    ours.after(1);
    assert_eq!(ours.ended.len(), 1, "nobody had tried for it");
    ours.process = Some(PROCESS);
    ours.after(limits().open_retry_ns);
    ours.complete(0, Status::Success);
    assert_eq!(ours.ending(2).kind, None);
}

#[test]
fn a_refused_endpoint_is_fenced_all_the_same() {
    let mut ours = Ours::new(limits(), 1);
    ours.process = None;
    ours.carry(writes(1, 1));
    let name = ours.opened[0];
    ours.tell(Message::Refused { name, why: message::Refusal::Full });
    assert!(
        ours.told.contains(&Message::Fence { name }),
        "a copy of the question may be under way"
    );
    ours.fenced(name, &[]);
    assert_eq!(ours.destroyed.len(), QUEUES);
}

#[test]
fn of_a_closed_peer_nothing_is_left() {
    let mut ours = under_way(writes(1, 2));
    ours.machine.close(PEER, ours.now_ns);
    ours.act();
    ours.complete(0, Status::Flushed);
    ours.complete(1, Status::Flushed);
    assert!(!ours.machine.is_idle());
    for name in ours.opened.clone() {
        ours.fenced(name, &[]);
    }
    assert_eq!(ours.ending(1).kind, Some(ErrorKind::Closed));
    assert!(ours.machine.is_idle() && ours.machine.peers.is_empty());
    assert_eq!(ours.machine.carry(writes(2, 1), 0), Err(ErrorKind::Refused));
}

#[test]
fn local_access_violation_as_an_event_ends_the_endpoint_at_its_target() {
    let mut theirs = Theirs::new();
    theirs.open(name(0, 1));
    theirs.take_told();
    theirs.machine.violated(0, QpNumber(1));
    theirs.act();
    let in_error = |action: &Action| matches!(action, Action::Error { .. });
    assert_eq!(theirs.take_done().iter().filter(|action| in_error(action)).count(), QUEUES);
    assert!(theirs.take_told().is_empty(), "the device tells the peer");
    theirs.tell(Message::Fence { name: name(0, 1) });
    assert!(theirs.take_told().is_empty(), "it is not drained");
    theirs.complete(Status::Flushed);
    let told = theirs.take_told();
    assert!(matches!(told[..], [Message::Fenced { .. }]), "{told:?}");
    theirs.machine.violated(0, QpNumber(1));
    theirs.act();
    assert!(theirs.take_told().is_empty(), "a late report is about nobody");
}

#[test]
fn remote_access_error_as_a_completion_fails_the_guilty_and_replaces_the_endpoint() {
    let mut ours = Ours::new(RdmaLimits { queues: 1, ..limits() }, 1);
    ours.carry(writes(1, 1));
    ours.carry(writes(2, 1));
    let [guilty, bystander] = [0, 1].map(|at: usize| ours.posted[at].2.id);
    ours.posted.clear();
    let complete = |ours: &mut Ours, id, status| {
        ours.machine.completed(0, (QpNumber(1), id, status), ours.now_ns);
        ours.act();
    };
    complete(&mut ours, guilty, Status::RemoteAccess);
    complete(&mut ours, bystander, Status::Flushed);
    ours.fenced(ours.opened[0], &[]);
    assert_eq!(ours.ending(1).kind, Some(ErrorKind::Refused));
    // Without a pause: the rail is fine.
    assert_eq!((ours.opened.len(), ours.posted_on(0)), (2, 1));
    ours.complete(0, Status::Success);
    assert_eq!(ours.ending(2).kind, None);
}
