//! A region cut into equal blocks, each with a generation that moves on when the block changes
//! hands: the KV cache's own unit.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{ExclusiveLease, Region, SharedLease};
use crate::{Error, Result};

/// Hands out the blocks of one region. Clones share it.
#[derive(Debug, Clone)]
pub struct BlockPool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    region: Region,
    block_bytes: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    free: VecDeque<usize>,
    generations: Vec<u64>,
}

impl BlockPool {
    /// Cuts `region` into blocks of `block_bytes` each.
    ///
    /// # Errors
    /// Refused where the region isn't a whole number of blocks.
    pub fn new(region: Region, block_bytes: usize) -> Result<Self> {
        if block_bytes == 0 || !region.len().is_multiple_of(block_bytes) {
            return Err(Error::refused(format!(
                "a region of {} bytes is not a whole number of blocks of {block_bytes} bytes",
                region.len()
            )));
        }
        let count = region.len() / block_bytes;
        let state = State { free: (0..count).collect(), generations: vec![0; count] };
        Ok(Self { shared: Arc::new(Shared { region, block_bytes, state: Mutex::new(state) }) })
    }

    /// Takes a free block that no lease touches; its generation is one that it never had before.
    ///
    /// # Errors
    /// Busy where every block is taken or still in flight.
    pub fn take(&self) -> Result<Block> {
        let mut state = self.shared.lock();
        for _ in 0..state.free.len() {
            let Some(index) = state.free.pop_front() else { break };
            if self.shared.region.is_leased(self.shared.range(index)) {
                state.free.push_back(index);
                continue;
            }
            state.generations[index] += 1;
            let generation = state.generations[index];
            return Ok(Block { pool: self.shared.clone(), index, generation });
        }
        Err(Error::busy(format!(
            "all {} blocks are taken ({} of them given back but still in flight)",
            state.generations.len(),
            state.free.len()
        )))
    }

    /// How many blocks there are.
    pub fn len(&self) -> usize {
        self.shared.lock().generations.len()
    }

    /// Whether the region is too small for even one block.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many blocks are not taken; some may still be in flight.
    pub fn free(&self) -> usize {
        self.shared.lock().free.len()
    }

    /// Bytes of one block.
    pub fn block_bytes(&self) -> usize {
        self.shared.block_bytes
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn range(&self, index: usize) -> Range<usize> {
        index * self.block_bytes..(index + 1) * self.block_bytes
    }
}

/// A block of a [`BlockPool`]. Dropping it gives it back; the pool hands it out again only when
/// no lease on it is left, so a flight that outlives the block keeps its bytes.
#[derive(Debug)]
pub struct Block {
    pool: Arc<Shared>,
    index: usize,
    generation: u64,
}

impl Block {
    /// Position in the pool, from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Which tenancy of this position it is, from 1.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The first byte's address: what peers name.
    pub fn addr(&self) -> u64 {
        self.pool.region.addr() + self.pool.range(self.index).start as u64
    }

    /// A lease to write into the block.
    ///
    /// # Errors
    /// As [`Region::lease`].
    pub fn lease(&self) -> Result<ExclusiveLease> {
        self.pool.region.lease(self.pool.range(self.index))
    }

    /// A lease to read from the block.
    ///
    /// # Errors
    /// As [`Region::share`].
    pub fn share(&self) -> Result<SharedLease> {
        self.pool.region.share(self.pool.range(self.index))
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.pool.lock().free.push_back(self.index);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::region;
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn a_block_under_a_lease_is_not_reused() {
        let pool = BlockPool::new(region(2 * 4096), 4096).unwrap();
        let (first, second) = (pool.take().unwrap(), pool.take().unwrap());
        assert_eq!(pool.take().unwrap_err().kind(), ErrorKind::Busy);
        let lease = first.share().unwrap();
        let index = first.index();
        drop(first);
        assert_eq!(pool.take().unwrap_err().kind(), ErrorKind::Busy, "it is still in flight");
        drop(lease);
        let again = pool.take().unwrap();
        assert_eq!((again.index(), again.generation()), (index, 2));
        assert_eq!(second.generation(), 1);
    }

    #[test]
    fn a_region_that_does_not_divide_is_refused() {
        assert_eq!(BlockPool::new(region(100), 30).unwrap_err().kind(), ErrorKind::Refused);
        assert_eq!(BlockPool::new(region(100), 0).unwrap_err().kind(), ErrorKind::Refused);
    }
}
