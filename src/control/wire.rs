//! Frames of the control channel: pure bytes in, messages out. No socket ever enters this room.
//!
//! A frame is `u64 LE length | u8 type | JSON`, the length counting the type byte. A frame whose
//! first payload byte is 4 to 0x7f is legacy text without a type byte: a Connection message of
//! old Mooncake versions, answered in the same form.

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::auth::Entrance;
use crate::error::Error;
use crate::limits::CONTROL_FRAME_MAX_BYTES;

/// Bytes of the length prefix.
const LENGTH_BYTES: usize = 8;

/// How much of a JSON parser's message is kept: it may quote the peer's text.
const REASON_MAX_CHARS: usize = 160;

/// Two numbers of 64 bits, one in hexadecimal and one in decimal digits, and the dash.
const REQUEST_ID_MAX_CHARS: usize = 16 + 1 + 20;

/// What a frame is about; the number is its type byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Handshake of RDMA queue pairs.
    Connection = 0,
    /// Exchange of segment descriptors.
    Metadata = 1,
    /// A notification.
    Notify = 2,
    /// Are you alive?
    Probe = 3,
    /// End a connection and say so; between kvrail peers only.
    EndLane = 0xC0,
    /// A letter, after which more may follow; nothing is answered. Between kvrail peers only.
    Letter = 0xC1,
    /// I am your guest; between kvrail peers only.
    Arrive = 0xC2,
    /// Leave me, and say so; between kvrail peers only.
    Leave = 0xC3,
    /// Asks for a pass for a data connection; between peers that have proven who they are.
    Pass = 0xC4,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Connection),
            1 => Some(Self::Metadata),
            2 => Some(Self::Notify),
            3 => Some(Self::Probe),
            0xC0 => Some(Self::EndLane),
            0xC1 => Some(Self::Letter),
            0xC2 => Some(Self::Arrive),
            0xC3 => Some(Self::Leave),
            0xC4 => Some(Self::Pass),
            _ => None,
        }
    }
}

/// Why bytes are no frame, or a frame no message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length prefix is zero.
    #[error("a frame of length 0 holds no message")]
    Empty,
    /// The length prefix, or a message of ours, exceeds the limit.
    #[error("a frame of {claimed} bytes exceeds the limit of {CONTROL_FRAME_MAX_BYTES}")]
    TooLong {
        /// The length asked for.
        claimed: u64,
    },
    /// The first payload byte is neither a type nor the start of legacy text.
    #[error("type byte {0:#04x} is neither a message type (0 to 3, 0xc0 to 0xc4) nor legacy text")]
    UnknownType(u8),
    /// The body is not the JSON object that the type asks for.
    #[error("the body is not the JSON object expected: {0}")]
    Body(String),
}

impl From<FrameError> for Error {
    fn from(error: FrameError) -> Self {
        Error::refused("malformed control message").with_source(error)
    }
}

/// One whole frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it is about.
    pub kind: Kind,
    /// Came without a type byte, and is answered without one.
    pub legacy: bool,
    payload: Vec<u8>,
}

impl Frame {
    /// The JSON text, not yet looked at.
    pub fn body(&self) -> &[u8] {
        &self.payload[usize::from(!self.legacy)..]
    }

    /// The body as a message of type `T`.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, FrameError> {
        parse_object(self.body())
    }

    fn from_payload(payload: Vec<u8>) -> Result<Self, FrameError> {
        let first = *payload.first().ok_or(FrameError::Empty)?;
        let (kind, legacy) = classify(first)?;
        Ok(Self { kind, legacy, payload })
    }
}

/// Collects one frame from chunks of any size. Memory grows with the bytes that arrived, never
/// with the length that was claimed.
#[derive(Debug, Default)]
pub struct Decoder {
    length: [u8; LENGTH_BYTES],
    length_seen: usize,
    payload: Vec<u8>,
}

impl Decoder {
    /// Takes what it needs of `input`; returns how much that was, and the frame once complete.
    /// The decoder is then ready for the next frame; after an error it is of no use.
    pub fn push(&mut self, input: &[u8]) -> Result<(usize, Option<Frame>), FrameError> {
        let prefix = self.take_length(input);
        if self.length_seen < LENGTH_BYTES {
            return Ok((prefix, None));
        }
        let total = checked_length(u64::from_le_bytes(self.length))?;
        let rest = &input[prefix..];
        let taken = rest.len().min(total - self.payload.len());
        self.payload.extend_from_slice(&rest[..taken]);
        if let Some(&first) = self.payload.first() {
            classify(first)?;
        }
        if self.payload.len() < total {
            return Ok((prefix + taken, None));
        }
        let frame = Frame::from_payload(std::mem::take(self).payload)?;
        Ok((prefix + taken, Some(frame)))
    }

    /// Nothing of a frame has come.
    pub fn is_empty(&self) -> bool {
        self.length_seen == 0
    }

    /// Heap bytes held.
    pub fn held_bytes(&self) -> usize {
        self.payload.capacity()
    }

    fn take_length(&mut self, input: &[u8]) -> usize {
        let count = input.len().min(LENGTH_BYTES - self.length_seen);
        self.length[self.length_seen..][..count].copy_from_slice(&input[..count]);
        self.length_seen += count;
        count
    }
}

