//! The opening, rule by rule.

use super::*;
use crate::error::{Error, ErrorKind};
use crate::limits::{MOONCAKE_ACK_NS, MOONCAKE_OPEN_MAX_NS, MOONCAKE_WAITING_MAX, RDMA_QUEUES_MAX};

/// An opening to [`PEER`] of two queue pairs, 1 and 2, whose steps are looked at one by one.
struct Ours(Opening);

impl Ours {
    fn new() -> Self {
        let mut ours = Self(Opening::new(nic(0), PEER.to_owned(), 2, 0).unwrap());
        assert!(matches!(ours.step(), Step::Create { queues: 2 }));
        ours
    }

    /// Its request is on its way.
    fn asking() -> Self {
        let mut ours = Self::new();
        ours.0.created(Some(qps([1, 2])));
        let Step::Ask(request) = ours.step() else { panic!("it asks") };
        assert_eq!((request.qp_num, request.ready_ack), (vec![1, 2], Some(false)));
        ours
    }

    /// Connected by the answer of a peer that doesn't know `ready_ack`.
    fn ready() -> Self {
        let mut ours = Self::asking();
        ours.0.answered(Ok(Handshake { ready_ack: None, ..request(&[5, 6]) }));
        ours.connects();
        assert!(matches!(ours.step(), Step::Ready));
        ours
    }

    /// The only step there is.
    fn step(&mut self) -> Step {
        let mut steps = self.0.take_steps();
        let step = steps.pop();
        assert!(steps.is_empty(), "{steps:?} before {step:?}");
        step.expect("a step")
    }

    fn idles(&mut self) {
        let steps = self.0.take_steps();
        assert!(steps.is_empty(), "{steps:?}");
    }

    /// The peer's queue pairs 5 and 6 are connected to ours.
    fn connects(&mut self) {
        let Step::Connect { pairs, port } = self.step() else { panic!("it connects") };
        let (ours, theirs): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        assert_eq!((ours, theirs, port), (qps([1, 2]), qps([5, 6]), ELSEWHERE));
        self.0.connected(true);
    }

    fn replies(&mut self) -> Handshake {
        let Step::Reply { reply, .. } = self.step() else { panic!("it replies") };
        reply
    }

    /// It is over, and nothing is left of it.
    fn ends(&mut self, kind: ErrorKind) -> Error {
        let steps = self.0.take_steps();
        let [.., Step::Destroy { queues }, Step::Over(error)] = &steps[..] else {
            panic!("{steps:?}");
        };
        assert_eq!((queues, error.kind()), (&qps([1, 2]), kind), "{error}");
        assert!(self.0.is_over() && self.0.wake_at_ns().is_none());
        self.0.created(Some(qps([3])));
        self.0.answered(Ok(request(&[5, 6])));
        self.0.located(Some(PORT));
        self.0.connected(true);
        self.0.expire(u64::MAX);
        self.0.close();
        self.idles();
        error.clone()
    }
}

#[test]
fn with_readiness_there_are_two_messages() {
    let mut ours = Ours::asking();
    ours.0.answered(Ok(request(&[5, 6])));
    ours.connects();
    let Step::Ask(sent) = ours.step() else { panic!("it says that it is ready") };
    assert_eq!((&sent.qp_num[..], sent.ready_ack), (&[1, 2][..], Some(true)));
    ours.0.answered(Ok(Handshake::default()));
    assert!(matches!(ours.step(), Step::Ready));
    assert_eq!(ours.0.wake_at_ns(), None);
}

#[test]
fn without_it_there_is_one() {
    Ours::ready().idles();
}

#[test]
fn the_request_is_what_mooncake_reads() {
    let mut ours = Ours::new();
    ours.0.created(Some(qps([1, 2])));
    let Step::Ask(request) = ours.step() else { panic!("it asks") };
    let expected = Handshake {
        port: Some(PORT),
        local_nic_path: "kv@d0".to_owned(),
        peer_nic_path: PEER.to_owned(),
        qp_num: vec![1, 2],
        ready_ack: Some(false),
        reply_msg: String::new(),
    };
    assert_eq!(request, expected);
}

