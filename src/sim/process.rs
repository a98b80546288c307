//! A node with its memory as the world accounts for it: which blocks are in whose use.

use std::ops::Range;
use std::pin::Pin;

use kvrail_reactors::region::{AccessError, Slice};

use super::hearing::Hearing;
use super::node::{Ground, Node};
use super::oracle::Memory;
use super::pattern::Fill;
use super::tenancy::Tenancy;
use crate::memory::{Access, Location, Region};
use crate::{Peer, Result};

/// Blocks of a region.
pub(super) const BLOCKS: usize = 6;

/// One process and what the world knows of it.
pub(super) struct Process {
    pub(super) node: Node,
    pub(super) spaces: Vec<Space>,
    /// What it has granted, by number; some of it is over.
    pub(super) tenancies: Vec<Tenancy>,
    pub(super) hearing: Hearing,
    /// Its open peers, by number.
    pub(super) peers: Vec<Option<(u64, Peer)>>,
    /// A region that is being taken back.
    pub(super) unregistering: Option<(usize, Work)>,
    /// A peer that is being closed.
    pub(super) closing: Option<Closing>,
}

/// What an engine is waited for.
pub(super) type Work = Pin<Box<dyn Future<Output = Result<()>>>>;

/// What was under way to a peer when it was closed ends before that does.
pub(super) struct Closing {
    /// Its node and incarnation.
    pub(super) peer: (usize, u64),
    /// Transfers with smaller numbers were under way.
    pub(super) before: usize,
    pub(super) work: Work,
}

/// A region cut into blocks.
pub(super) struct Space {
    pub(super) memory: Memory,
    pub(super) blocks: Vec<Use>,
    pub(super) state: Registration,
    generation: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Registration {
    Open,
    Closing,
    Gone,
}

/// Who uses a block, so that only one request writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    Free,
    Readers(u32),
    /// One request has it; nothing proves its end where that never comes.
    Held,
}

/// A block of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) node: usize,
    pub(super) incarnation: u64,
    pub(super) space: usize,
    pub(super) block: usize,
}

impl Process {
    pub(super) fn start(
        ground: &Ground,
        number: usize,
        nodes: usize,
        incarnation: u64,
        block_bytes: usize,
    ) -> Self {
        ground.succeed(number);
        let node = Node::start(ground, number, incarnation);
        let hearing = Hearing::new(&node.engine);
        let (spaces, tenancies, peers) = (Vec::new(), Vec::new(), vec![None; nodes]);
        let (unregistering, closing) = (None, None);
        let mut process = Self { node, spaces, tenancies, hearing, peers, unregistering, closing };
        for _ in 0..2 {
            process.register(ground, number, block_bytes);
        }
        process
    }

    /// Another region.
    pub(super) fn register(&mut self, ground: &Ground, number: usize, block_bytes: usize) {
        let len = BLOCKS * block_bytes;
        let memory = ground.arena.memory(number, len);
        let region = Region::new(memory, Access::READ_WRITE, Location::Cpu(None));
        let region = self.node.engine.insert(region).expect("no region overlaps another");
        let memory = Memory::new(region);
        let blocks = vec![Use::Free; BLOCKS];
        let state = Registration::Open;
        let mut space = Space { memory, blocks, state, generation: 0 };
        (0..BLOCKS).for_each(|block| space.fill(number, self.spaces.len(), block));
        self.spaces.push(space);
    }

    /// What is wrong with it.
    pub(super) fn check(&mut self) -> Result<(), String> {
        if let Some(panic) = self.node.panic() {
            return Err(format!("a shard panicked: {panic}"));
        }
        for space in &mut self.spaces {
            space.memory.check()?;
        }
        self.hearing.listen(&self.node.engine)?;
        self.hearing.check()
    }

    pub(super) fn pick(
        &self,
        rng: &mut fastrand::Rng,
        node: usize,
        fits: impl Fn(Use) -> bool,
    ) -> Option<Block> {
        let open = self.spaces.iter().enumerate();
        let open = open.filter(|(_, space)| space.state == Registration::Open);
        let blocks = open.flat_map(|(number, space)| {
            let fits = space.blocks.iter().enumerate().filter(|(_, held)| fits(**held));
            fits.map(move |(block, _)| (number, block))
        });
        let (space, block) = rng.choice(blocks.collect::<Vec<_>>())?;
        Some(Block { node, incarnation: self.node.incarnation, space, block })
    }

    pub(super) fn held(&self, block: Block) -> Use {
        self.spaces[block.space].blocks[block.block]
    }

    pub(super) fn take(&mut self, block: Block, held: Use) {
        self.spaces[block.space].blocks[block.block] = held;
    }

    /// One user less.
    pub(super) fn release(&mut self, block: Block) {
        if block.incarnation != self.node.incarnation {
            return;
        }
        let held = &mut self.spaces[block.space].blocks[block.block];
        *held = match *held {
            Use::Readers(readers) if readers > 1 => Use::Readers(readers - 1),
            _ => Use::Free,
        };
    }

    /// A block is quiet: its owner writes into it at once, and nobody else may from here on.
    pub(super) fn reuse(&mut self, block: Block, writer: usize) {
        if block.incarnation != self.node.incarnation {
            return;
        }
        self.rewrite(block, &[writer]);
        self.release(block);
    }

    /// The owner writes into a block, to which these requests bring nothing more.
    pub(super) fn rewrite(&mut self, block: Block, quiet: &[usize]) {
        let space = &mut self.spaces[block.space];
        quiet.iter().for_each(|writer| space.memory.forbid(*writer));
        space.fill(block.node, block.space, block.block);
    }

    /// Whether these bytes are in a block.
    pub(super) fn has(&self, block: Block, at: usize, bytes: &[u8]) -> bool {
        if block.incarnation != self.node.incarnation {
            return true;
        }
        let space = &self.spaces[block.space];
        if space.state == Registration::Gone {
            return true;
        }
        let start = space.range(block.block).start + at;
        let slice = Slice::new(space.memory.region.memory().clone(), start, bytes.len());
        let mut there = vec![0; bytes.len()];
        let read = slice.map_err(AccessError::from).and_then(|slice| slice.read(0, &mut there));
        read.is_ok() && there == bytes
    }
}

impl Space {
    /// Where a block lies.
    pub(super) fn range(&self, block: usize) -> Range<usize> {
        let bytes = self.memory.region.len() / BLOCKS;
        block * bytes..(block + 1) * bytes
    }

    /// The owner writes into a block.
    pub(super) fn fill(&mut self, node: usize, space: usize, block: usize) {
        self.generation += 1;
        let place = (space * BLOCKS + block) as u8;
        let fill = Fill { node: node as u8, block: place, generation: self.generation };
        let range = self.range(block);
        self.memory.fill(range.start, fill, range.len());
    }

    /// Its region is back with the owner, who writes all over it.
    pub(super) fn reclaim(&mut self, node: usize, space: usize) {
        self.state = Registration::Gone;
        self.memory.forbid_all();
        (0..BLOCKS).for_each(|block| self.fill(node, space, block));
    }
}
