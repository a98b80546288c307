//! Copies that a GPU makes: groups of ranges, each started by as few launches as will do.

use std::sync::Arc;

use super::driver::{Driver, Failure};
use super::line::{Line, Waiting};
use super::memory::DeviceMemory;
use super::plan::{Range, launches};
use crate::Reactor;
use crate::copy::{CopyWork, Source};
use crate::doorbell::Doorbell;
use crate::region::Region;

/// Blocks of 512 threads that a launch takes at most, one a multiprocessor: an eighth of an H200's.
/// From 8 on an NVLink is full; 16 fill it for reads from a peer's memory too.
pub const SM_BUDGET: u32 = 16;

/// Copies of which one end at least is on a GPU, started and ended together.
#[derive(Debug)]
pub struct Group {
    /// Whose work it is; comes back with the completion.
    pub tag: u64,
    /// The copies; as many bytes of each as the shorter end has.
    pub works: Vec<CopyWork>,
}

/// A group that has ended: none of its memory is touched any more.
#[derive(Debug)]
pub struct GroupDone {
    /// The group's tag.
    pub tag: u64,
    /// Why not all was copied; what the targets hold is undefined then.
    pub error: Option<Failure>,
    /// Its works.
    pub works: Vec<CopyWork>,
}

/// Copies by GPUs, a stream on each that is used.
#[derive(Debug)]
pub struct Cuda {
    lines: Vec<Line>,
    doorbell: Arc<Doorbell>,
    blocks: u32,
    capacity: usize,
    groups: usize,
    next_name: u64,
    failed: Vec<GroupDone>,
}

impl CopyWork {
    /// Whether a GPU has to make it: one end is on one.
    pub fn is_on_gpu(&self) -> bool {
        self.driver().is_some()
    }

    /// Lets the GPU that has to make it reach both ends ([`Region::reach`]), and says which that
    /// is; none where the CPU makes it. An end that can't be reached is copied all the same, more
    /// slowly.
    pub fn reach_gpu(&self) -> Option<u32> {
        let (driver, device) = self.driver()?;
        let source = match &self.source {
            Source::Region(slice) => slice.region().reach(driver),
            Source::View(slice) => slice.view().reach(driver),
            Source::Process(_) => Ok(()),
        };
        // Each is said once, by who made the region.
        let _ = (source, self.target.region().reach(driver));
        Some(device)
    }

    /// The driver and the device that make it: the target's, since it is the one that answers for
    /// the memory, else the source's.
    fn driver(&self) -> Option<(&Arc<dyn Driver>, u32)> {
        let source = match &self.source {
            Source::Region(slice) => slice.region().device(),
            Source::View(_) | Source::Process(_) => None,
        };
        let device = self.target.region().device().or(source)?;
        Some((device.driver(), device.device()))
    }

    /// Where the bytes are, for a device; nowhere where they are another process's own.
    fn range(&self) -> Option<Range> {
        let from = match &self.source {
            Source::Region(slice) => slice.addr(),
            Source::View(slice) => slice.addr(),
            Source::Process(_) => return None,
        };
        Some(Range { from, to: self.target.addr(), len: self.bytes() })
    }

    /// The device that holds one end and isn't reached by `device`, if there is one.
    fn out_of_reach(&self, driver: &Arc<dyn Driver>, device: u32) -> Option<u32> {
        let source = match &self.source {
            Source::Region(slice) => slice.region().device(),
            Source::View(_) | Source::Process(_) => None,
        };
        let facts = driver.devices().get(device as usize);
        let reaches = |far: u32| facts.is_some_and(|facts| facts.reaches.contains(&far));
        let ends = [source, self.target.region().device()];
        let fars = ends.into_iter().flatten().map(DeviceMemory::device);
        fars.into_iter().find(|far| *far != device && !reaches(*far))
    }

    /// Whether the kernel reaches both ends.
    fn may_page(&self, driver: &Arc<dyn Driver>) -> bool {
        let source = match &self.source {
            Source::Region(slice) => slice.region().is_reachable(driver),
            Source::View(slice) => slice.is_reachable(driver),
            Source::Process(_) => false,
        };
        source && self.target.region().is_reachable(driver)
    }
}

