//! What every byte of a process may be: its owner's, or what a living request may bring there.

use kvrail_reactors::region::Slice;

use crate::sim::pattern::{Fill, Origin, WORD};

/// Blocks of a process, and bytes of one: several packets.
pub(super) const BLOCKS: usize = 10;
pub(super) const BLOCK_BYTES: usize = 512;

/// A process's blocks, then their generation words.
pub(super) const MEMORY_BYTES: usize = BLOCKS * (BLOCK_BYTES + WORD);

pub(super) struct Memory {
    pub(super) slice: Slice,
    node: u8,
    pub(super) blocks: Vec<Block>,
    seen: Vec<u8>,
}

pub(super) struct Block {
    pub(super) is: Is,
    /// The owner's last bytes.
    pub(super) shadow: Vec<u8>,
    pub(super) fill: u32,
    /// What peers are told of, and re-read.
    pub(super) generation: u64,
}

/// What a block is used for, by the order of that number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Is {
    Idle,
    /// Read: nobody but the owner changes it.
    Source(u64),
    /// Written by a peer: each byte is the old one or the new one.
    Incoming(u64, Vec<u8>),
    /// Written by a read of the process's own.
    Scratch(u64),
    /// As [`Is::Incoming`], by an initiator that nobody could fence.
    Doubtful(u64, Vec<u8>),
}

impl Memory {
    pub(super) fn new(node: usize, slice: Slice, incarnation: u64) -> Self {
        let block = |_| Block {
            is: Is::Idle,
            shadow: Vec::new(),
            fill: incarnation as u32 * 1_000,
            generation: 1,
        };
        let blocks = (0..BLOCKS).map(block).collect();
        let mut memory = Self { slice, node: node as u8, blocks, seen: vec![0; MEMORY_BYTES] };
        (0..BLOCKS).for_each(|block| memory.refill(block));
        memory
    }

    pub(super) fn part(&self, block: usize) -> Slice {
        self.slice.part(block * BLOCK_BYTES, BLOCK_BYTES).expect("a block lies in its memory")
    }

    /// Where a block's generation word is.
    pub(super) fn word_offset(block: usize) -> usize {
        BLOCKS * BLOCK_BYTES + block * WORD
    }

    /// The owner uses a block for something else: a generation first, then other bytes.
    pub(super) fn refill(&mut self, block: usize) {
        let known = &mut self.blocks[block];
        known.fill += 1;
        known.generation += 1;
        let fill = Fill { node: self.node, block: block as u8, generation: known.fill };
        known.shadow = fill.bytes(BLOCK_BYTES);
        let stored = self
            .slice
            .write(Self::word_offset(block), &known.generation.to_le_bytes())
            .and_then(|()| self.slice.write(block * BLOCK_BYTES, &known.shadow));
        assert_eq!(stored, Ok(()), "a block lies in its memory");
    }

    /// Nobody touches a block any more: its owner uses it again at once.
    pub(super) fn reuse(&mut self, block: usize) {
        self.blocks[block].is = Is::Idle;
        self.refill(block);
    }

    pub(super) fn bytes(&self, block: usize) -> Vec<u8> {
        let mut bytes = vec![0; BLOCK_BYTES];
        self.part(block).read(0, &mut bytes).expect("it is as long");
        bytes
    }

    /// Whether a byte is none that its block may have.
    ///
    /// # Errors
    /// Where it is, and where it came from.
    pub(super) fn check(&mut self) -> Result<(), String> {
        self.slice.read(0, &mut self.seen).expect("it is as long");
        for (number, block) in self.blocks.iter().enumerate() {
            let seen = &self.seen[number * BLOCK_BYTES..][..BLOCK_BYTES];
            let wrong = match &block.is {
                Is::Scratch(_) => None,
                Is::Idle | Is::Source(_) => first(seen, |at, byte| block.shadow[at] == byte),
                Is::Incoming(_, new) | Is::Doubtful(_, new) => {
                    first(seen, |at, byte| block.shadow[at] == byte || new[at] == byte)
                }
            };
            if let Some(at) = wrong {
                let word = at / WORD * WORD;
                let origin = Origin(seen[word..][..WORD].try_into().expect("a word"));
                let use_ = block.is.name();
                return Err(format!("byte {at} of block {number}, {use_}, is of {origin}"));
            }
        }
        Ok(())
    }
}

impl Is {
    fn name(&self) -> String {
        match self {
            Self::Idle => "which nobody may write".to_owned(),
            Self::Source(order) => format!("which order {order} only reads"),
            Self::Incoming(order, _) => format!("which order {order} writes"),
            Self::Scratch(order) => format!("which order {order} reads into"),
            Self::Doubtful(..) => "in doubt".to_owned(),
        }
    }
}

fn first(seen: &[u8], fits: impl Fn(usize, u8) -> bool) -> Option<usize> {
    seen.iter().enumerate().position(|(at, byte)| !fits(at, *byte))
}
