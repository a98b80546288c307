//! What names a grant to a peer: a small value for the application's own messages, as bytes or as
//! text.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Which grant is meant, and the proof that its owner told us.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Key {
    pub(crate) slot: u32,
    /// Random, never 0, of one grant only.
    pub(crate) word: u64,
}

impl Key {
    /// As one number.
    #[cfg(feature = "rdma")]
    pub(crate) fn to_raw(self) -> u128 {
        u128::from(self.slot) << 64 | u128::from(self.word)
    }

    /// From what [`Key::to_raw`] made; of any other number a key that holds nothing.
    #[cfg(feature = "rdma")]
    pub(crate) fn from_raw(raw: u128) -> Self {
        Self { slot: (raw >> 64) as u32, word: raw as u64 }
    }
}

impl fmt::Debug for Key {
    /// Without the word: whoever reads a log is not granted anything.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.slot)
    }
}

/// Bytes of a [`Reference`].
pub const REFERENCE_BYTES: usize = 36;

/// A granted range, as its owner tells peers of it: [`REFERENCE_BYTES`] bytes
/// ([`Reference::to_bytes`]), or twice as many hexadecimal digits ([`fmt::Display`], [`FromStr`],
/// serde). Whoever has it may use the grant, unless that names a holder; so it goes to those who
/// are meant only.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Reference {
    pub(crate) addr: u64,
    pub(crate) len: u64,
    pub(crate) generation: u64,
    pub(crate) key: Key,
}

impl Reference {
    /// The first byte's address at the owner.
    pub fn addr(&self) -> u64 {
        self.addr
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Never true of one that an owner made.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Which tenancy of its block it is of ([`crate::Block::generation`]); 0 where it is of a
    /// region. For people to read: the key decides.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// As bytes, little-endian: address, length and generation of 8 each, and the key of 12.
    pub fn to_bytes(&self) -> [u8; REFERENCE_BYTES] {
        let mut bytes = [0; REFERENCE_BYTES];
        for (at, word) in [self.addr, self.len, self.generation, self.key.word].iter().enumerate() {
            bytes[at * 8..][..8].copy_from_slice(&word.to_le_bytes());
        }
        bytes[32..].copy_from_slice(&self.key.slot.to_le_bytes());
        bytes
    }

    /// From what [`Reference::to_bytes`] made. Any bytes make a reference; the owner knows whether
    /// it is one of its own.
    pub fn from_bytes(bytes: &[u8; REFERENCE_BYTES]) -> Self {
        let (words, rest) = bytes.as_chunks::<8>();
        let [addr, len, generation, word] = std::array::from_fn(|at| u64::from_le_bytes(words[at]));
        let mut slot = [0; 4];
        slot.copy_from_slice(rest);
        Self { addr, len, generation, key: Key { slot: u32::from_le_bytes(slot), word } }
    }

    /// Whether these bytes are inside.
    pub(crate) fn holds(&self, addr: u64, len: u64) -> bool {
        let end = addr.checked_sub(self.addr).and_then(|offset| offset.checked_add(len));
        end.is_some_and(|end| end <= self.len)
    }

    /// What a request under it asks for, in words, for messages.
    pub(crate) fn what(&self) -> String {
        match self.generation {
            0 => format!("the grant of {} bytes at {:#x}", self.len, self.addr),
            number => format!("generation {number} of the block at {:#x}", self.addr),
        }
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reference({}, {:?})", self.what(), self.key)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Reference {
    type Err = Error;

    /// # Errors
    /// Refused: it is no text that a reference has.
    fn from_str(text: &str) -> Result<Self> {
        let refused = || Error::refused("a reference has 72 hexadecimal digits");
        let digit = |digit: u8| (digit as char).to_digit(16).ok_or_else(refused);
        let mut bytes = [0; REFERENCE_BYTES];
        let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return Err(refused()) };
        if pairs.len() != bytes.len() {
            return Err(refused());
        }
        for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
            *byte = (digit(*high)? << 4 | digit(*low)?) as u8;
        }
        Ok(Self::from_bytes(&bytes))
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> Self {
        reference.to_string()
    }
}

impl TryFrom<String> for Reference {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(addr: u64, len: u64, generation: u64, slot: u32, word: u64) {
            let reference = Reference { addr, len, generation, key: Key { slot, word } };
            prop_assert_eq!(Reference::from_bytes(&reference.to_bytes()), reference);
            prop_assert_eq!(reference.to_string().parse::<Reference>().unwrap(), reference);
            let json = serde_json::to_string(&reference).unwrap();
            prop_assert_eq!(serde_json::from_str::<Reference>(&json).unwrap(), reference);
            let other = Reference { key: Key { slot, word: !word }, ..reference };
            let debug = |reference: &Reference| format!("{reference:?}");
            prop_assert_eq!(debug(&reference), debug(&other), "a log tells no word");
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[0-9a-fA-Fxg]{0,80}|.{0,80}") {
            match text.parse::<Reference>() {
                Ok(reference) => prop_assert_eq!(reference.to_string(), text.to_lowercase()),
                Err(error) => prop_assert_eq!(error.kind(), crate::ErrorKind::Refused),
            }
        }
    }
}
