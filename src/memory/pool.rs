//! A region cut into equal blocks, each with a generation that moves on when the block changes
//! hands: the KV cache's own unit.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::grant::{Grant, Quiet, Strike};
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
    free: VecDeque<Free>,
    generations: Vec<u64>,
}

/// A block that nobody has.
#[derive(Debug)]
struct Free {
    index: usize,
    /// Grants of its last tenancy that peers may still be using.
    quiets: Vec<Quiet>,
}

impl Free {
    fn is_quiet(&mut self) -> bool {
        self.quiets.retain(|quiet| !quiet.is_here());
        self.quiets.is_empty()
    }
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
        let free = (0..count).map(|index| Free { index, quiets: Vec::new() }).collect();
        let state = State { free, generations: vec![0; count] };
        Ok(Self { shared: Arc::new(Shared { region, block_bytes, state: Mutex::new(state) }) })
    }

    /// Takes a free block that no lease and no peer with a grant touches any more; its generation
    /// is one that it never had before.
    ///
    /// # Errors
    /// Busy where every block is taken or still in flight.
    pub fn take(&self) -> Result<Block> {
        let mut state = self.shared.lock();
        for _ in 0..state.free.len() {
            let Some(mut free) = state.free.pop_front() else { break };
            let index = free.index;
            if !free.is_quiet() || self.shared.region.is_leased(self.shared.range(index)) {
                state.free.push_back(free);
                continue;
            }
            state.generations[index] += 1;
            let generation = state.generations[index];
            let (pool, grants) = (self.shared.clone(), Mutex::default());
            return Ok(Block { pool, index, generation, grants });
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

/// A block of a [`BlockPool`]. Dropping it gives it back and takes its grants back
/// ([`crate::Engine::grant_block`]): whoever still names them is told that they are Stale. The pool
/// hands it out again only when no lease on it is left and no peer can reach it any more, so a
/// flight that outlives the block keeps its bytes.
#[derive(Debug)]
pub struct Block {
    pool: Arc<Shared>,
    index: usize,
    generation: u64,
    grants: Mutex<Vec<Strike>>,
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

    pub(crate) fn region(&self) -> &Region {
        &self.pool.region
    }

    /// Its bytes, in the region.
    pub(crate) fn range(&self) -> Range<usize> {
        self.pool.range(self.index)
    }

    /// The grant ends with this tenancy.
    pub(crate) fn tie(&self, grant: &Grant) {
        let mut grants = self.grants.lock().unwrap_or_else(PoisonError::into_inner);
        grants.retain(|known| !known.quiet().is_here());
        grants.push(grant.strike());
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
        let grants = self.grants.get_mut().unwrap_or_else(PoisonError::into_inner);
        grants.iter().for_each(Strike::now);
        let quiets = grants.drain(..).map(|strike| strike.quiet().clone()).collect();
        self.pool.lock().free.push_back(Free { index: self.index, quiets });
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
    fn a_block_that_a_peer_uses_is_not_reused_and_its_grants_go_with_it() {
        use crate::memory::grant::{Denied, Granting, Grants};
        use crate::memory::{Access, Operation};
        let pool = BlockPool::new(region(2 * 4096), 4096).unwrap();
        let (grants, block) = (Arc::new(Grants::new(None)), pool.take().unwrap());
        let granting = || Granting {
            region: block.region(),
            range: block.range(),
            access: Access::READ,
            holder: None,
            expires_ns: None,
            generation: block.generation(),
        };
        let find = |reference: &crate::Reference| {
            grants.find(reference.key, "", reference.addr, reference.len, Operation::Read)
        };
        let grant = grants.add(granting()).unwrap();
        block.tie(&grant);
        let early = grants.add(granting()).unwrap();
        block.tie(&early);
        let (_, used) = find(&early.reference()).unwrap();
        drop(early);
        assert!(grant.holds());
        let (index, reference) = (block.index(), grant.reference());
        assert_eq!(reference.generation(), 1);
        drop(block);
        assert!(!grant.holds());
        assert_eq!(find(&reference).unwrap_err(), Denied::Stale);
        let other = pool.take().unwrap();
        assert_eq!(pool.take().unwrap_err().kind(), ErrorKind::Busy, "one grant is in use");
        drop(used);
        let again = pool.take().unwrap();
        assert_eq!((again.index(), again.generation()), (index, 2));
        assert_ne!(other.index(), index);
        assert_eq!(find(&reference).unwrap_err(), Denied::Stale);
    }

    #[test]
    fn a_region_that_does_not_divide_is_refused() {
        assert_eq!(BlockPool::new(region(100), 30).unwrap_err().kind(), ErrorKind::Refused);
        assert_eq!(BlockPool::new(region(100), 0).unwrap_err().kind(), ErrorKind::Refused);
    }
}
