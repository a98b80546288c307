//! The properties behind [`crate::fuzzing`] that concern the control channel.

use super::descriptor::{Descriptor, RpcMeta};
use super::wire::{self, AnyObject, Decoder, Frame, FrameError, Kind, Notify};

/// Chunk sizes that cut prefix, type byte and body everywhere, or nowhere.
const CHUNKS: [usize; 4] = [1, 3, 8, usize::MAX];

/// Reading may shorten a document at most this much: `[1,1,"x"]` is a buffer to serde, and is
/// written with its keys.
const GROWTH_MAX: usize = 4;

type Decoded = Result<(usize, Option<Frame>), FrameError>;

/// See [`crate::fuzzing::control_frame`].
pub fn frame(input: &[u8]) {
    let decoded = decode(input, input.len().max(1));
    for chunk in CHUNKS {
        assert_eq!(decode(input, chunk), decoded, "in chunks of {chunk}");
    }
    let Ok((consumed, Some(frame))) = decoded else { return };
    let (taken, rest) = input.split_at(consumed);
    let again = wire::encode(frame.kind, frame.legacy, frame.body()).expect("it was a frame");
    assert_eq!([&again, rest].concat(), input);
    assert_eq!(again, taken);
    messages(&frame);
}

fn decode(input: &[u8], chunk: usize) -> Decoded {
    let (mut decoder, mut consumed) = (Decoder::default(), 0);
    for piece in input.chunks(chunk) {
        let (taken, frame) = decoder.push(piece)?;
        consumed += taken;
        if frame.is_some() {
            return Ok((consumed, frame));
        }
        assert_eq!(taken, piece.len(), "an incomplete frame takes everything");
    }
    Ok((consumed, None))
}

/// What parses as a message is the same after a round trip.
fn messages(frame: &Frame) {
    let _ = frame.parse::<AnyObject>();
    let Ok(notify) = frame.parse::<Notify>() else { return };
    let Ok(bytes) = wire::encode_message(Kind::Notify, false, &notify) else { return };
    let (_, again) = Decoder::default().push(&bytes).expect("we wrote it");
    assert_eq!(again.expect("we wrote all of it").parse::<Notify>(), Ok(notify));
}

/// See [`crate::fuzzing::descriptor`].
pub fn descriptor(input: &[u8]) {
    if let Ok(read) = Descriptor::parse(input) {
        match read.to_json() {
            Ok(json) => assert_eq!(Descriptor::parse(&json).expect("we wrote it"), read),
            Err(error) => assert!(
                input.len() * GROWTH_MAX > crate::limits::CONTROL_FRAME_MAX_BYTES,
                "{error}"
            ),
        }
    }
    if let Ok(read) = RpcMeta::parse(input) {
        assert_eq!(RpcMeta::parse(&read.to_json()).expect("we wrote it"), read);
    }
}
