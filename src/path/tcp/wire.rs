//! Mooncake's TCP framing: the 24-byte request header, the 8-byte status of version 2, and what
//! only kvrail peers send each other: events, and requests under a grant. Pure.
//!
//! A request under a grant has its key behind the header. A WRITE is answered by a status; a READ
//! by as many bytes as it asked for and a status behind them, so that a grant which is taken back
//! in mid-send is told. Either goes on with the connection, whatever the status.

use std::hash::{BuildHasher, RandomState};

use crate::auth::{PASS_BYTES, Pass};
use crate::limits::NAME_MAX_BYTES;
use crate::memory::Operation;
use crate::memory::grant::Key;

/// Request header: size u64, address u64, opcode u8, 7 bytes of padding; little-endian.
pub(crate) const HEADER_BYTES: usize = 24;

/// Status frame of version 2: magic and code in one u64, little-endian.
pub(crate) const STATUS_BYTES: usize = 8;

/// Upper half of a status frame: "MCTV".
const STATUS_MAGIC: u64 = 0x4D43_5456;

/// The status that only kvrail's events are answered with.
pub(crate) const BUSY_CODE: u32 = 2;

/// The status that only requests under a grant are answered with.
pub(crate) const STALE_CODE: u32 = 3;

/// A grant's key behind a header: word u64, slot u32; little-endian.
pub(crate) const KEY_BYTES: usize = 12;

/// Bit 7 of the opcode: the sender wants statuses (version 2).
const VERSION_2: u8 = 0x80;

const OPCODE_READ: u8 = 0;
const OPCODE_WRITE: u8 = 1;
/// An event for counters and notifications; sent only to peers that publish kvrail's extras.
const OPCODE_EVENT: u8 = 0x40;
/// The name of the connection, its first frame; to peers that publish kvrail's extras. In place
/// of an address stands the incarnation that is meant.
const OPCODE_NAME: u8 = 0x42;
/// In place of a name's frame where peers prove who they are; addressed as it is.
const OPCODE_PASS: u8 = 0x46;

/// Body of a naming frame: so much of the connection's name, then the engine's.
pub(crate) const NAME_BYTES: usize = 16;

/// Longest body of a naming frame.
pub(crate) const NAMES_MAX_BYTES: usize = NAME_BYTES + NAME_MAX_BYTES;

/// Body of a pass's frame: the connection's name, then the pass, which says whose it is.
pub(crate) const PASS_FRAME_BYTES: usize = NAME_BYTES + PASS_BYTES;

/// What a client calls a connection, so that it can ask by another way for its end. Nobody who
/// wasn't told guesses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct LaneName(pub(crate) u128);

impl LaneName {
    /// A name that no other connection has.
    pub(crate) fn new() -> Self {
        // The keys are random and differ from call to call.
        let half = || u128::from(RandomState::new().hash_one(0u8));
        Self(half() << 64 | half())
    }

    pub(crate) fn to_bytes(self) -> [u8; NAME_BYTES] {
        self.0.to_le_bytes()
    }

    /// What logs call it: half of the name, which ends no connection.
    pub(crate) fn label(self) -> u64 {
        (self.0 >> u64::BITS) as u64
    }

    /// The connection's name and the engine's; none where nobody has such a name.
    pub(crate) fn split(body: &[u8]) -> Option<(Self, &str)> {
        let (name, engine) = body.split_first_chunk()?;
        Some((Self(u128::from_le_bytes(*name)), std::str::from_utf8(engine).ok()?))
    }

    /// The connection's name and the pass that was given for it.
    pub(crate) fn with_pass(body: &[u8]) -> Option<(Self, Pass)> {
        let (name, pass) = body.split_first_chunk()?;
        Some((Self(u128::from_le_bytes(*name)), Pass(pass.try_into().ok()?)))
    }
}

/// The frame that shows a pass to the process of this incarnation.
pub(crate) fn pass_frame(lane: LaneName, incarnation: u64, pass: &Pass) -> Vec<u8> {
    let (len, verb) = (PASS_FRAME_BYTES as u64, Verb::Pass);
    let header = Header { len, addr: incarnation, verb, version: Version::V2 };
    [&header.encode()[..], &lane.to_bytes(), &pass.0].concat()
}

/// READ and WRITE under a grant; as events.
const OPCODE_GRANTED_READ: u8 = 0x44;
const OPCODE_GRANTED_WRITE: u8 = 0x45;

/// Which of the two framings a request uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    /// No statuses: a refused request ends the connection without a word.
    V1,
    /// Every request is answered by a status.
    V2,
}

