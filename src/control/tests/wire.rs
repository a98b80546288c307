//! Frames: golden bytes of Mooncake 0.3.13, every way to be malformed, and round trips.

use proptest::prelude::*;

use super::super::wire::*;
use super::frame;
use crate::control::fuzzing;
use crate::limits::CONTROL_FRAME_MAX_BYTES;

fn decode(bytes: &[u8]) -> Result<Option<Frame>, FrameError> {
    Decoder::default().push(bytes).map(|(_, frame)| frame)
}

#[test]
fn golden_frames_are_written_to_the_byte() {
    let probe = encode(Kind::Probe, false, b"{}").unwrap();
    assert_eq!(probe, b"\x03\0\0\0\0\0\0\0\x03{}");
    let reply = encode_message(Kind::Probe, false, &ProbeReply::success()).unwrap();
    assert_eq!(reply, b"\x16\0\0\0\0\0\0\0\x03{\"status\":\"success\"}\n");
    let accepted = Notify { name: String::new(), notify_msg: "success".to_owned() };
    let reply = encode_message(Kind::Notify, false, &accepted).unwrap();
    assert_eq!(reply, b"\x24\0\0\0\0\0\0\0\x02{\"name\":\"\",\"notify_msg\":\"success\"}\n");
}

#[test]
fn typed_and_legacy_frames_are_told_apart() {
    let typed = decode(&frame(b"\x02{}")).unwrap().unwrap();
    assert_eq!((typed.kind, typed.legacy, typed.body()), (Kind::Notify, false, &b"{}"[..]));
    let legacy = decode(&frame(b"{}")).unwrap().unwrap();
    assert_eq!((legacy.kind, legacy.legacy, legacy.body()), (Kind::Connection, true, &b"{}"[..]));
    for first in 4..=0x7f {
        assert!(decode(&frame(&[first])).unwrap().unwrap().legacy, "{first:#x}");
    }
    let ours = decode(&frame(b"\xc0{}")).unwrap().unwrap();
    assert_eq!((ours.kind, ours.legacy), (Kind::EndLane, false));
    assert_eq!(decode(&frame(b"\xc1{}")).unwrap().unwrap().kind, Kind::Letter);
    assert_eq!(decode(&frame(b"\xc4{}")).unwrap().unwrap().kind, Kind::Pass);
    for first in (0x80..=0xff).filter(|first| !(0xc0..=0xc4).contains(first)) {
        assert_eq!(decode(&frame(&[first])), Err(FrameError::UnknownType(first)));
    }
}

#[test]
fn lengths_are_checked_before_anything_is_kept() {
    let mut decoder = Decoder::default();
    assert_eq!(decoder.push(&0_u64.to_le_bytes()), Err(FrameError::Empty));
    for claimed in [CONTROL_FRAME_MAX_BYTES as u64 + 1, u64::MAX] {
        let mut decoder = Decoder::default();
        assert_eq!(decoder.push(&claimed.to_le_bytes()), Err(FrameError::TooLong { claimed }));
    }
    let mut decoder = Decoder::default();
    decoder.push(&(CONTROL_FRAME_MAX_BYTES as u64).to_le_bytes()).unwrap();
    assert_eq!(decoder.held_bytes(), 0, "a claim reserves nothing");
    decoder.push(&[3; 100]).unwrap();
    assert!(decoder.held_bytes() <= 256, "memory follows what arrived");
}

#[test]
fn the_largest_frame_passes_and_one_byte_more_does_not() {
    let body = vec![b' '; CONTROL_FRAME_MAX_BYTES - 1];
    let bytes = encode(Kind::Notify, false, &body).unwrap();
    assert_eq!(decode(&bytes).unwrap().unwrap().body(), body);
    let claimed = CONTROL_FRAME_MAX_BYTES as u64 + 1;
    let long = encode(Kind::Notify, false, &[body, vec![b' ']].concat());
    assert_eq!(long, Err(FrameError::TooLong { claimed }));
}

#[test]
fn what_cannot_be_legacy_is_not_written_as_such() {
    assert_eq!(encode(Kind::Connection, true, b""), Err(FrameError::Empty));
    assert_eq!(encode(Kind::Connection, true, b"\xff"), Err(FrameError::UnknownType(0xff)));
}

#[test]
fn bodies_of_wrong_types_are_errors_that_quote_little() {
    let long = format!("{{\"name\":[\"{}\"]}}", "x".repeat(10_000));
    for body in ["", "[]", "null", "\"{\"", "{\"name\":1}", "{\"name\":null}", &long] {
        let bytes = frame(&[b"\x02", body.as_bytes()].concat());
        let parsed = decode(&bytes).unwrap().unwrap().parse::<Notify>();
        let Err(FrameError::Body(reason)) = parsed else { panic!("{body:.20} parsed") };
        assert!(reason.len() < 400, "{reason}");
    }
}

proptest! {
    #[test]
    fn any_bytes_keep_the_frame_property(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        fuzzing::frame(&bytes);
    }

    #[test]
    fn any_payload_keeps_the_frame_property(
        payload in prop::collection::vec(any::<u8>(), 1..200),
        rest in prop::collection::vec(any::<u8>(), 0..20),
        kind in 0_u8..6,
    ) {
        fuzzing::frame(&[frame(&[&[kind], &payload[..]].concat()), rest].concat());
    }

    #[test]
    fn notifications_survive_the_trip(name in ".*", notify_msg in ".*", legacy: bool) {
        let sent = Notify { name, notify_msg };
        let bytes = encode_message(Kind::Notify, legacy, &sent).unwrap();
        prop_assert_eq!(decode(&bytes).unwrap().unwrap().parse::<Notify>().unwrap(), sent);
    }
}
