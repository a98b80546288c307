//! The KV cache in memory that kvrail has registered: blocks from one pool, each cut into the
//! pieces that travel by themselves, and a lease on every piece that says who may touch it now.
//!
//! On the prefill's side a piece is leased exclusively while it is computed and shared from the
//! moment it is shipped; it can still be read then, but no more written. On the decode's side
//! a piece belongs to the peer that writes it until its counter says that it has arrived. The peer
//! reaches a block by a grant for it and for as long as that holds; nothing else of the pool.

use std::time::{Duration, Instant};

use kvrail::{
    Access, Block, BlockPool, Counter, Engine, ExclusiveLease, Grant, GrantOptions, Location,
    Reference, Region, SharedLease,
};

use crate::cache::{KvCache, from_bytes, to_bytes};
use crate::llama::Failure;
use crate::options::Ship;
use crate::shape::Shape;
use crate::wait::{PATIENCE, wait};

/// Tokens that a process has room for, over all its requests: 47 MB for SmolLM2.
pub const POOL_TOKENS: usize = 2048;

/// A process's memory for KV caches.
pub struct Store {
    engine: Engine,
    shape: Shape,
    ship: Ship,
    region: Region,
    pool: BlockPool,
}

/// What a peer writes of a cache.
pub struct Arriving {
    /// How many blocks, from the first on.
    pub blocks: usize,
    /// For each piece, what counts the blocks of which it has arrived.
    pub counters: Vec<Counter>,
    /// Who may write: the peer's segment name.
    pub writer: String,
}

impl Store {
    /// Allocates it. Peers may do nothing with it, unless they are granted a block.
    pub fn new(engine: &Engine, shape: Shape, ship: Ship) -> Result<Self, Failure> {
        let blocks = shape.blocks(POOL_TOKENS.min(shape.context));
        let len = blocks * shape.block_bytes();
        let region = engine.allocate(len, Location::Cpu(None), Access::LOCAL)?;
        let pool = BlockPool::new(region.clone(), shape.block_bytes())?;
        Ok(Self { engine: engine.clone(), shape, ship, region, pool })
    }

    /// The memory that all blocks are in.
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// Blocks for this many tokens, to be computed here.
    pub fn own(&self, tokens: usize) -> Result<PagedCache, Failure> {
        let mut cache = self.cache(tokens, Vec::new())?;
        for piece in 0..cache.slots.len() {
            cache.take_over(piece)?;
        }
        Ok(cache)
    }

    /// Blocks for this many tokens, `spare` ones first, of which a peer writes some: each piece has
    /// arrived when its counter has come to their number.
    pub fn awaiting(
        &self,
        tokens: usize,
        arriving: Arriving,
        spare: Vec<Block>,
    ) -> Result<PagedCache, Failure> {
        let mut cache = self.cache(tokens, spare)?;
        let Arriving { blocks, counters, writer } = arriving;
        cache.awaited = counters.into_iter().map(|counter| (counter, blocks as u64)).collect();
        let options = GrantOptions { holder: Some(writer), expires_after: Some(PATIENCE) };
        let grant = |block| self.engine.grant_block(block, Access::WRITE, options.clone());
        cache.grants = cache.blocks[..blocks].iter().map(grant).collect::<Result<_, _>>()?;
        Ok(cache)
    }

    /// The parts of a block that travel by themselves.
    pub fn pieces(&self) -> usize {
        self.ship.pieces(self.shape.layers)
    }

    fn cache(&self, tokens: usize, spare: Vec<Block>) -> Result<PagedCache, Failure> {
        let count = self.shape.blocks(tokens);
        if count > self.pool.len() {
            let room = self.pool.len() * self.shape.block_tokens;
            return Err(format!("{tokens} tokens don't fit: the pool has room for {room}").into());
        }
        let taken = spare.into_iter().map(Ok).chain(std::iter::repeat_with(|| self.pool.take()));
        let blocks = taken.take(count).collect::<Result<_, _>>()?;
        let slots = (0..self.pieces()).map(|_| (0..count).map(|_| Slot::default()).collect());
        Ok(PagedCache {
            shape: self.shape,
            ship: self.ship,
            region: self.region.clone(),
            slots: slots.collect(),
            blocks,
            grants: Vec::new(),
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
    /// For the blocks that a peer writes, until it is done.
    grants: Vec<Grant>,
    /// By piece: its counter, and what it counts to.
    awaited: Vec<(Counter, u64)>,
    row: Vec<u8>,
}

impl PagedCache {
    /// What a peer needs to write the blocks.
    pub fn references(&self) -> Vec<Reference> {
        self.grants.iter().map(Grant::reference).collect()
    }

    /// Takes the blocks back from the peer that is writing them, finished or not. When this
    /// returns, with the time it took, nobody stores into them any more; the counters may still be
    /// advanced for what had arrived.
    pub fn revoke(self) -> Result<(Vec<Block>, Vec<Counter>, Duration), Failure> {
        let since = Instant::now();
        let revoked = self.grants.into_iter().map(Grant::revoke);
        let all = async {
            for revoked in revoked.collect::<Vec<_>>() {
                revoked.await;
            }
        };
        wait("the end of what was under way", all)?;
        let counters = self.awaited.into_iter().map(|(counter, _)| counter).collect();
        Ok((self.blocks, counters, since.elapsed()))
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

    /// Waits for all that a peer still has to write. It has nothing to do here any more then.
    pub fn all_arrived(&mut self) -> Result<(), Failure> {
        (0..self.slots.len()).try_for_each(|piece| self.arrived(piece))?;
        self.grants.clear();
        Ok(())
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
