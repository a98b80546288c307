//! Copies that a GPU makes: groups of ranges, each started by as few launches as will do.

use std::fmt;
use std::sync::Arc;

use super::driver::{Driver, Event, Failure};
use super::line::{Line, Waiting};
use super::pages::Pages;
use crate::Reactor;
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
    /// The copies.
    pub pages: Arc<Pages>,
}

/// What a group's copies stand between: events of the caller's.
#[derive(Debug, Default)]
pub struct Order {
    /// They begin behind this one.
    pub after: Option<Event>,
    /// This one completes behind them, whether they succeed or not.
    pub before: Option<Recorded>,
}

/// An event that is to be recorded.
pub struct Recorded {
    /// Of the device that copies.
    pub event: Event,
    /// Told when it was recorded, or why it wasn't, by the thread that polls; not at all of a group
    /// that the reactor gives back.
    pub told: Box<dyn FnOnce(Result<(), Failure>) + Send>,
}

impl fmt::Debug for Recorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.event.fmt(f)
    }
}

/// A group that has ended: none of its memory is touched any more.
#[derive(Debug)]
pub struct GroupDone {
    /// The group's tag.
    pub tag: u64,
    /// Why not all was copied; what the targets hold is undefined then.
    pub error: Option<Failure>,
    /// Its copies.
    pub pages: Arc<Pages>,
}

/// Copies by GPUs, a stream on each that is used, or two.
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

    /// Makes copies here and now: for those that are waited for anyway, and take microseconds. None
    /// may be under way.
    ///
    /// # Errors
    /// That of the copies; what the targets hold is undefined then.
    pub fn make(&mut self, pages: Arc<Pages>) -> Result<(), Failure> {
        self.begin(pages)?;
        self.wait()
    }

    /// Begins what [`Cuda::wait`] ends.
    pub(super) fn begin(&mut self, pages: Arc<Pages>) -> Result<(), Failure> {
        let busy = |_| Failure::refused("copy", "others are under way");
        self.submit(Group { tag: 0, pages }).map_err(busy)?;
        self.poll(0, &mut Vec::new());
        Ok(())
    }

    /// Until the one group that is under way has ended.
    pub(super) fn wait(&mut self) -> Result<(), Failure> {
        let mut done = Vec::with_capacity(1);
        while !self.is_idle() {
            self.poll(1, &mut done);
            if let Some(GroupDone { error, .. }) = done.pop() {
                return error.map_or(Ok(()), Err);
            }
            std::hint::spin_loop();
        }
        Ok(())
    }

    /// Nothing of `region` is touched any more when this returns: what of it wasn't begun is left
    /// out, and what was is waited for, which takes milliseconds at most. Groups end as
    /// [`FailureKind::Fenced`](super::driver::FailureKind::Fenced) then.
    pub fn settle(&mut self, region: &Arc<Region>) {
        for line in &mut self.lines {
            line.settle(region);
        }
    }

    /// Copies behind the caller's own work have a line of their own, which no others wait in.
    fn line(
        &mut self,
        driver: &Arc<dyn Driver>,
        device: u32,
        is_behind: bool,
    ) -> Result<&mut Line, Failure> {
        let is_it = |line: &Line| {
            (line.device, line.is_behind) == (device, is_behind)
                && Arc::ptr_eq(&line.driver, driver)
        };
        if let Some(index) = self.lines.iter().position(is_it) {
            return Ok(&mut self.lines[index]);
        }
        self.lines.push(Line::new(driver.clone(), device, is_behind)?);
        Ok(self.lines.last_mut().expect("just pushed"))
    }

    /// As [`Reactor::submit`], between events of the caller's. Groups behind an event of one
    /// device's begin in their order.
    ///
    /// # Errors
    /// The group: there is no room.
    pub fn submit_between(&mut self, group: Group, order: Order) -> Result<u64, Group> {
        if self.groups >= self.capacity {
            return Err(group);
        }
        let name = self.next_name;
        self.next_name += 1;
        self.groups += 1;
        if let Err((failure, Group { tag, pages })) = self.queue(name, group, order) {
            self.failed.push(GroupDone { tag, error: Some(failure), pages });
        }
        Ok(name)
    }

    /// Puts a group into the line of its device.
    fn queue(&mut self, name: u64, group: Group, order: Order) -> Result<(), (Failure, Group)> {
        let (driver, device) = (group.pages.driver.clone(), group.pages.device);
        let is_behind = order.after.is_some();
        match self.line(&driver, device, is_behind) {
            Ok(line) => {
                line.waiting.push_back(Waiting::new(name, group, order));
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
        self.submit_between(group, Order::default())
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

#[cfg(all(test, feature = "sim"))]
mod tests;
