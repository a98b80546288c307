//! What a block contains: every eight bytes say whose they are, which block, which tenancy, and
//! where in the block. So a wrong byte tells where it came from.

use std::fmt;

const OWNER_BITS: u32 = 6;
const BLOCK_BITS: u32 = 10;
const GENERATION_BITS: u32 = 28;
const OFFSET_BITS: u32 = 20;
/// Of the generation's bits, those that say which process of that name it was.
const INCARNATION_SHIFT: u32 = 20;

/// A block's tenancy: the word at its start; the offset, in words, is added to it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Tenancy(u64);

/// Who writes patterns.
#[derive(Clone, Copy)]
pub struct Author {
    owner: u8,
    incarnation: u8,
}

impl Author {
    pub fn new(owner: u8, incarnation: u8) -> Self {
        Self { owner, incarnation }
    }

    /// The tenancy of a block, counted from 0 in this process.
    pub fn tenancy(self, block: usize, generation: u32) -> Tenancy {
        let own = 1 << INCARNATION_SHIFT;
        let generation = u64::from(self.incarnation) * own + u64::from(generation) % own;
        let block = block as u64 % (1 << BLOCK_BITS);
        let word = (u64::from(self.owner) << BLOCK_BITS | block) << GENERATION_BITS | generation;
        Tenancy(word << OFFSET_BITS)
    }
}

impl Tenancy {
    pub fn from_word(word: u64) -> Self {
        Self(word & !((1 << OFFSET_BITS) - 1))
    }

    pub fn word(self) -> u64 {
        self.0
    }

    pub fn fill(self, bytes: &mut [u8]) {
        let (words, _) = bytes.as_chunks_mut::<8>();
        words.iter_mut().zip(self.0..).for_each(|(at, word)| *at = word.to_le_bytes());
    }

    /// The first word that is not this tenancy's.
    pub fn find_foreign(self, bytes: &[u8]) -> Option<Foreign> {
        let (words, _) = bytes.as_chunks::<8>();
        let mut pairs = words.iter().zip(self.0..).enumerate();
        pairs.find(|(_, (word, want))| u64::from_le_bytes(**word) != *want).map(
            |(at, (word, _))| Foreign {
                offset: at * 8,
                word: u64::from_le_bytes(*word),
                instead: [self, self],
            },
        )
    }

    /// The first word of which a byte is neither of this tenancy nor of the other.
    pub fn find_foreign_or(self, other: Self, bytes: &[u8]) -> Option<Foreign> {
        let (words, _) = bytes.as_chunks::<8>();
        let mixed = |word: &[u8; 8], at: u64| {
            let (one, two) = ((self.0 + at).to_le_bytes(), (other.0 + at).to_le_bytes());
            (0..8).all(|byte| word[byte] == one[byte] || word[byte] == two[byte])
        };
        let at = words.iter().zip(0..).position(|(word, at)| !mixed(word, at))?;
        let word = u64::from_le_bytes(words[at]);
        Some(Foreign { offset: at * 8, word, instead: [self, other] })
    }
}

impl fmt::Display for Tenancy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |shift: u32, bits: u32| self.0 >> shift & ((1 << bits) - 1);
        let generation = part(OFFSET_BITS, GENERATION_BITS);
        write!(
            f,
            "agent {} block {} generation {}.{}",
            part(OFFSET_BITS + GENERATION_BITS + BLOCK_BITS, OWNER_BITS),
            part(OFFSET_BITS + GENERATION_BITS, BLOCK_BITS),
            generation >> INCARNATION_SHIFT,
            generation & ((1 << INCARNATION_SHIFT) - 1)
        )
    }
}

/// A word where it should not be.
pub struct Foreign {
    offset: usize,
    word: u64,
    instead: [Tenancy; 2],
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = (self.word & ((1 << OFFSET_BITS) - 1)) * 8;
        let found = Tenancy::from_word(self.word);
        let [one, two] = self.instead;
        write!(f, "at byte {}: {found} byte {place} instead of {one}", self.offset)?;
        if one != two { write!(f, " or {two}") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(tenancy: Tenancy) -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        tenancy.fill(&mut bytes);
        bytes
    }

    #[test]
    fn a_word_of_another_tenancy_is_found_and_named() {
        let author = Author::new(3, 1);
        let (own, other) = (author.tenancy(7, 40), author.tenancy(7, 41));
        let mut bytes = filled(own);
        assert!(own.find_foreign(&bytes).is_none());
        bytes[64..72].copy_from_slice(&filled(other)[64..72]);
        let found = own.find_foreign(&bytes).unwrap().to_string();
        assert_eq!(
            found,
            "at byte 64: agent 3 block 7 generation 1.41 byte 64 instead of agent 3 block 7 \
             generation 1.40"
        );
        assert!(own.find_foreign_or(other, &bytes).is_none());
        // The right tenancy, the wrong place.
        bytes.copy_within(128..136, 256);
        assert!(own.find_foreign_or(other, &bytes).is_some());
    }

    #[test]
    fn a_word_may_be_torn_between_two_tenancies_but_not_three() {
        let author = Author::new(1, 0);
        let [a, b, c] = [1, 0x0202, 0x0303_03].map(|generation| author.tenancy(0, generation));
        let mut bytes = filled(a);
        bytes[8..12].copy_from_slice(&filled(b)[8..12]);
        assert!(a.find_foreign_or(b, &bytes).is_none());
        assert!(a.find_foreign(&bytes).is_some());
        bytes[8..16].copy_from_slice(&filled(c)[8..16]);
        assert!(a.find_foreign_or(b, &bytes).is_some());
    }
}
