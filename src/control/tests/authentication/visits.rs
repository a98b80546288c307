//! Guests and hosts, where peers have to prove who they are.

use super::keys::Keys;
use super::*;
use crate::control::wire::{self, Kind};
use crate::limits::LEAVING_MAX;

/// The process that every stand-in says it is.
const INCARNATION: u64 = 7;

fn guest_at(control: &Control) -> Guest {
    let word = control.shared.client.words.of(INCARNATION);
    let (name, control) = (control.name().to_owned(), control.identity().control.to_string());
    Guest { name, incarnation: INCARNATION, control, word }
}

#[test]
fn a_guest_is_whom_it_has_proven_to_be_and_leaves_when_its_host_says_so() {
    let keys = Keys::new();
    let (near, ours) = keys.start("near", &[("prefill", 1), ("decode", 2)]);
    let (far, theirs) = keys.start("far", &[("decode", 2), ("prefill", 1)]);
    assert!(!wait(near.arrive(far.name(), INCARNATION, INCARNATION)));
    let guest = guest_at(&near);
    assert_eq!(*theirs.guests.lock().unwrap(), [(named("prefill"), guest.clone())]);
    let stayed = wait(far.send_off(INCARNATION, vec![guest], Duration::from_secs(20)));
    assert_eq!((stayed, ours.left.lock().unwrap().clone()), (Vec::new(), vec![INCARNATION]));
}

#[test]
fn a_guest_that_does_not_know_its_host_is_not_waited_for_without_end() {
    let keys = Keys::new();
    let (near, ours) = keys.start("near", &[("prefill", 1)]);
    let (far, _) = keys.start("far", &[("decode", 2), ("prefill", 1)]);
    let guest = guest_at(&near);
    let stayed = wait(far.send_off(INCARNATION, vec![guest], Duration::from_millis(300)));
    assert_eq!((stayed, ours.left.lock().unwrap().len()), (vec![near.name().to_owned()], 0));
}

#[test]
fn many_who_stay_keep_nobody_from_being_asked() {
    let keys = Keys::new();
    let (near, ours) = keys.start("near", &[("prefill", 1), ("decode", 2)]);
    let (far, _) = keys.start("far", &[("decode", 2), ("prefill", 1)]);
    let guest = guest_at(&near);
    // Who answers there hangs up, until the other guest has left, and is nowhere then.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let control = listener.local_addr().unwrap().to_string();
    let staying = |at| Guest { name: format!("{at}"), control: control.clone(), ..guest.clone() };
    // The last who came is asked first.
    let mut guests = vec![guest.clone()];
    guests.extend((0..LEAVING_MAX).map(staying));
    let is_over = {
        let ours = ours.clone();
        move || !ours.left.lock().unwrap().is_empty()
    };
    std::thread::spawn(move || {
        while !is_over()
            && let Ok((stream, _)) = listener.accept()
        {
            drop(stream);
        }
    });
    let stayed = wait(far.send_off(INCARNATION, guests, Duration::from_secs(60)));
    assert_eq!((stayed, ours.left.lock().unwrap().clone()), (Vec::new(), vec![INCARNATION]));
}

#[test]
fn one_who_is_let_in_without_a_proof_neither_comes_as_a_guest_nor_makes_anybody_leave() {
    let keys = Keys::new();
    let authentication = Authentication::Keys(keys.file("far", &[("decode", 2)]));
    let (far, theirs) = start(ControlConfig { admits_plain: true, ..config_as(authentication) });
    let (trusting, heard) = start(config("127.0.0.1"));
    let guest = serde_json::to_string(&guest_at(&far)).unwrap();
    let arrive = format!("\u{c2}{{\"guest\":{guest},\"to\":{INCARNATION}}}");
    let word = trusting.shared.client.words.of(1);
    let leave = format!("\u{c3}{{\"incarnation\":1,\"to\":{INCARNATION},\"word\":{word}}}");
    let lane = "0".repeat(32);
    let end = format!("\u{c0}{{\"incarnation\":{INCARNATION},\"lane\":\"{lane}\"}}");
    for question in [arrive, leave, end] {
        // The type is a byte, not a character.
        let bytes: Vec<_> = question.chars().map(|c| c as u8).collect();
        let answer = |control| Raw::connect(control).send(&frame(&bytes)).receive();
        assert_eq!(answer(&far), b"", "{question}");
        assert!(!answer(&trusting).is_empty(), "it is well-formed: {question}");
    }
    assert_eq!((theirs.guests.lock().unwrap().len(), theirs.left.lock().unwrap().len()), (0, 0));
    assert_eq!(heard.guests.lock().unwrap()[0].0, PeerId::Anyone);
    assert_eq!(*heard.left.lock().unwrap(), [1]);
}

#[test]
fn nobody_but_the_host_that_was_visited_makes_a_guest_leave_it() {
    let keys = Keys::new();
    let (near, ours) = keys.start("near", &[("prefill", 1), ("decode", 2)]);
    let (far, _) = keys.start("far", &[("decode", 2), ("prefill", 1)]);
    // It knows all that is to be known of both, but for what the guest told its host.
    let guest = Guest { word: guest_at(&near).word ^ 1, ..guest_at(&near) };
    let stayed = wait(far.send_off(INCARNATION, vec![guest], Duration::from_millis(300)));
    assert_eq!((stayed, ours.left.lock().unwrap().len()), (vec![near.name().to_owned()], 0));
    // The word for one host is none for another.
    let guest = guest_at(&near);
    let stayed = wait(far.send_off(INCARNATION + 1, vec![guest], Duration::from_millis(300)));
    assert_eq!((stayed.len(), ours.left.lock().unwrap().len()), (1, 0));
}

#[test]
fn letters_take_a_proof_where_others_bring_one() {
    let keys = Keys::new();
    let authentication = Authentication::Keys(keys.file("far", &[("decode", 2)]));
    let (far, theirs) = start(ControlConfig { admits_plain: true, ..config_as(authentication) });
    let (trusting, heard) = start(config("127.0.0.1"));
    let body = serde_json::json!({ "text": "hello" });
    let letter = Letter { from: "somebody".into(), incarnation: 1, to: INCARNATION, body };
    let sealed = letter.sealed().unwrap();
    for control in [&far, &trusting] {
        // Its end says that the letter was looked at.
        let raw = Raw::connect(control).send_what_it_takes(&sealed).shutdown_write_if_open();
        assert_eq!(raw.receive(), b"");
    }
    assert_eq!((theirs.letters.lock().unwrap().len(), heard.letters.lock().unwrap().len()), (0, 1));
}

#[test]
fn mooncake_gets_no_queue_pairs_where_no_rule_permits_it_anything() {
    let keys = Keys::new();
    let question = wire::encode_message(Kind::Connection, false, &Handshake::default()).unwrap();
    for serves_nobody in [true, false] {
        let authentication = Authentication::Keys(keys.file("far", &[("decode", 2)]));
        let config = ControlConfig { admits_plain: true, ..config_as(authentication) };
        let (far, _) = start_with(config, move |engine| engine.serves_nobody = serves_nobody);
        let answer = Raw::connect(&far).send(&question).shutdown_write_if_open().receive();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert_eq!(answer.contains("no rule of the policy"), serves_nobody, "{answer}");
    }
}