/// A frame around `body` as it is, untyped if `legacy`.
pub fn encode(kind: Kind, legacy: bool, body: &[u8]) -> Result<Vec<u8>, FrameError> {
    let mut frame = begin(kind, legacy);
    frame.extend_from_slice(body);
    finish(frame)
}

/// A frame around `message` as JSON. Ends with a line feed, as Mooncake's own do.
pub fn encode_message<T: Serialize>(
    kind: Kind,
    legacy: bool,
    message: &T,
) -> Result<Vec<u8>, FrameError> {
    let mut frame = begin(kind, legacy);
    serde_json::to_writer(&mut frame, message).map_err(|error| body_error(&error))?;
    frame.push(b'\n');
    finish(frame)
}

/// `text` as `T`, if it is a JSON object. The check matters: serde would also read a struct from
/// an array, which no Mooncake sends.
pub fn parse_object<T: DeserializeOwned>(text: &[u8]) -> Result<T, FrameError> {
    match text.iter().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'{') => serde_json::from_slice(text).map_err(|error| body_error(&error)),
        _ => Err(FrameError::Body("it does not start with `{`".to_owned())),
    }
}

fn begin(kind: Kind, legacy: bool) -> Vec<u8> {
    let mut frame = vec![0; LENGTH_BYTES];
    if !legacy {
        frame.push(kind as u8);
    }
    frame
}

fn finish(mut frame: Vec<u8>) -> Result<Vec<u8>, FrameError> {
    let length = (frame.len() - LENGTH_BYTES) as u64;
    checked_length(length)?;
    classify(frame[LENGTH_BYTES])?;
    frame[..LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
    Ok(frame)
}

fn checked_length(claimed: u64) -> Result<usize, FrameError> {
    match usize::try_from(claimed) {
        Ok(0) => Err(FrameError::Empty),
        Ok(length) if length <= CONTROL_FRAME_MAX_BYTES => Ok(length),
        _ => Err(FrameError::TooLong { claimed }),
    }
}

/// What the first payload byte says: the kind, and whether the frame is legacy text.
fn classify(first: u8) -> Result<(Kind, bool), FrameError> {
    match Kind::from_byte(first) {
        Some(kind) => Ok((kind, false)),
        None if first <= 0x7f => Ok((Kind::Connection, true)),
        None => Err(FrameError::UnknownType(first)),
    }
}

fn body_error(error: &serde_json::Error) -> FrameError {
    FrameError::Body(error.to_string().chars().take(REASON_MAX_CHARS).collect())
}

/// A notification, and the answer to one: an empty `notify_msg` in the answer means rejected.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Notify {
    /// The sender's segment name; empty in the answer.
    pub name: String,
    /// The text.
    pub notify_msg: String,
}

/// Any object whose content nobody looks at, still checked to be well-formed; as a message the
/// question "are you alive?".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnyObject {}

/// The answer to a probe; only its arrival matters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProbeReply {
    /// Always the same word.
    pub status: &'static str,
}

impl ProbeReply {
    /// The one answer there is.
    pub fn success() -> Self {
        Self { status: "success" }
    }
}

/// What both sides' logs call a question between kvrail peers: the asker's process and a number of
/// its own, as in `18c2a7b3f0e1d4a5-7`; empty where the asker gives none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestId(String);

impl RequestId {
    /// The `number`th question of a process.
    pub fn new(incarnation: u64, number: u64) -> Self {
        Self(format!("{incarnation:x}-{number}"))
    }
}

impl std::fmt::Display for RequestId {
    /// No longer than an honest one, whatever a peer sends, and on one line.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let honest = |c: &char| c.is_ascii_hexdigit() || *c == '-';
        self.0.chars().filter(honest).take(REQUEST_ID_MAX_CHARS).try_for_each(|c| write!(f, "{c}"))
    }
}

/// Asks an engine to end the data connection that the sender calls so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndLane {
    /// The process that is meant: another one may have got its name.
    pub incarnation: u64,
    /// 32 hexadecimal digits.
    pub lane: String,
    /// By which both sides' logs call the question.
    #[serde(default)]
    pub request: RequestId,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneEnded {
    /// Whether nothing is stored from that connection any more.
    pub quiet: bool,
}

/// Asks for a pass for the data connection that the sender calls so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskPass {
    /// The process that is meant.
    pub incarnation: u64,
    /// 32 hexadecimal digits.
    pub lane: String,
    /// What kind of connection it is.
    #[serde(default)]
    pub entrance: Entrance,
}

/// The answer.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PassGiven {
    /// 64 hexadecimal digits; empty where there is none.
    pub pass: String,
    /// Whether there may be one later.
    pub is_busy: bool,
    /// What encrypts the connection: 176 hexadecimal digits, empty where nothing does.
    #[serde(default)]
    pub seal: Zeroizing<String>,
    /// Whether TCP connections to this engine have to be encrypted.
    #[serde(default)]
    pub encrypts_tcp: bool,
}

/// Logs are no place for a pass.
impl fmt::Debug for PassGiven {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PassGiven").field("is_busy", &self.is_busy).finish_non_exhaustive()
    }
}