#[test]
fn an_old_peers_port_is_looked_up() {
    let mut ours = Ours::asking();
    ours.0.answered(Ok(old_request(&[5, 6])));
    assert!(matches!(ours.step(), Step::Locate));
    ours.0.located(Some(ELSEWHERE));
    ours.connects();
    assert!(matches!(ours.step(), Step::Ready));
    let mut ours = Ours::asking();
    ours.0.answered(Ok(old_request(&[5, 6])));
    ours.step();
    ours.0.located(None);
    ours.ends(ErrorKind::Refused);
}

#[test]
fn a_refusal_is_told_in_the_peers_words() {
    let mut ours = Ours::asking();
    ours.0.answered(Ok(Handshake::refusal(true, "no such thing")));
    let error = ours.ends(ErrorKind::Refused);
    assert!(error.to_string().contains("no such thing"), "{error}");
    assert!(error.to_string().contains(PEER), "{error}");
    let mut ours = Ours::asking();
    ours.0.answered(Ok(request(&[5, 6])));
    ours.connects();
    ours.step();
    ours.0.answered(Ok(Handshake::refusal(true, "not ready")));
    ours.ends(ErrorKind::Refused);
}

#[test]
fn answers_of_others_or_of_another_shape_end_it() {
    let other_nic = Handshake { local_nic_path: "peer@d1".to_owned(), ..request(&[5, 6]) };
    let other_reader = Handshake { peer_nic_path: "kv@d1".to_owned(), ..request(&[5, 6]) };
    // The last is the answer of an engine without RDMA.
    let answers =
        [other_nic, other_reader, request(&[5]), request(&[5, 6, 7]), Handshake::default()];
    for answer in answers {
        let mut ours = Ours::asking();
        ours.0.answered(Ok(answer));
        ours.ends(ErrorKind::Refused);
    }
}

#[test]
fn an_unreachable_peer_and_a_device_that_does_not_connect_end_it() {
    let mut ours = Ours::asking();
    ours.0.answered(Err(Error::lost("nobody there")));
    ours.ends(ErrorKind::Lost);
    let mut ours = Ours::asking();
    ours.0.answered(Ok(request(&[5, 6])));
    ours.step();
    ours.0.connected(false);
    ours.ends(ErrorKind::Lost);
}

#[test]
fn without_queue_pairs_nobody_is_asked() {
    for made in [None, Some(vec![]), Some(qps([1])), Some(qps([1, 2, 3]))] {
        let mut ours = Ours::new();
        ours.0.created(made.clone());
        let steps = ours.0.take_steps();
        let ended = match &steps[..] {
            [Step::Destroy { queues }, Step::Over(_)] => queues.clone(),
            [Step::Over(_)] => Vec::new(),
            _ => panic!("{steps:?}"),
        };
        assert_eq!(ended, made.unwrap_or_default());
    }
    for count in [0, RDMA_QUEUES_MAX + 1] {
        let error = Opening::new(nic(0), PEER.to_owned(), count, 0).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
    }
}

#[test]
fn waiting_is_bounded() {
    let mut ours = Ours::asking();
    assert_eq!(ours.0.wake_at_ns(), Some(MOONCAKE_OPEN_MAX_NS));
    ours.0.expire(MOONCAKE_OPEN_MAX_NS - 1);
    ours.idles();
    ours.0.expire(MOONCAKE_OPEN_MAX_NS);
    ours.ends(ErrorKind::Expired);
    let mut ours = Ours::ready();
    ours.0.expire(u64::MAX);
    ours.idles();
    ours.0.close();
    ours.ends(ErrorKind::Closed);
}

