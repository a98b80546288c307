//! Bytes that name their origin: every word of a block says whose fill it is and where in it, so
//! that a byte in the wrong place tells where it came from.

use std::fmt;

/// Bytes of a pattern's word; ranges of requests begin and end between words.
pub(super) const WORD: usize = 8;

/// One filling of a block by its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fill {
    pub(super) node: u8,
    pub(super) block: u8,
    pub(super) generation: u32,
}

/// Odd, so that multiplying by it can be undone.
const MIX: u64 = 0x9E37_79B9_7F4A_7C15;

impl Fill {
    /// A block of `len` bytes.
    pub(super) fn bytes(self, len: usize) -> Vec<u8> {
        (0..len / WORD).flat_map(|word| scramble(self.word(word as u16)).to_le_bytes()).collect()
    }

    fn word(self, offset: u16) -> u64 {
        u64::from(self.node) << 56
            | u64::from(self.block) << 48
            | u64::from(self.generation) << 16
            | u64::from(offset)
    }
}

/// Whose word this is.
pub(super) struct Origin(pub(super) [u8; WORD]);

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = unscramble(u64::from_le_bytes(self.0));
        let (node, block) = (word >> 56, word >> 48 & 0xff);
        let (generation, offset) = (word >> 16 & 0xffff_ffff, word & 0xffff);
        write!(f, "block {block} of node {node} in its fill {generation}, word {offset}")
    }
}

/// Two fills differ in about every byte of every word.
fn scramble(word: u64) -> u64 {
    let word = word.wrapping_mul(MIX);
    (word ^ word >> 32).wrapping_mul(MIX)
}

fn unscramble(word: u64) -> u64 {
    let word = word.wrapping_mul(inverse(MIX));
    (word ^ word >> 32).wrapping_mul(inverse(MIX))
}

/// By Newton's steps, each of which doubles the bits that are right.
fn inverse(odd: u64) -> u64 {
    (0..5).fold(odd, |x, _| x.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(x))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_names_its_origin() {
        let bytes = Fill { node: 3, block: 250, generation: 70_000 }.bytes(4_096);
        let word: [u8; WORD] = bytes[100 * WORD..][..WORD].try_into().unwrap();
        let text = Origin(word).to_string();
        assert_eq!(text, "block 250 of node 3 in its fill 70000, word 100");
        let next = Fill { node: 3, block: 250, generation: 70_001 }.bytes(4_096);
        let same = bytes.iter().zip(&next).filter(|(a, b)| a == b).count();
        assert!(same < 4_096 / 50, "{same} bytes are the same in both fills");
    }
}