impl std::fmt::Display for LaneName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl std::str::FromStr for LaneName {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u128::from_str_radix(text, 16).map(Self)
    }
}

/// What a header asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Transfer(Operation),
    /// Under the grant whose key follows.
    Granted(Operation),
    Event,
    Name,
    Pass,
}

impl Verb {
    /// Whether bytes are asked for; behind such a header comes the next one.
    pub(crate) fn is_read(self) -> bool {
        matches!(self, Self::Transfer(Operation::Read) | Self::Granted(Operation::Read))
    }
}

/// A request header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) len: u64,
    pub(crate) addr: u64,
    pub(crate) verb: Verb,
    pub(crate) version: Version,
}

/// An opcode that nobody sends.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct UnknownOpcode(pub(crate) Version);

impl Header {
    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let opcode = match self.verb {
            Verb::Transfer(Operation::Read) => OPCODE_READ,
            Verb::Transfer(Operation::Write) => OPCODE_WRITE,
            Verb::Granted(Operation::Read) => OPCODE_GRANTED_READ,
            Verb::Granted(Operation::Write) => OPCODE_GRANTED_WRITE,
            Verb::Event => OPCODE_EVENT,
            Verb::Name => OPCODE_NAME,
            Verb::Pass => OPCODE_PASS,
        };
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&self.len.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.addr.to_le_bytes());
        bytes[16] = opcode | if self.version == Version::V2 { VERSION_2 } else { 0 };
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, UnknownOpcode> {
        let version = if bytes[16] & VERSION_2 == 0 { Version::V1 } else { Version::V2 };
        let verb = match bytes[16] & !VERSION_2 {
            OPCODE_READ => Verb::Transfer(Operation::Read),
            OPCODE_WRITE => Verb::Transfer(Operation::Write),
            OPCODE_EVENT if version == Version::V2 => Verb::Event,
            OPCODE_NAME if version == Version::V2 => Verb::Name,
            OPCODE_PASS if version == Version::V2 => Verb::Pass,
            OPCODE_GRANTED_READ if version == Version::V2 => Verb::Granted(Operation::Read),
            OPCODE_GRANTED_WRITE if version == Version::V2 => Verb::Granted(Operation::Write),
            _ => return Err(UnknownOpcode(version)),
        };
        Ok(Self { len: word(bytes, 0), addr: word(bytes, 8), verb, version })
    }
}

impl Key {
    pub(crate) fn encode(&self) -> [u8; KEY_BYTES] {
        let mut bytes = [0; KEY_BYTES];
        bytes[..8].copy_from_slice(&self.word.to_le_bytes());
        bytes[8..].copy_from_slice(&self.slot.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; KEY_BYTES]) -> Self {
        let slot = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
        Self { slot, word: word(bytes, 0) }
    }
}

/// How a version 2 request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Ok,
    /// The range isn't registered or not permitted; the server closes.
    Refused,
    /// An event that found its queue full; between kvrail peers only. The connection lives on.
    Busy,
    /// The grant does not hold, or not any more; between kvrail peers only. The connection lives
    /// on.
    Stale,
    /// A code we don't know: a failure.
    Other(u32),
}

/// A status frame without its magic: the peer does not speak version 2.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NotAStatus;

impl Status {
    pub(crate) fn encode(self) -> [u8; STATUS_BYTES] {
        let code = match self {
            Self::Ok => 0,
            Self::Refused => 1,
            Self::Busy => BUSY_CODE,
            Self::Stale => STALE_CODE,
            Self::Other(code) => code,
        };
        (STATUS_MAGIC << 32 | u64::from(code)).to_le_bytes()
    }

    pub(crate) fn decode(bytes: &[u8; STATUS_BYTES]) -> Result<Self, NotAStatus> {
        let word = u64::from_le_bytes(*bytes);
        if word >> 32 != STATUS_MAGIC {
            return Err(NotAStatus);
        }
        Ok(match word as u32 {
            0 => Self::Ok,
            1 => Self::Refused,
            BUSY_CODE => Self::Busy,
            STALE_CODE => Self::Stale,
            code => Self::Other(code),
        })
    }
}

/// What a kvrail peer says after its data has been stored: counter steps, a notification, or
/// both. Body: counter u64, amount u64, has-message u8, name length u16, name, message.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Event {
    /// Counter and by how much it advances.
    pub(crate) count: Option<(u64, u64)>,
    /// The sender's segment name and its message.
    pub(crate) message: Option<(String, Vec<u8>)>,
}

const EVENT_FIXED_BYTES: usize = 8 + 8 + 1 + 2;

/// An event body that doesn't parse.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BadEvent;