#[test]
fn queue_pairs_that_come_too_late_are_ended() {
    let mut ours = Ours::new();
    ours.0.close();
    assert!(matches!(ours.step(), Step::Over(_)));
    ours.0.created(Some(qps([1, 2])));
    let Step::Destroy { queues } = ours.step() else { panic!("they go") };
    assert_eq!(queues, qps([1, 2]));
}

#[test]
fn a_nic_reaches_itself_without_a_message() {
    let mut ours = Ours(Opening::new(nic(0), "kv@d0".to_owned(), 2, 0).unwrap());
    ours.step();
    ours.0.created(Some(qps([1, 2])));
    let Step::Connect { pairs, port } = ours.step() else { panic!("it connects") };
    let expected: Vec<_> = qps([1, 2]).into_iter().zip(qps([1, 2])).collect();
    assert_eq!((pairs, port), (expected, PORT));
    ours.0.connected(true);
    assert!(matches!(ours.step(), Step::Ready));
    let own = Handshake { local_nic_path: "kv@d0".to_owned(), ..request(&[1, 2]) };
    assert!(!ours.0.asked(Ask(1), &own), "nobody else is called so");
}

#[test]
fn a_request_while_ours_is_under_way_connects_the_same_endpoint() {
    let mut ours = Ours::asking();
    assert!(ours.0.asked(Ask(1), &request(&[5, 6])));
    ours.connects();
    let reply = ours.replies();
    assert_eq!((&reply.qp_num[..], reply.ready_ack), (&[1, 2][..], Some(false)));
    ours.0.answered(Ok(request(&[5, 6])));
    assert!(matches!(ours.step(), Step::Ask(ack) if ack.is_ack()));
    ours.0.answered(Ok(Handshake::default()));
    assert!(matches!(ours.step(), Step::Ready));
    // The peer's own word, and its request once more.
    assert!(ours.0.asked(Ask(2), &ack(&[5, 6])));
    assert_eq!(ours.replies().reply_msg, "");
    assert!(ours.0.asked(Ask(3), &request(&[5, 6])));
    assert_eq!(ours.replies().qp_num, [1, 2]);
}

#[test]
fn a_request_before_our_queue_pairs_are_there_waits_for_them() {
    let mut ours = Ours::new();
    assert!(ours.0.asked(Ask(1), &request(&[5, 6])));
    ours.idles();
    ours.0.created(Some(qps([1, 2])));
    let steps = ours.0.take_steps();
    assert!(matches!(&steps[..], [Step::Ask(_), Step::Connect { .. }]), "{steps:?}");
    ours.0.connected(true);
    assert_eq!(ours.replies().qp_num, [1, 2]);
}

#[test]
fn an_answer_with_other_queue_pairs_than_the_request_retires_it() {
    let mut ours = Ours::asking();
    assert!(ours.0.asked(Ask(1), &request(&[5, 6])));
    ours.connects();
    ours.replies();
    ours.0.answered(Ok(request(&[7, 8])));
    ours.ends(ErrorKind::Lost);
}

#[test]
fn when_it_is_retired_those_who_wait_are_refused() {
    let mut ours = Ours::asking();
    assert!(ours.0.asked(Ask(1), &request(&[5, 6])));
    ours.step();
    ours.0.answered(Ok(request(&[7, 8])));
    let steps = ours.0.take_steps();
    let [Step::Reply { ask: Ask(1), reply }, Step::Destroy { .. }, Step::Over(_)] = &steps[..]
    else {
        panic!("{steps:?}");
    };
    assert!(!reply.reply_msg.is_empty() && reply.ready_ack == Some(false));
}

