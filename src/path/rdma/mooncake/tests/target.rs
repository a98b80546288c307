//! The target, rule by rule.

use super::super::fuzzing::{ENDPOINTS_MAX, Rig};
use super::*;
use crate::limits::{MOONCAKE_ACK_NS, MOONCAKE_WAITING_MAX, RDMA_QUEUES_MAX};

/// The answer to a request for which queue pairs are made at once.
fn answer(rig: &mut Rig, request: &Handshake) -> Handshake {
    rig.ask(request);
    rig.make(0);
    rig.check();
    rig.replies.pop().expect("an answer")
}

fn refusal(rig: &mut Rig, request: &Handshake) -> String {
    let before = rig.alive.len();
    let reply = answer(rig, request);
    assert_eq!((reply.qp_num.len(), rig.alive.len()), (0, before));
    reply.reply_msg
}

#[test]
fn a_request_gets_as_many_queue_pairs_as_it_has() {
    for count in [1, 2, RDMA_QUEUES_MAX as u32] {
        let mut rig = Rig::new();
        let reply = answer(&mut rig, &request(&(0..count).collect::<Vec<_>>()));
        let expected = Handshake {
            port: Some(PORT),
            local_nic_path: "kv@d0".to_owned(),
            peer_nic_path: PEER.to_owned(),
            qp_num: (1..=count).collect(),
            ready_ack: Some(false),
            reply_msg: String::new(),
        };
        assert_eq!(reply, expected);
        rig.finish();
    }
}

#[test]
fn what_is_to_be_made_is_told() {
    let mut target = Target::new(1);
    target.add_nic(nic(0));
    target.asked(Ask(1), &request(&[5, 6]), 0);
    let actions = target.take_actions();
    let [Action::Accept { id, queues, port }] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!((id.rail, &queues[..], *port), (0, &qps([5, 6])[..], ELSEWHERE));
}

#[test]
fn paths_that_are_not_ours_or_empty_are_refused() {
    let mut rig = Rig::new();
    let wrong = "Invalid argument: peer nic path inconsistency";
    for path in ["", "kv", "kv@", "kv@d2", "kw@d0", "kv@d0 "] {
        let request = Handshake { peer_nic_path: path.to_owned(), ..request(&[1]) };
        assert_eq!(refusal(&mut rig, &request), wrong, "{path}");
    }
    for path in ["", "kv@d0"] {
        let request = Handshake { local_nic_path: path.to_owned(), ..request(&[1]) };
        assert_eq!(refusal(&mut rig, &request), wrong, "{path}");
    }
    rig.target.remove_nic(0);
    assert_eq!(refusal(&mut rig, &request(&[1])), wrong);
}

#[test]
fn no_queue_pairs_and_too_many_are_refused() {
    let mut rig = Rig::new();
    for queues in [vec![], vec![1; RDMA_QUEUES_MAX + 1], vec![1; 100_000]] {
        assert!(refusal(&mut rig, &request(&queues)).starts_with("QP count mismatch"));
    }
}

#[test]
fn the_same_request_again_makes_nothing() {
    let mut rig = Rig::new();
    let first = answer(&mut rig, &request(&[5, 6]));
    assert_eq!(answer(&mut rig, &request(&[5, 6])), first);
    assert_eq!(answer(&mut rig, &old_request(&[5, 6])).qp_num, first.qp_num);
    assert_eq!(rig.alive.len(), 2);
    rig.finish();
}

#[test]
fn other_queue_pairs_or_another_port_mean_that_the_peer_restarted() {
    let mut rig = Rig::new();
    answer(&mut rig, &request(&[5, 6]));
    assert_eq!(answer(&mut rig, &request(&[6, 5])).qp_num, [3, 4]);
    let moved = Handshake { port: Some(PORT), ..request(&[6, 5]) };
    assert_eq!(answer(&mut rig, &moved).qp_num, [5, 6]);
    assert_eq!(rig.alive.len(), 2);
    rig.finish();
}

#[test]
fn pairs_of_nics_are_apart() {
    let mut rig = Rig::new();
    answer(&mut rig, &request(&[5]));
    answer(&mut rig, &Handshake { peer_nic_path: "kv@d1".to_owned(), ..request(&[6]) });
    answer(&mut rig, &Handshake { local_nic_path: "peer@d1".to_owned(), ..request(&[7]) });
    assert_eq!(rig.alive.len(), 3);
    rig.finish();
}

