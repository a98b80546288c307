//! The KV cache in memory that kvrail has registered: blocks from one pool, each cut into the
//! pieces that travel by themselves, and a lease on every piece that says who may touch it now.
//!
//! On the prefill's side a piece is leased exclusively while it is computed and shared from the
//! moment it is shipped; it can still be read then, but no more written. On the decode's side
//! a piece belongs to the peer that writes it until its counter says that it has arrived.

use kvrail::{
    Access, Block, BlockPool, Counter, Engine, ExclusiveLease, Location, Region, SharedLease,
};

use crate::cache::{KvCache, from_bytes, to_bytes};
use crate::llama::Failure;
use crate::options::Ship;
use crate::shape::Shape;
use crate::wait::wait;

/// Tokens that a process has room for, over all its requests: 47 MB for SmolLM2.
pub const POOL_TOKENS: usize = 2048;

/// A process's memory for KV caches.
pub struct Store {
    shape: Shape,
    ship: Ship,
    region: Region,
    pool: BlockPool,
}

impl Store {
    /// Allocates it; `access` is what peers may do.
    pub fn new(engine: &Engine, shape: Shape, ship: Ship, access: Access) -> Result<Self, Failure> {
        let blocks = shape.blocks(POOL_TOKENS.min(shape.context));
        let len = blocks * shape.block_bytes();
        let region = engine.allocate(len, Location::Cpu(None), access)?;
        let pool = BlockPool::new(region.clone(), shape.block_bytes())?;
        Ok(Self { shape, ship, region, pool })
    }

    /// The memory that all blocks are in.
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// Blocks for this many tokens, to be computed here.
    pub fn own(&self, tokens: usize) -> Result<PagedCache, Failure> {
        let mut cache = self.cache(tokens)?;
        for piece in 0..cache.slots.len() {
            cache.take_over(piece)?;
        }
        Ok(cache)
    }

    /// Blocks for this many tokens, the first `arriving` of which are written by a peer; each
    /// piece has arrived when its counter has come to their number.
    pub fn awaiting(
        &self,
        tokens: usize,
        arriving: usize,
        counters: Vec<Counter>,
    ) -> Result<PagedCache, Failure> {
        let mut cache = self.cache(tokens)?;
        cache.awaited = counters.into_iter().map(|counter| (counter, arriving as u64)).collect();
        Ok(cache)
    }

    /// The parts of a block that travel by themselves.
    pub fn pieces(&self) -> usize {
        self.ship.pieces(self.shape.layers)
    }

    fn cache(&self, tokens: usize) -> Result<PagedCache, Failure> {
        let count = self.shape.blocks(tokens);
        if count > self.pool.len() {
            let room = self.pool.len() * self.shape.block_tokens;
            return Err(format!("{tokens} tokens don't fit: the pool has room for {room}").into());
        }
        let blocks = (0..count).map(|_| self.pool.take()).collect::<Result<_, _>>()?;
        let slots = (0..self.pieces()).map(|_| (0..count).map(|_| Slot::default()).collect());
        Ok(PagedCache {
            shape: self.shape,
            ship: self.ship,
            region: self.region.clone(),
            slots: slots.collect(),
            blocks,
            awaited: Vec::new(),
            row: vec![0; self.shape.row_bytes()],
        })
    }
}

/// Who may touch a piece of a block.
#[derive(Default)]
enum Slot {
    /// Not we: a peer writes it.
    #[default]
    Away,
    /// We alone.
    Ours(ExclusiveLease),
    /// It is being read, by us and by transfers.
    Shipped(SharedLease),
}

/// One request's KV cache.
pub struct PagedCache {
    shape: Shape,
    ship: Ship,
    region: Region,
    /// By piece, then by position in `blocks`. Before them, so that leases go back first.
    slots: Vec<Vec<Slot>>,
    /// The block table: tokens `i * block_tokens ..` live in `blocks[i]`.
    blocks: Vec<Block>,
    /// By piece: its counter, and what it counts to.
    awaited: Vec<(Counter, u64)>,
    row: Vec<u8>,
}

impl PagedCache {
    /// Where each block is: what a peer needs to write them.
    pub fn addresses(&self) -> Vec<u64> {
        self.blocks.iter().map(Block::addr).collect()
    }

    pub fn piece_bytes(&self) -> usize {
        self.shape.block_bytes() / self.slots.len()
    }