#[test]
fn of_two_requests_the_peer_may_refuse_ours() {
    for refusal_first in [false, true] {
        let mut ours = Ours::asking();
        assert!(ours.0.asked(Ask(1), &request(&[5, 6])));
        let refused = || Ok(Handshake::refusal(true, "Simultaneous handshake rejected"));
        if refusal_first {
            ours.0.answered(refused());
            ours.connects();
            ours.replies();
        } else {
            ours.connects();
            ours.replies();
            ours.0.answered(refused());
            ours.idles();
        }
        assert!(ours.0.asked(Ask(2), &ack(&[5, 6])));
        let steps = ours.0.take_steps();
        assert!(matches!(&steps[..], [Step::Reply { .. }, Step::Ready]), "{steps:?}");
    }
}

#[test]
fn a_request_that_comes_again_takes_no_readiness_back() {
    let mut ours = Ours::asking();
    assert!(ours.0.asked(Ask(1), &request(&[5, 6])));
    assert!(ours.0.asked(Ask(2), &ack(&[5, 6])));
    assert!(ours.0.asked(Ask(3), &request(&[5, 6])));
    ours.0.answered(Ok(Handshake::refusal(true, "no")));
    ours.connects();
    assert!(matches!(ours.0.take_steps().pop(), Some(Step::Ready)));
}

#[test]
fn a_peer_that_refused_ours_and_is_never_ready_itself_is_given_up() {
    let mut ours = Ours::asking();
    assert!(ours.0.asked(Ask(1), &request(&[5, 6])));
    ours.connects();
    ours.replies();
    ours.0.answered(Ok(Handshake::refusal(true, "no")));
    ours.0.expire(MOONCAKE_OPEN_MAX_NS);
    ours.ends(ErrorKind::Refused);
}

#[test]
fn a_peer_with_new_queue_pairs_ends_it_and_is_the_targets() {
    for mut ours in [Ours::ready(), Ours::asking()] {
        if ours.0.wake_at_ns().is_some() {
            ours.0.answered(Ok(request(&[5, 6])));
        }
        assert!(!ours.0.asked(Ask(1), &ack(&[7, 8])), "a word about others changes nothing");
        assert!(!ours.0.is_over());
        assert!(!ours.0.asked(Ask(2), &request(&[7, 8])));
        ours.ends(ErrorKind::Lost);
        assert!(!ours.0.asked(Ask(3), &request(&[7, 8])));
    }
}

#[test]
fn requests_of_others_or_of_another_shape_are_the_targets() {
    let mut ours = Ours::asking();
    for request in [
        Handshake { local_nic_path: "peer@d1".to_owned(), ..request(&[5, 6]) },
        Handshake { peer_nic_path: "kv@d1".to_owned(), ..request(&[5, 6]) },
        request(&[5, 6, 7]),
        ack(&[5, 6]),
    ] {
        assert!(!ours.0.asked(Ask(1), &request));
        ours.idles();
    }
}

#[test]
fn what_the_peer_opened_is_taken_over_when_it_is_ready() {
    let accepted = |awaits_ack| {
        let remote = Remote { queues: qps([5, 6]), port: Some(ELSEWHERE) };
        Accepted { queues: qps([1, 2]), remote, awaits_ack }
    };
    let adopt = |awaits_ack| Ours(Opening::adopt(nic(0), PEER.to_owned(), accepted(awaits_ack), 0));
    assert!(matches!(adopt(false).step(), Step::Ready));
    let mut ours = adopt(true);
    ours.idles();
    assert!(ours.0.asked(Ask(1), &ack(&[5, 6])));
    let steps = ours.0.take_steps();
    assert!(matches!(&steps[..], [Step::Reply { .. }, Step::Ready]), "{steps:?}");
    let mut ours = adopt(true);
    ours.0.expire(MOONCAKE_ACK_NS);
    ours.ends(ErrorKind::Expired);
}

#[test]
fn those_who_wait_are_bounded() {
    let mut ours = Ours::new();
    for ask in 0..=MOONCAKE_WAITING_MAX as u64 {
        assert!(ours.0.asked(Ask(ask), &request(&[5, 6])));
    }
    assert!(ours.replies().reply_msg.contains("as many requests"));
}