impl Cuda {
    /// A reactor that holds at most `capacity` groups and rings `doorbell` when it was armed.
    pub fn new(capacity: usize, doorbell: Arc<Doorbell>) -> Self {
        Self {
            lines: Vec::new(),
            doorbell,
            blocks: SM_BUDGET,
            capacity,
            groups: 0,
            next_name: 0,
            failed: Vec::new(),
        }
    }

    /// Bounds the multiprocessors that a launch takes.
    #[must_use]
    pub fn with_blocks(self, blocks: u32) -> Self {
        Self { blocks: blocks.max(1), ..self }
    }

    /// Whether nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.groups == 0
    }

    /// Nothing of `region` is touched any more when this returns: what wasn't begun is dropped,
    /// and what was is waited for, which takes milliseconds at most.
    pub fn settle(&mut self, region: &Arc<Region>) {
        for line in &mut self.lines {
            line.settle(region);
        }
    }

    fn line(&mut self, driver: &Arc<dyn Driver>, device: u32) -> Result<&mut Line, Failure> {
        let is_it = |line: &Line| line.device == device && Arc::ptr_eq(&line.driver, driver);
        if let Some(index) = self.lines.iter().position(is_it) {
            return Ok(&mut self.lines[index]);
        }
        self.lines.push(Line::new(driver.clone(), device)?);
        Ok(self.lines.last_mut().expect("just pushed"))
    }

    /// Puts a group into the line of its device.
    fn queue(&mut self, name: u64, group: Group) -> Result<(), (Failure, Group)> {
        let Some((driver, device)) = group.works.first().and_then(CopyWork::driver) else {
            return Err((Failure::refused("copy", "no end of it is on a GPU"), group));
        };
        let driver = driver.clone();
        if let Some(far) = group.works.iter().find_map(|work| work.out_of_reach(&driver, device)) {
            let why = format!("GPU {device} does not reach the memory of GPU {far}");
            return Err((Failure::refused("copy", why), group));
        }
        let may_page = group.works.iter().all(|work| work.may_page(&driver));
        let ranges: Option<Vec<Range>> = group.works.iter().map(CopyWork::range).collect();
        let Some(ranges) = ranges else {
            let why = "a GPU does not reach another process's foreign memory";
            return Err((Failure::refused("copy", why), group));
        };
        let launches = launches(ranges.into_iter().filter(|range| range.len > 0), may_page).into();
        match self.line(&driver, device) {
            Ok(line) => {
                line.waiting.push_back(Waiting { name, group, launches, error: None });
                Ok(())
            }
            Err(failure) => Err((failure, group)),
        }
    }
}

impl Reactor for Cuda {
    type Work = Group;
    type Done = GroupDone;

    fn submit(&mut self, group: Group) -> Result<u64, Group> {
        if self.groups >= self.capacity {
            return Err(group);
        }
        let name = self.next_name;
        self.next_name += 1;
        self.groups += 1;
        if let Err((failure, Group { tag, works })) = self.queue(name, group) {
            self.failed.push(GroupDone { tag, error: Some(failure), works });
        }
        Ok(name)
    }

    fn poll(&mut self, budget: usize, done: &mut Vec<GroupDone>) -> usize {
        if self.groups == 0 {
            return 0;
        }
        let before = done.len();
        done.extend(self.failed.drain(..self.failed.len().min(budget)));
        let mut started = 0;
        for line in &mut self.lines {
            started += line.start(self.blocks);
            line.end(budget - (done.len() - before), done);
        }
        let ended = done.len() - before;
        self.groups -= ended;
        started + ended
    }

    fn arm(&mut self) -> bool {
        self.failed.is_empty() && self.lines.iter_mut().all(|line| line.arm(&self.doorbell))
    }

    fn fence(&mut self, name: u64) {
        for line in &mut self.lines {
            line.fence(|waiting| waiting.name == name);
        }
    }
}

impl CopyWork {
    pub(super) fn touches(&self, region: &Arc<Region>) -> bool {
        let reads = match &self.source {
            Source::Region(slice) => Arc::ptr_eq(slice.region(), region),
            Source::View(_) | Source::Process(_) => false,
        };
        reads || Arc::ptr_eq(self.target.region(), region)
    }
}

#[cfg(all(test, feature = "sim"))]
mod tests;