    /// A piece of a block, to read from. Nobody writes it from here on.
    pub fn share(&mut self, piece: usize, block: usize) -> Result<SharedLease, Failure> {
        let slot = &mut self.slots[piece][block];
        let lease = match std::mem::take(slot) {
            Slot::Ours(lease) => lease.downgrade(),
            Slot::Shipped(lease) => lease,
            Slot::Away => return Err("a piece that a peer writes can't be shipped".into()),
        };
        *slot = Slot::Shipped(lease.clone());
        Ok(lease)
    }

    /// Waits until a piece of all blocks has arrived.
    pub fn arrived(&mut self, piece: usize) -> Result<(), Failure> {
        if let (Some((counter, target)), Some(Slot::Away)) =
            (self.awaited.get(piece), self.slots[piece].first())
        {
            wait(&format!("piece {piece} of the KV cache"), counter.reached(*target))?;
            self.take_over(piece)?;
        }
        Ok(())
    }

    /// Waits for all that a peer still has to write: the blocks can't go back to the pool before.
    pub fn all_arrived(&mut self) -> Result<(), Failure> {
        (0..self.slots.len()).try_for_each(|piece| self.arrived(piece))
    }

    /// Flips the lowest bit of a piece's first number.
    pub fn flip_bit(&mut self, piece: usize, block: usize) -> Result<(), Failure> {
        let Slot::Ours(lease) = &mut self.slots[piece][block] else {
            return Err("only a piece of our own can be damaged".into());
        };
        let mut byte = [0];
        lease.copy_out(0, &mut byte)?;
        Ok(lease.copy_in(0, &[byte[0] ^ 1])?)
    }

    fn take_over(&mut self, piece: usize) -> Result<(), Failure> {
        let bytes = self.piece_bytes();
        for (slot, block) in self.slots[piece].iter_mut().zip(&self.blocks) {
            let start = block.index() * self.shape.block_bytes() + piece * bytes;
            *slot = Slot::Ours(self.region.lease(start..start + bytes)?);
        }
        Ok(())
    }

    /// The piece that a layer is in, and where it starts in the block.
    fn piece_of(&self, layer: usize) -> (usize, usize) {
        let piece = self.ship.piece_of(layer);
        (piece, piece * self.piece_bytes())
    }
}

impl KvCache for PagedCache {
    fn capacity(&self) -> usize {
        self.blocks.len() * self.shape.block_tokens
    }

    fn put(&mut self, layer: usize, position: usize, k: &[u16], v: &[u16]) -> Result<(), Failure> {
        let shape = self.shape;
        let (block, token) = (position / shape.block_tokens, position % shape.block_tokens);
        let (piece, start) = self.piece_of(layer);
        self.arrived(piece)?;
        let Slot::Ours(lease) = &mut self.slots[piece][block] else {
            return Err(format!("layer {layer} of block {block} is not ours to write").into());
        };
        for (rows, numbers) in [(shape.keys(layer, token), k), (shape.values(layer, token), v)] {
            to_bytes(numbers, &mut self.row);
            lease.copy_in(rows.start - start, &self.row)?;
        }
        Ok(())
    }

    fn gather(
        &self,
        layer: usize,
        tokens: usize,
        k: &mut [u16],
        v: &mut [u16],
    ) -> Result<(), Failure> {
        let shape = self.shape;
        let (piece, start) = self.piece_of(layer);
        let (keys, values) = (shape.keys(layer, 0), shape.values(layer, 0));
        let (run, rows) = (shape.block_tokens * shape.row(), tokens * shape.row());
        let mut bytes = vec![0; keys.len()];
        let runs = k[..rows].chunks_mut(run).zip(v[..rows].chunks_mut(run));
        for (slot, (k, v)) in self.slots[piece].iter().zip(runs) {
            for (from, numbers) in [(keys.start, k), (values.start, v)] {
                let bytes = &mut bytes[..size_of_val(numbers)];
                match slot {
                    Slot::Ours(lease) => lease.copy_out(from - start, bytes)?,
                    Slot::Shipped(lease) => lease.copy_out(from - start, bytes)?,
                    Slot::Away => return Err(format!("layer {layer} has not arrived").into()),
                }
                from_bytes(bytes, numbers);
            }
        }
        Ok(())
    }
}
