//! Peers that say anything: no panic, no growth, nothing of anybody else's is touched.

use kvrail_reactors::verbs::{RemoteAccess, Status};
use proptest::prelude::*;

use super::message::{Refusal, Strike};
use super::*;

fn any_name() -> impl Strategy<Value = EndpointName> {
    let initiator = prop_oneof![Just(ME), (0..4u64).prop_map(InitiatorId)];
    (initiator, 0..4u8, prop_oneof![0..6u64, Just(u64::MAX)])
        .prop_map(|(initiator, rail, generation)| EndpointName { initiator, rail, generation })
}

fn any_message() -> impl Strategy<Value = Message> {
    let words = (any::<u64>(), any::<u32>(), 0..20usize, any::<bool>());
    (0..9u8, any_name(), words).prop_map(|(which, name, (word, slots, count, is_odd))| {
        let (grant, target) = (u128::from(word % 3), Incarnation(word % 2 + 5));
        let queues = vec![address(slots % 8); count % 4];
        match which {
            0 => Message::Open { name, theirs: (slots % 3) as u8, queues },
            1 => {
                let addr = if slots % 2 == 0 { word } else { u64::MAX };
                let slots = 1 << (slots % 32);
                let mailbox = is_odd.then_some(Mailbox { addr, key: RemoteKey(slots), slots });
                Message::Opened { name, target, queues, mailbox }
            }
            2 => Message::Refused { name, why: Refusal::Stale },
            3 => Message::Fence { name },
            4 => Message::Fenced { name, target, arrived: vec![(word, word); count] },
            5 => Message::Broken { name, is_rail_well: is_odd },
            6 => Message::Bind { name, grant },
            7 => Message::Bound {
                name,
                grant,
                keys: vec![RemoteKey(slots); count % 4],
                access: RemoteAccess { read: slots % 2 == 0, write: true },
            },
            _ => {
                let why = if is_odd { Strike::Gone } else { Strike::Full };
                Message::Struck { name, grant, why }
            }
        }
    })
}

fn any_status() -> impl Strategy<Value = Status> {
    prop_oneof![
        4 => Just(Status::Success),
        1 => Just(Status::Flushed),
        1 => Just(Status::RemoteAccess),
        1 => Just(Status::RetryExceeded),
    ]
}

proptest! {
    #[test]
    fn a_target_takes_anything_and_keeps_little(
        messages in prop::collection::vec((any_message(), any_status(), any::<u32>()), 1..200),
    ) {
        let mut theirs = Theirs::new();
        for (message, status, word) in messages {
            theirs.tell(message);
            let grants = theirs.take_done().into_iter().filter_map(|action| match action {
                Action::Granted { name, grant } => Some((name, grant)),
                _ => None,
            });
            for (name, grant) in grants {
                theirs.machine.granted(name, grant, Err(Strike::Gone));
            }
            theirs.machine.received((word % 2) as u8, QpNumber(word % 9), word);
            theirs.complete(status);
            prop_assert!(theirs.machine.accepted.len() <= 5 * 2, "one a rail of each initiator");
        }
        for initiator in (0..4).map(InitiatorId).chain([ME]) {
            theirs.machine.evict(initiator);
        }
        theirs.act();
        theirs.complete(Status::Flushed);
        prop_assert!(theirs.machine.is_idle());
    }

    /// Whatever the peer says, an order ends once, and only for its own endpoints' sake.
    #[test]
    fn an_initiator_takes_anything_and_ends_once(
        messages in prop::collection::vec((any_message(), any_status(), any::<bool>()), 1..100),
    ) {
        let mut ours = Ours::new(limits(), 2);
        ours.carry(noticed(writes(1, 4)));
        ours.carry(reads(2, 4));
        ours.carry(order(3, vec![slice(true, Keys::Grant(1))]));
        for (message, status, completes) in messages {
            ours.tell(message);
            if completes {
                ours.complete(0, status);
                ours.complete(1, status);
            }
            ours.after(limits().grace_ns);
        }
        ours.machine.close(PEER, ours.now_ns);
        ours.act();
        for _ in 0..10 {
            ours.complete(0, Status::Flushed);
            ours.complete(1, Status::Flushed);
            ours.after(limits().fence_max_ns);
        }
        let mut ended: Vec<u64> = ours.ended.iter().map(|(id, _)| *id).collect();
        ended.sort_unstable();
        prop_assert_eq!(ended, [1, 2, 3]);
        prop_assert!(ours.machine.is_idle());
    }
}

#[test]
fn fences_of_one_rail_are_one_question() {
    let mut theirs = Theirs::new();
    theirs.open(name(0, 1));
    theirs.take_told();
    for generation in 1..=1_000 {
        theirs.tell(Message::Fence { name: name(0, generation) });
    }
    theirs.tell(Message::Fence { name: name(0, 5) });
    theirs.complete(Status::Flushed);
    let last = Message::Fenced { name: name(0, 1_000), target: PROCESS, arrived: Vec::new() };
    assert_eq!(theirs.take_told(), [last]);
}

#[test]
fn a_notice_that_makes_no_sense_ends_its_endpoint() {
    let mut theirs = Theirs::new();
    theirs.open(name(0, 1));
    theirs.take_told();
    // Zeros: a part of none.
    theirs.machine.received(0, QpNumber(2), u32::MAX);
    theirs.act();
    assert_eq!(theirs.take_told(), [Message::Broken { name: name(0, 1), is_rail_well: false }]);
}
