//! What holds whatever peers send and devices answer.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::fuzzing::{Rig, property};
use super::*;
use crate::error::Error;
use crate::limits::MOONCAKE_OPEN_MAX_NS;

/// Requests of few peers and few queue pairs, so that they meet; one in some is invalid.
fn any_request() -> impl Strategy<Value = Handshake> {
    let path = |server: &'static [&'static str]| {
        (prop::sample::select(server), 0..3)
            .prop_map(|(server, device)| format!("{server}@d{device}"))
    };
    let port = prop::option::of(prop::sample::select(&[PORT, ELSEWHERE][..]));
    let queues = prop::collection::vec(1_u32..4, 0..4);
    let ack = prop::option::of(any::<bool>());
    let local = path(&["peer", "other", "kv"]);
    (port, local, path(&["kv", "kv", "kv", "kw"]), queues, ack).prop_map(
        |(port, local_nic_path, peer_nic_path, qp_num, ready_ack)| Handshake {
            port,
            local_nic_path,
            peer_nic_path,
            qp_num,
            ready_ack,
            reply_msg: String::new(),
        },
    )
}

/// What happens to a target: a request, or one of the letters of [`Rig::line`].
fn any_line() -> impl Strategy<Value = Vec<u8>> {
    let letters = prop::sample::select(&b"lnmmmsxtfago"[..]).prop_map(|letter| vec![letter]);
    prop_oneof![any_request().prop_map(|asked| serde_json::to_vec(&asked).unwrap()), letters]
}

/// What happens to an opening.
#[derive(Debug, Clone)]
enum Event {
    Created(Option<usize>),
    Answered(Option<Handshake>),
    Asked(Handshake),
    Located(bool),
    Connected(bool),
    Expired,
    Closed,
}

fn any_event() -> impl Strategy<Value = Event> {
    let peers = || {
        prop_oneof![
            Just(request(&[5, 6])),
            Just(ack(&[5, 6])),
            Just(old_request(&[5, 6])),
            Just(request(&[7, 8])),
            Just(Handshake::refusal(true, "no")),
            any_request()
        ]
    };
    prop_oneof![
        3 => prop::option::weighted(0.9, Just(2_usize)).prop_map(Event::Created),
        1 => (0_usize..4).prop_map(|count| Event::Created(Some(count))),
        6 => prop::option::weighted(0.9, peers()).prop_map(Event::Answered),
        6 => peers().prop_map(Event::Asked),
        3 => any::<bool>().prop_map(Event::Located),
        4 => prop::bool::weighted(0.9).prop_map(Event::Connected),
        1 => Just(Event::Expired),
        1 => Just(Event::Closed),
    ]
}

/// An opening's books: its queue pairs, and whom it owes an answer.
#[derive(Default)]
struct Books {
    alive: BTreeSet<QpNumber>,
    owed: BTreeSet<Ask>,
    created: bool,
    readies: usize,
    overs: usize,
}

impl Books {
    fn take(&mut self, step: Step) {
        match step {
            Step::Reply { ask, .. } => assert!(self.owed.remove(&ask), "{ask:?} is answered twice"),
            Step::Destroy { queues } => {
                queues.iter().for_each(|queue| assert!(self.alive.remove(queue), "ended twice"));
            }
            Step::Connect { pairs, .. } => {
                assert_eq!(pairs.len(), 2);
                assert!(pairs.iter().all(|(own, _)| self.alive.contains(own)));
            }
            Step::Ready => self.readies += 1,
            Step::Over(_) => self.overs += 1,
            Step::Create { .. } | Step::Ask(_) | Step::Locate => {}
        }
    }
}

proptest! {
    #[test]
    fn a_target_keeps_its_books(lines in prop::collection::vec(any_line(), 0..60)) {
        let mut rig = Rig::new();
        lines.iter().for_each(|line| rig.line(line));
        rig.finish();
    }

    #[test]
    fn any_bytes_keep_the_property(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        property(&bytes);
    }

    #[test]
    fn an_opening_keeps_its_books(events in prop::collection::vec(any_event(), 0..30)) {
        let mut opening = Opening::new(nic(0), PEER.to_owned(), 2, 0).unwrap();
        let mut books = Books::default();
        for (turn, event) in events.into_iter().chain([Event::Closed]).enumerate() {
            match event {
                Event::Created(made) if !books.created => {
                    books.created = true;
                    let queues = made.map(|count| qps(0..count as u32));
                    books.alive.extend(queues.iter().flatten());
                    opening.created(queues);
                }
                Event::Created(_) => {}
                Event::Answered(answer) => {
                    opening.answered(answer.ok_or_else(|| Error::lost("nobody there")));
                }
                Event::Asked(request) => {
                    let ask = Ask(turn as u64);
                    if opening.asked(ask, &request) {
                        books.owed.insert(ask);
                    }
                }
                Event::Located(found) => opening.located(found.then_some(ELSEWHERE)),
                Event::Connected(is_connected) => opening.connected(is_connected),
                Event::Expired => opening.expire(MOONCAKE_OPEN_MAX_NS),
                Event::Closed => opening.close(),
            }
            opening.take_steps().into_iter().for_each(|step| books.take(step));
            prop_assert!(books.readies <= 1 && books.overs <= 1);
            prop_assert_eq!(opening.is_over(), books.overs == 1);
            prop_assert!(!opening.is_over() || books.alive.is_empty());
        }
        if !books.created {
            books.alive = qps([1, 2]).into_iter().collect();
            opening.created(Some(qps([1, 2])));
            opening.take_steps().into_iter().for_each(|step| books.take(step));
        }
        prop_assert!(books.alive.is_empty() && books.owed.is_empty());
    }
}
