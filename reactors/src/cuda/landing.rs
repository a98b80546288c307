//! Where bytes for GPUs land that came in one piece with their headers: blocks of pinned host
//! memory, from which one launch brings each to its place, however many there are.

use std::ops::Range;
use std::sync::Arc;

use super::driver::{Driver, Failure};
use super::pages::Pages;
use super::reactor::{Cuda, SM_BUDGET};
use crate::copy::{CopyWork, Source};
use crate::doorbell::Doorbell;
use crate::region::{AccessError, Region, Slice};
use crate::vector::lacking;

/// Bytes of a block: a launch and its end cost 10 us, in which a socket brings 64 KiB.
const BLOCK_BYTES: usize = 1 << 20;

/// Blocks at most: 32 MiB of pinned memory a shard. Who gets none goes another way, more slowly.
const BLOCKS_MAX: usize = 32;

/// Copies of one launch at most, so that looking whether one overlaps another stays cheap: those of
/// a block's 4 KiB pages.
const COPIES_MAX: usize = BLOCK_BYTES / 4096;

/// Blocks, and copies out of them to GPUs' memory that are to be made.
#[derive(Debug)]
pub struct Landing {
    /// None until a GPU is first needed.
    cuda: Option<Cuda>,
    sm_budget: u32,
    /// All of them. One is free when nobody else holds its region.
    blocks: Vec<Slice>,
    copies: Vec<CopyWork>,
    /// Where they go, and the GPU that is to make them.
    targets: Vec<Range<u64>>,
    device: Option<u32>,
    /// Launches that were begun, all of which are over but perhaps the last.
    begun: u64,
    is_under_way: bool,
    /// The last of them that failed.
    failed: Option<(u64, Failure)>,
    /// Where bytes are put that did not come in a block, and how many there are.
    bounce: Option<Slice>,
    bounced: usize,
}

impl Default for Landing {
    fn default() -> Self {
        Self::new(SM_BUDGET)
    }
}

impl Landing {
    /// One whose launches take so many multiprocessors at most.
    pub fn new(sm_budget: u32) -> Self {
        let (cuda, blocks, copies, targets, device, failed, bounce) = Default::default();
        let (begun, is_under_way, bounced) = (0, false, 0);
        Self {
            cuda,
            sm_budget,
            blocks,
            copies,
            targets,
            device,
            begun,
            is_under_way,
            failed,
            bounce,
            bounced,
        }
    }

    /// A free block that `driver`'s GPUs reach; none where there is none, or no memory for more.
    /// It is free again when all of its slices are gone.
    pub fn lend(&mut self, driver: &Arc<dyn Driver>) -> Option<Slice> {
        let is_free = |block: &&Slice| Arc::strong_count(block.region()) == 1;
        let block = match self.blocks.iter().find(is_free) {
            Some(block) => block.clone(),
            None if self.blocks.len() < BLOCKS_MAX => {
                let region = Arc::new(Region::allocate(BLOCK_BYTES, None).ok()?);
                let block = Slice::new(region, 0, BLOCK_BYTES).ok()?;
                self.blocks.push(block.clone());
                block
            }
            None => return None,
        };
        // Without, the copies are slower.
        let _: Result<(), Failure> = block.region().reach(driver);
        Some(block)
    }

    /// Brings `source`, a part of a block, to `target`, a GPU's memory and as long: before
    /// [`Landing::finish`] returns.
    ///
    /// # Errors
    /// Some of what was to be brought before can't be brought, and all of that is given up.
    pub fn bring(&mut self, source: Slice, target: Slice) -> Result<(), Failure> {
        let work = CopyWork { tag: 0, source: Source::Region(source), target };
        let addresses = work.target.addr()..work.target.addr() + work.target.len() as u64;
        self.make_way_for(&addresses, work.gpu())?;
        self.targets.push(addresses);
        self.device = work.gpu();
        self.copies.push(work);
        Ok(())
    }

    /// The same with bytes that came elsewhere.
    ///
    /// # Errors
    /// As there. That of these bytes, too, where there is no block for them.
    pub fn bring_bytes(&mut self, bytes: &[u8], target: Slice) -> Result<(), Failure> {
        let Some(part) = self.part(&target)? else {
            return write(bytes, &target);
        };
        part.write(0, bytes).expect("as many bytes as the target has");
        self.bring(part, target)
    }

