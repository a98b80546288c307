//! What a target says about endpoints: opened, refused, and fenced only when they are drained.

use kvrail_reactors::verbs::{Operation, Status};

use super::message::Refusal;
use super::*;
use crate::limits::RDMA_ACCEPTED_MAX;

fn fenced(generation: u64) -> Message {
    Message::Fenced { name: name(0, generation), target: PROCESS, arrived: Vec::new() }
}

fn is_refused(told: &[Message], as_told: Refusal) -> bool {
    matches!(told, [Message::Refused { why, .. }] if *why == as_told)
}

/// A target with an endpoint of this generation.
fn opened(generation: u64) -> Theirs {
    let mut theirs = Theirs::new();
    theirs.open(name(0, generation));
    assert!(matches!(theirs.take_told()[..], [Message::Opened { .. }]));
    theirs
}

#[test]
fn a_fence_is_answered_behind_the_last_flush_however_often_it_is_asked() {
    let mut theirs = opened(4);
    theirs.tell(Message::Fence { name: name(0, 4) });
    theirs.tell(Message::Fence { name: name(0, 4) });
    let done = theirs.take_done();
    let errors = done.iter().filter(|action| matches!(action, Action::Error { .. }));
    assert_eq!((errors.count(), done.len()), (QUEUES, QUEUES), "in error once, and not destroyed");
    assert!(theirs.posted.iter().all(|(.., request)| request.operation == Operation::Nothing));
    let (rail, qp, marker) = theirs.posted.remove(0);
    theirs.machine.completed(rail, (qp, marker.id, Status::Flushed));
    theirs.act();
    assert!(theirs.take_told().is_empty(), "one queue pair may still store");
    theirs.complete(Status::Flushed);
    assert_eq!(theirs.take_told(), [fenced(4)]);
    assert!(theirs.machine.is_idle());
    theirs.tell(Message::Fence { name: name(0, 4) });
    assert_eq!(theirs.take_told(), [fenced(4)], "whose answer got lost asks again");
}

#[test]
fn what_was_fenced_never_opens() {
    let mut theirs = Theirs::new();
    theirs.tell(Message::Fence { name: name(0, 4) });
    assert_eq!(theirs.take_told(), [fenced(4)], "there is nothing");
    for stale in [3, 4] {
        theirs.open(name(0, stale));
        assert!(is_refused(&theirs.take_told(), Refusal::Stale), "a question that comes late");
    }
    theirs.tell(Message::Fence { name: name(0, 2) });
    theirs.take_told();
    theirs.open(name(0, 4));
    assert!(is_refused(&theirs.take_told(), Refusal::Stale), "an older fence takes nothing back");
    theirs.open(name(0, 5));
    theirs.open(name(1, 1));
    let told = theirs.take_told();
    assert!(matches!(told[..], [Message::Opened { .. }, Message::Opened { .. }]), "{told:?}");
}

#[test]
fn of_a_rail_the_newest_endpoint_counts() {
    let mut theirs = opened(4);
    theirs.open(name(0, 3));
    assert!(is_refused(&theirs.take_told(), Refusal::Stale), "it was overtaken");
    theirs.open(name(0, 5));
    assert!(matches!(theirs.take_told()[..], [Message::Opened { .. }]));
    theirs.complete(Status::Flushed);
    theirs.tell(Message::Fence { name: name(0, 4) });
    assert_eq!(theirs.take_told(), [fenced(4)], "the newer one goes on");
    assert!(!theirs.machine.is_idle());
}

#[test]
fn a_repeated_question_has_the_same_answer() {
    let mut theirs = Theirs::new();
    theirs.open(name(0, 1));
    theirs.open(name(0, 1));
    let told = theirs.take_told();
    assert_eq!((told.len(), &told[0]), (2, &told[1]));
    theirs.tell(Message::Open { name: name(0, 1), theirs: 0, queues: vec![address(8); QUEUES] });
    assert!(is_refused(&theirs.take_told(), Refusal::Stale), "these are not its queue pairs");
}

