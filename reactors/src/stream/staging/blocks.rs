//! The blocks of pinned host memory that GPUs' bytes pass through: made when they are first needed,
//! then lent again and again, and never all of them in one direction.

use std::sync::Arc;

use crate::cuda::Failure;
use crate::cuda::driver::{Driver, FailureKind};
use crate::region::{Region, Slice};
use crate::stream::Direction;

/// Bytes of a block: half of what a send or a receive is asked for, so that a GPU works on the one
/// half while a socket works on the other.
pub(super) const BLOCK_BYTES: usize = 512 << 10;

/// Blocks that are made at once: they share a huge page, where there are some.
const SLAB_BLOCKS: usize = 4;

/// Blocks at most, whole slabs: 64 MiB a shard.
pub(super) const BLOCKS_MAX: usize = 128;

/// Blocks that one direction holds at most. Sends keep theirs until the peer reads, and that may
/// take what we receive from it: a share that sends never get is what keeps two processes from
/// waiting for each other. Receives keep theirs for as long as a GPU copies.
const DIRECTION_MAX: usize = BLOCKS_MAX / 4 * 3;

/// From so many on a direction works ahead no more, so that each connection has its one.
const AHEAD_MAX: usize = DIRECTION_MAX / 2;

#[derive(Debug, Default)]
pub(super) struct Blocks {
    free: Vec<Slice>,
    made: usize,
    sending: usize,
    receiving: usize,
}

impl Blocks {
    /// A block, one of `make`'s where none is free; none while there is none left for this
    /// direction, or no memory for more while others will come back.
    ///
    /// # Errors
    /// There is no memory for the first.
    pub(super) fn lend(
        &mut self,
        direction: Direction,
        make: impl FnOnce() -> Result<Vec<Slice>, Failure>,
    ) -> Result<Option<Slice>, Failure> {
        if *self.lent(direction) >= DIRECTION_MAX {
            return Ok(None);
        }
        if self.free.is_empty() && self.made < BLOCKS_MAX {
            match make() {
                Ok(slab) => {
                    self.made += slab.len();
                    self.free = slab;
                }
                Err(_) if self.made > 0 => return Ok(None),
                Err(failure) => return Err(failure),
            }
        }
        let block = self.free.pop();
        *self.lent(direction) += usize::from(block.is_some());
        Ok(block)
    }

    /// Whether there are so many left that one who has a block gets another.
    pub(super) fn are_plenty(&mut self, direction: Direction) -> bool {
        *self.lent(direction) < AHEAD_MAX
    }

    pub(super) fn give_back(&mut self, direction: Direction, block: Slice) {
        *self.lent(direction) -= 1;
        self.free.push(block);
    }

    fn lent(&mut self, direction: Direction) -> &mut usize {
        match direction {
            Direction::Send => &mut self.sending,
            Direction::Receive => &mut self.receiving,
        }
    }
}

/// New blocks, which this driver's GPUs reach.
///
/// # Errors
/// The system's own.
pub(super) fn slab(driver: Option<&Arc<dyn Driver>>) -> Result<Vec<Slice>, Failure> {
    let failed = |error: String| Failure {
        call: "blocks of host memory",
        name: error.into(),
        kind: FailureKind::NoMemory,
    };
    let region = Region::allocate(SLAB_BLOCKS * BLOCK_BYTES, None);
    let region = Arc::new(region.map_err(|error| failed(error.to_string()))?);
    // Without, the copies are slower.
    let _: Option<Result<(), Failure>> = driver.map(|driver| region.reach(driver));
    let block = |index| Slice::new(region.clone(), index * BLOCK_BYTES, BLOCK_BYTES);
    let blocks: Result<Vec<Slice>, _> = (0..SLAB_BLOCKS).map(block).collect();
    blocks.map_err(|error| failed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn none() -> Result<Vec<Slice>, Failure> {
        Err(Failure::refused("mmap", "it was asked to fail"))
    }

    #[test]
    fn neither_direction_gets_all() {
        let mut blocks = Blocks::default();
        let mut lend = |direction| blocks.lend(direction, || slab(None)).unwrap();
        let sends = std::iter::from_fn(|| lend(Direction::Send)).count();
        let receives = std::iter::from_fn(|| lend(Direction::Receive)).count();
        assert_eq!(sends + receives, BLOCKS_MAX);
        assert!(sends < BLOCKS_MAX && receives > 0, "{sends} and {receives}");
    }

    #[test]
    fn without_memory_for_another_those_that_are_lent_are_waited_for() {
        let mut blocks = Blocks::default();
        assert!(blocks.lend(Direction::Send, none).is_err(), "nobody would bring one back");
        let mut all = Vec::new();
        let mut lend = || blocks.lend(Direction::Send, || slab(None)).unwrap().unwrap();
        (0..SLAB_BLOCKS).for_each(|_| all.push(lend()));
        assert!(blocks.lend(Direction::Receive, none).unwrap().is_none());
        blocks.give_back(Direction::Send, all.remove(0));
        assert!(blocks.lend(Direction::Receive, none).unwrap().is_some());
    }
}