#[test]
fn readiness_is_checked_against_what_is_connected() {
    let mut rig = Rig::new();
    assert!(refusal(&mut rig, &ack(&[5, 6])).contains("shake hands again"));
    let first = answer(&mut rig, &request(&[5, 6]));
    assert_eq!(answer(&mut rig, &ack(&[5, 6])), first);
    assert!(refusal(&mut rig, &ack(&[5, 7])).contains("shake hands again"));
    assert_eq!(rig.alive.len(), 2, "an ack ends nothing");
    rig.finish();
}

#[test]
fn who_never_says_that_it_is_ready_is_let_go() {
    let mut rig = Rig::new();
    answer(&mut rig, &request(&[5]));
    rig.ask(&Handshake { local_nic_path: "old@d0".to_owned(), ..old_request(&[6]) });
    rig.line(b"l");
    rig.line(b"m");
    answer(&mut rig, &Handshake { local_nic_path: "acked@d0".to_owned(), ..request(&[7]) });
    answer(&mut rig, &Handshake { local_nic_path: "acked@d0".to_owned(), ..ack(&[7]) });
    assert_eq!(rig.target.wake_at_ns(), Some(MOONCAKE_ACK_NS));
    rig.wait(MOONCAKE_ACK_NS - 1);
    assert_eq!(rig.alive.len(), 3);
    rig.wait(1);
    rig.check();
    assert_eq!((rig.alive.len(), rig.target.wake_at_ns()), (2, None));
    rig.finish();
}

#[test]
fn the_answer_has_the_key_if_the_request_had_it() {
    let mut rig = Rig::new();
    let without = Handshake { ready_ack: None, ..request(&[5]) };
    assert_eq!(answer(&mut rig, &without).ready_ack, None);
    assert_eq!(answer(&mut rig, &request(&[5])).ready_ack, Some(false));
    assert_eq!(answer(&mut rig, &ack(&[5])).ready_ack, Some(false));
    assert_eq!(answer(&mut rig, &Handshake { ready_ack: None, ..request(&[]) }).ready_ack, None);
    assert_eq!(answer(&mut rig, &request(&[])).ready_ack, Some(false));
}

#[test]
fn requests_while_queue_pairs_are_made_are_answered_when_they_are_there() {
    let mut rig = Rig::new();
    (0..=MOONCAKE_WAITING_MAX).for_each(|_| rig.ask(&request(&[5, 6])));
    let crowded = rig.replies.pop().unwrap();
    assert!(crowded.reply_msg.contains("as many requests as allowed"), "{crowded:?}");
    assert!(rig.replies.is_empty());
    rig.make(0);
    rig.check();
    assert_eq!(rig.replies.len(), MOONCAKE_WAITING_MAX);
    assert!(rig.replies.iter().all(|reply| reply.qp_num == [1, 2]));
    rig.finish();
}

#[test]
fn a_restart_while_queue_pairs_are_made_leaves_none_of_the_first() {
    let mut rig = Rig::new();
    rig.ask(&request(&[5]));
    rig.ask(&request(&[6]));
    assert!(rig.replies.pop().unwrap().reply_msg.contains("a later handshake"));
    rig.make(0);
    rig.make(0);
    rig.check();
    assert_eq!(rig.replies.pop().unwrap().qp_num, [1]);
    assert_eq!(rig.alive.len(), 1);
    rig.finish();
}

#[test]
fn an_old_peers_port_is_looked_up() {
    let mut rig = Rig::new();
    rig.ask(&old_request(&[5]));
    rig.line(b"m");
    assert!(rig.replies.is_empty(), "nothing is made before the port is known");
    rig.line(b"l");
    rig.line(b"m");
    let reply = rig.replies.pop().unwrap();
    assert_eq!((reply.qp_num, reply.ready_ack), (vec![1], None));
    rig.ask(&Handshake { local_nic_path: "gone@d0".to_owned(), ..old_request(&[5]) });
    rig.line(b"n");
    assert_eq!(rig.replies.pop().unwrap().reply_msg, "Peer nic not found in that server");
    rig.finish();
}