#[test]
fn an_endpoint_that_is_fenced_while_it_is_made_ends_when_it_is() {
    let mut theirs = Theirs::new();
    theirs.makes = false;
    theirs.open(name(0, 1));
    theirs.tell(Message::Fence { name: name(0, 1) });
    assert!(theirs.take_told().is_empty(), "its queue pairs may come to be");
    theirs.make(name(0, 1), QUEUES);
    theirs.act();
    let is_destroyed = |done: &[Action]| {
        done.iter().filter(|action| matches!(action, Action::Destroy { .. })).count()
    };
    theirs.complete(Status::Flushed);
    assert_eq!(is_destroyed(&theirs.take_done()), QUEUES);
    assert_eq!(theirs.take_told(), [fenced(1)]);
}

#[test]
fn a_device_without_queue_pairs_answers_fences_too() {
    let mut theirs = Theirs::new();
    theirs.makes = false;
    theirs.open(name(0, 1));
    theirs.tell(Message::Fence { name: name(0, 1) });
    theirs.machine.accepted(name(0, 1), None);
    theirs.act();
    let told = theirs.take_told();
    assert!(is_refused(&told[..1], Refusal::Device) && told[1..] == [fenced(1)], "{told:?}");
}

#[test]
fn a_fence_says_which_parts_have_arrived() {
    let mut theirs = opened(1);
    let notice =
        notice::Notice { event: 6, part: 1, parts: 2, attempt: 0, floor: 6, counter: 3, amount: 1 };
    let slot = theirs.mailboxes[0].part(notice::CONSUMED_BYTES, notice::NOTICE_BYTES).unwrap();
    notice.write_to(&slot);
    theirs.machine.received(0, QpNumber(1), 0);
    assert_eq!(notice::read_word(&theirs.mailboxes[0], 0), 1, "its sender is told that it is read");
    theirs.tell(Message::Fence { name: name(0, 1) });
    theirs.complete(Status::Flushed);
    let arrived = vec![(6, 0b10)];
    let fenced = Message::Fenced { name: name(0, 1), target: PROCESS, arrived };
    assert_eq!(theirs.take_told(), [fenced]);
}

#[test]
fn both_sides_call_an_event_alike() {
    let mut ours = Ours::new(limits(), 1);
    ours.carry(noticed(writes(1, 1)));
    while !ours.complete(0, Status::Success).is_empty() {}
    let (initiator, event) = ours.ending(1).event.expect("it was on its way");
    let mut theirs = opened(1);
    let notice =
        notice::Notice { event, part: 0, parts: 1, attempt: 0, floor: 0, counter: 3, amount: 1 };
    let slot = theirs.mailboxes[0].part(notice::CONSUMED_BYTES, notice::NOTICE_BYTES).unwrap();
    notice.write_to(&slot);
    theirs.machine.received(0, QpNumber(1), 0);
    theirs.act();
    let is_it = |done: &Action| match done {
        Action::Counted { from, counted } => (*from, counted.event) == (initiator, event),
        _ => false,
    };
    assert!(theirs.take_done().iter().any(is_it), "{initiator:?} {event}");
    let (label, other) = (initiator.label(), InitiatorId(initiator.0 ^ 1).label());
    assert_eq!(label, other, "half of a name is told: nobody ends an endpoint by it");
}

#[test]
fn an_evicted_initiator_is_gone_when_its_endpoints_are_drained() {
    let mut theirs = opened(1);
    theirs.machine.evict(ME);
    theirs.act();
    let is_evicted = |done: &[Action]| {
        done.iter().any(|action| matches!(action, Action::Evicted { initiator: ME }))
    };
    assert!(!is_evicted(&theirs.take_done()));
    theirs.complete(Status::Flushed);
    assert!(is_evicted(&theirs.take_done()));
    theirs.open(name(1, u64::MAX));
    assert!(is_refused(&theirs.take_told(), Refusal::Stale));
}

#[test]
fn what_nobody_can_serve_is_refused() {
    let mut theirs = Theirs::new();
    theirs.open(name(2, 1));
    assert!(is_refused(&theirs.take_told(), Refusal::Shape), "there are two rails");
    for queues in [Vec::new(), vec![address(1); crate::limits::RDMA_QUEUES_MAX + 1]] {
        theirs.tell(Message::Open { name: name(0, 1), theirs: 0, queues });
        assert!(is_refused(&theirs.take_told(), Refusal::Shape));
    }
    for initiator in 0..RDMA_ACCEPTED_MAX as u64 {
        theirs.open(EndpointName { initiator: InitiatorId(initiator + 1_000), ..name(0, 1) });
    }
    theirs.take_told();
    theirs.open(name(0, 1));
    assert!(is_refused(&theirs.take_told(), Refusal::Full));
}