    /// Where bytes for `target` go meanwhile; nowhere where there is no room.
    fn part(&mut self, target: &Slice) -> Result<Option<Slice>, Failure> {
        for _ in 0..2 {
            if self.bounce.is_none() {
                self.bounce = target.driver().and_then(|driver| self.lend(driver));
            }
            let Some(bounce) = &self.bounce else {
                // Launches give their blocks back.
                self.finish()?;
                continue;
            };
            // Both ends begin alike, which lets a GPU take wide words.
            let at = self.bounced + lacking(bounce.addr() + self.bounced as u64, target.addr());
            if let Ok(part) = bounce.part(at, target.len()) {
                self.bounced = at + target.len();
                return Ok(Some(part));
            }
            self.begin()?;
        }
        self.finish()?;
        Ok(None)
    }

    /// The number of the launch by which all that was to be brought has come, or will.
    pub fn last(&self) -> u64 {
        self.begun + u64::from(!self.copies.is_empty())
    }

    /// Launches that were begun: what is to be brought from here on comes by a later one.
    pub fn begun(&self) -> u64 {
        self.begun
    }

    /// Launches that are over: what came by one of them is in its place, unless it failed.
    pub fn ended(&self) -> u64 {
        self.begun - u64::from(self.is_under_way)
    }

    /// Why what was to be brought after so many launches is not in its place, if one of those since
    /// then has failed.
    pub fn failed_after(&self, launches: u64) -> Option<&Failure> {
        self.failed.as_ref().filter(|(failed, _)| *failed > launches).map(|(_, failure)| failure)
    }

    /// Brings all that is to be brought, and waits for it.
    ///
    /// # Errors
    /// A GPU's; what the targets hold then is undefined. Of launches that were begun before,
    /// [`Landing::failed_after`] tells.
    pub fn finish(&mut self) -> Result<(), Failure> {
        let gathered = !self.copies.is_empty();
        self.begin()?;
        self.wait();
        let failed = self.failed.as_ref().filter(|(failed, _)| gathered && *failed == self.begun);
        failed.map_or(Ok(()), |(_, failure)| Err(failure.clone()))
    }

    /// Begins to bring all that is to be brought, once what was begun before is over: then a GPU
    /// works while more comes.
    ///
    /// # Errors
    /// As [`Landing::finish`], where it can't be begun.
    pub fn begin(&mut self) -> Result<(), Failure> {
        self.wait();
        if self.copies.is_empty() {
            return Ok(());
        }
        let copies = std::mem::take(&mut self.copies);
        let begun = Pages::of(copies.iter()).and_then(|pages| self.launch(Arc::new(pages)));
        (self.bounce, self.bounced) = (None, 0);
        self.copies = copies;
        self.copies.clear();
        self.targets.clear();
        self.begun += 1;
        self.is_under_way = begun.is_ok();
        begun.inspect_err(|failure| self.failed = Some((self.begun, failure.clone())))
    }

    /// Returns when no launch is under way.
    pub fn wait(&mut self) {
        if !std::mem::take(&mut self.is_under_way) {
            return;
        }
        let ended = self.cuda.as_mut().map_or(Ok(()), Cuda::wait);
        self.failed = ended.err().map(|failure| (self.begun, failure)).or(self.failed.take());
    }

    /// Makes way for one more copy: those of a launch are of one GPU and in no order. One launch
    /// ends before the next begins.
    fn make_way_for(&mut self, to: &Range<u64>, device: Option<u32>) -> Result<(), Failure> {
        let is_full = self.copies.len() >= COPIES_MAX;
        let is_taken = |other: &Range<u64>| other.start < to.end && to.start < other.end;
        let is_elsewhere = !self.copies.is_empty() && self.device != device;
        match is_full || is_elsewhere || self.targets.iter().any(is_taken) {
            true => self.begin(),
            false => Ok(()),
        }
    }

    fn launch(&mut self, pages: Arc<Pages>) -> Result<(), Failure> {
        let cuda = match &mut self.cuda {
            Some(cuda) => cuda,
            none => none.insert(Cuda::new(1, doorbell()?).with_blocks(self.sm_budget)),
        };
        cuda.begin(pages)
    }
}

/// Nobody sleeps by it.
fn doorbell() -> Result<Arc<Doorbell>, Failure> {
    let doorbell = Doorbell::new();
    Ok(Arc::new(doorbell.map_err(|error| Failure::refused("doorbell", error.to_string()))?))
}

/// Copies bytes to a GPU by itself, at once.
fn write(bytes: &[u8], target: &Slice) -> Result<(), Failure> {
    match target.write(0, bytes) {
        Ok(()) => Ok(()),
        Err(AccessError::Device(failure)) => Err(failure),
        Err(AccessError::OutOfRange(error)) => Err(Failure::refused("copy", error.to_string())),
    }
}