#[test]
fn a_device_that_gives_no_queue_pairs_or_too_few_is_no_endpoint() {
    let mut rig = Rig::new();
    for line in [b"x", b"s"] {
        rig.ask(&request(&[5, 6]));
        rig.line(line);
        assert!(rig.replies.pop().unwrap().reply_msg.contains("no queue pairs"));
        assert_eq!((rig.alive.len(), rig.target.len()), (0, 0));
    }
}

#[test]
fn the_endpoint_with_the_oldest_handshake_makes_room() {
    let mut rig = Rig::new();
    let of = |index: usize| Handshake {
        local_nic_path: format!("peer{index}@d0"),
        ..request(&[index as u32])
    };
    for index in 0..ENDPOINTS_MAX {
        answer(&mut rig, &of(index));
        rig.wait(1);
    }
    // Heard of again: the second is the oldest now.
    answer(&mut rig, &of(0));
    answer(&mut rig, &of(ENDPOINTS_MAX));
    assert_eq!(rig.alive.len(), ENDPOINTS_MAX);
    assert_eq!(answer(&mut rig, &of(0)).qp_num, [1]);
    assert_ne!(answer(&mut rig, &of(1)).qp_num, [2]);
    rig.finish();
}

#[test]
fn endpoints_that_are_being_made_keep_their_room() {
    let mut rig = Rig::new();
    for index in 0..=ENDPOINTS_MAX {
        rig.ask(&Handshake { local_nic_path: format!("peer{index}@d0"), ..request(&[1]) });
        rig.check();
    }
    assert!(rig.replies.pop().unwrap().reply_msg.contains("as many endpoints as allowed"));
    // Replacing them takes room too, until those that nobody wants are there.
    rig.ask(&Handshake { local_nic_path: "peer1@d0".to_owned(), ..request(&[2]) });
    assert_eq!(rig.replies.len(), 2);
    assert_eq!(rig.target.len(), ENDPOINTS_MAX);
    rig.finish();
}

#[test]
fn a_device_takes_its_endpoints_with_it() {
    let mut rig = Rig::new();
    let second = Handshake { peer_nic_path: "kv@d1".to_owned(), ..request(&[6]) };
    answer(&mut rig, &request(&[5]));
    answer(&mut rig, &second);
    rig.ask(&Handshake { local_nic_path: "late@d0".to_owned(), ..second.clone() });
    rig.target.remove_nic(1);
    rig.check();
    assert_eq!(rig.alive.len(), 1);
    assert!(rig.replies.pop().unwrap().reply_msg.contains("was ended while it was made"));
    rig.line(b"m");
    assert_eq!(rig.alive.len(), 1);
    rig.target.add_nic(nic(1));
    assert!(answer(&mut rig, &second).reply_msg.is_empty());
    rig.target.add_nic(nic(1));
    rig.check();
    assert_eq!(rig.alive.len(), 2, "it was there already");
    rig.target.add_nic(Nic::new(1, "kv", "d1", ELSEWHERE).unwrap());
    rig.check();
    assert_eq!(rig.alive.len(), 1, "its peers know another port");
    rig.finish();
}

#[test]
fn a_peer_takes_its_endpoints_with_it() {
    let mut rig = Rig::new();
    for path in ["peer@d0", "peer@d1", "peer2@d0"] {
        answer(&mut rig, &Handshake { local_nic_path: path.to_owned(), ..request(&[5]) });
    }
    rig.target.remove_peer("peer");
    rig.check();
    assert_eq!(rig.alive.len(), 1);
    rig.target.forget(1, "peer2@d0");
    rig.check();
    assert_eq!(rig.alive.len(), 1);
    rig.target.forget(0, "peer2@d0");
    rig.check();
    assert_eq!(rig.alive.len(), 0);
    rig.finish();
}

#[test]
fn an_endpoint_is_handed_over_when_it_is_there() {
    let mut rig = Rig::new();
    assert_eq!(rig.target.hand_over(0, PEER), Held::Nothing);
    rig.ask(&request(&[5, 6]));
    assert_eq!(rig.target.hand_over(0, PEER), Held::Soon);
    rig.make(0);
    rig.check();
    let queues = qps([1, 2]);
    let remote = Remote { queues: qps([5, 6]), port: Some(ELSEWHERE) };
    let expected = Accepted { queues, remote, awaits_ack: true };
    assert_eq!(rig.target.hand_over(0, PEER), Held::Here(expected));
    assert_eq!(rig.target.hand_over(0, PEER), Held::Nothing);
    rig.alive.clear();
    rig.finish();
}
