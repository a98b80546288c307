//! A node with its memory as the world accounts for it: which blocks are in whose use.

use std::ops::Range;
use std::pin::Pin;

use super::node::{Ground, Node};
use super::oracle::Memory;
use super::pattern::Fill;
use crate::counter::Counter;
use crate::memory::{Access, Location, Region};
use crate::{Peer, Result};

/// Blocks of a region.
pub(super) const BLOCKS: usize = 6;

/// The counter that every process has open.
pub(super) const COUNTER: u64 = 1;

/// One process and what the world knows of it.
pub(super) struct Process {
    pub(super) node: Node,
    pub(super) spaces: Vec<Space>,
    pub(super) counter: Counter,
    /// Steps of the counter that were confirmed, and those that may or may not have been made.
    pub(super) certain: u64,
    pub(super) possible: u64,
    /// Its open peers, by number.
    pub(super) peers: Vec<Option<(u64, Peer)>>,
    /// A region that is being taken back.
    pub(super) unregistering: Option<(usize, Unregistering)>,
}

type Unregistering = Pin<Box<dyn Future<Output = Result<()>>>>;

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
        let node = Node::start(ground, number, incarnation);
        let counter = node.engine.counter(COUNTER).expect("the first counter");
        let (spaces, peers) = (Vec::new(), vec![None; nodes]);
        let (certain, possible, unregistering) = (0, 0, None);
        let mut process = Self { node, spaces, counter, certain, possible, peers, unregistering };
        for _ in 0..2 {
            process.register(ground, number, block_bytes);
        }
        process
    }

    /// Another region.
    pub(super) fn register(&mut self, ground: &Ground, number: usize, block_bytes: usize) {
        let len = BLOCKS * block_bytes;
        let memory = ground.memory(len);
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
        let value = self.counter.value();
        let most = self.certain + self.possible;
        if value < self.certain || value > most {
            return Err(format!(
                "the counter is {value}; {} steps were confirmed and {most} were asked for",
                self.certain
            ));
        }
        Ok(())
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