impl Event {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let (counter, amount) = self.count.unwrap_or_default();
        let (name, message) = match &self.message {
            Some((name, message)) => (name.as_str(), message.as_slice()),
            None => ("", &[][..]),
        };
        let name = &name.as_bytes()[..name.len().min(u16::MAX as usize)];
        let mut body = Vec::with_capacity(EVENT_FIXED_BYTES + name.len() + message.len());
        body.extend(counter.to_le_bytes());
        body.extend(amount.to_le_bytes());
        body.push(u8::from(self.message.is_some()));
        body.extend((name.len() as u16).to_le_bytes());
        body.extend(name);
        body.extend(message);
        body
    }

    pub(crate) fn decode(body: &[u8]) -> Result<Self, BadEvent> {
        let (fixed, rest) = body.split_at_checked(EVENT_FIXED_BYTES).ok_or(BadEvent)?;
        let (counter, amount) = (word(fixed, 0), word(fixed, 8));
        let name_len = usize::from(u16::from_le_bytes([fixed[17], fixed[18]]));
        let (name, message) = rest.split_at_checked(name_len).ok_or(BadEvent)?;
        let name = std::str::from_utf8(name).map_err(|_| BadEvent)?;
        let message = match fixed[16] {
            0 if rest.is_empty() => None,
            1 => Some((name.to_owned(), message.to_vec())),
            _ => return Err(BadEvent),
        };
        Ok(Self { count: (amount > 0).then_some((counter, amount)), message })
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn golden_bytes() {
        let header = Header {
            len: 0x10,
            addr: 0x7f00_0000_1000,
            verb: Verb::Transfer(Operation::Write),
            version: Version::V2,
        };
        let mut bytes = [0; HEADER_BYTES];
        bytes[0] = 0x10;
        bytes[8..16].copy_from_slice(&[0, 0x10, 0, 0, 0, 0x7f, 0, 0]);
        bytes[16] = 0x81;
        assert_eq!(header.encode(), bytes);
        assert_eq!(Status::Ok.encode(), [0, 0, 0, 0, 0x56, 0x54, 0x43, 0x4d]);
        assert_eq!(Status::Refused.encode(), [1, 0, 0, 0, 0x56, 0x54, 0x43, 0x4d]);
        assert_eq!(Status::decode(&[0; 8]), Err(NotAStatus));
    }

    #[test]
    fn padding_is_ignored_and_unknown_opcodes_are_not_guessed() {
        let mut bytes = [0xff; HEADER_BYTES];
        bytes[16] = 0;
        assert_eq!(Header::decode(&bytes).unwrap().verb, Verb::Transfer(Operation::Read));
        bytes[16] = 0x85;
        assert_eq!(Header::decode(&bytes), Err(UnknownOpcode(Version::V2)));
        bytes[16] = OPCODE_EVENT;
        assert_eq!(Header::decode(&bytes), Err(UnknownOpcode(Version::V1)));
    }

    proptest! {
        #[test]
        fn headers_round_trip(len: u64, addr: u64, write: bool, v2: bool) {
            let operation = if write { Operation::Write } else { Operation::Read };
            let version = if v2 { Version::V2 } else { Version::V1 };
            let header = Header { len, addr, verb: Verb::Transfer(operation), version };
            prop_assert_eq!(Header::decode(&header.encode()), Ok(header));
            let header = Header { verb: Verb::Granted(operation), ..header };
            let decoded = Header::decode(&header.encode());
            prop_assert_eq!(decoded, if v2 { Ok(header) } else { Err(UnknownOpcode(version)) });
        }

        #[test]
        fn keys_and_statuses_round_trip(slot: u32, word: u64, code: u32) {
            let key = Key { slot, word };
            prop_assert_eq!(Key::decode(&key.encode()), key);
            for status in [Status::Ok, Status::Refused, Status::Busy, Status::Stale] {
                prop_assert_eq!(Status::decode(&status.encode()), Ok(status));
            }
            let other = Status::Other(code.max(STALE_CODE + 1));
            prop_assert_eq!(Status::decode(&other.encode()), Ok(other));
        }

        #[test]
        fn events_round_trip(
            count in prop::option::of((any::<u64>(), 1u64..)),
            message in prop::option::of((".{0,20}", prop::collection::vec(any::<u8>(), 0..50))),
        ) {
            let event = Event { count, message };
            prop_assert_eq!(Event::decode(&event.encode()), Ok(event));
        }

        #[test]
        fn any_event_body_is_read_or_refused(body in prop::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(event) = Event::decode(&body) {
                prop_assert_eq!(Event::decode(&event.encode()), Ok(event));
            }
        }
    }
}
