//! Copies that a GPU makes, ready to be launched, once or again and again: the addresses, and what
//! keeps the memory behind them.

use std::sync::Arc;

use super::crossover::Way;
use super::driver::{Driver, Failure};
use super::even::{Even, Places};
use super::memory::DeviceMemory;
use super::plan::{Launch, Range, Ranges, launches};
use crate::copy::{CopyWork, Source};
use crate::host::view::View;
use crate::region::Region;

/// How far back a region is looked for among those that are held already: batches touch few, and
/// one that is held twice costs a count.
const HELD_LOOKED_AT: usize = 8;

/// Copies of one GPU. Keeps the memory of both ends.
#[derive(Debug)]
pub struct Pages {
    pub(super) driver: Arc<dyn Driver>,
    pub(super) device: u32,
    pub(super) launches: Vec<Launch>,
    regions: Vec<Arc<Region>>,
    #[expect(dead_code, reason = "held for its drop")]
    views: Vec<Arc<View>>,
    bytes: usize,
}

/// Copies as they are found, one after the other.
#[derive(Debug, Default)]
pub struct PageList {
    gpu: Option<(Arc<dyn Driver>, u32)>,
    /// The ranges that pages are pushed between.
    ends: Option<Range>,
    to_len: usize,
    /// The regions of the ends, by where they are.
    pair: Option<(usize, usize)>,
    ranges: Ranges,
    /// Pages that came as they are launched.
    evens: Vec<Even>,
    is_out_of_reach: bool,
    regions: Vec<Arc<Region>>,
    views: Vec<Arc<View>>,
    bytes: usize,
}

impl PageList {
    /// Room for so many.
    pub fn with_room(pages: usize) -> Self {
        Self { ranges: Ranges::with_room(pages), ..Self::default() }
    }

    /// What is pushed from here on lies between the ends of `work`, whose memory is held.
    ///
    /// # Errors
    /// Refused: no end is on a GPU, it is on another than before, or one is where it doesn't reach.
    pub fn between(&mut self, work: &CopyWork) -> Result<(), Failure> {
        let from = work.from().ok_or_else(|| {
            Failure::refused("copy", "a GPU does not reach another process's foreign memory")
        })?;
        self.to_len = work.target.len();
        self.ends = Some(Range { from, to: work.target.addr(), len: work.source.len() });
        let pair = work.pair();
        let are_others = self.pair.replace(pair) != Some(pair);
        if are_others {
            self.ranges.change_regions();
        }
        if self.hold(work) {
            self.reach(work)?;
        }
        if are_others && let Some((driver, device)) = &self.gpu {
            let crossover = driver.crossovers().of(*device, work.way(*device));
            self.ranges.change_way(crossover);
        }
        Ok(())
    }

    /// Sees to it that the GPU of all the others reaches both ends.
    fn reach(&mut self, work: &CopyWork) -> Result<(), Failure> {
        let none = || Failure::refused("copy", "no end of it is on a GPU");
        let (driver, device) = work.driver().ok_or_else(none)?;
        let gpu = self.gpu.get_or_insert_with(|| (driver.clone(), device));
        if gpu.1 != device || !Arc::ptr_eq(&gpu.0, driver) {
            return Err(Failure::refused("copy", "it is on another GPU than those before it"));
        }
        work.check_reach(device)?;
        self.is_out_of_reach |= !work.may_page(driver);
        Ok(())
    }

    /// Adds a page by its offsets between the ends; `false` where it isn't inside of them.
    pub fn push(&mut self, from: usize, to: usize, len: usize) -> bool {
        let Some(ends) = self.ends else { return false };
        let is_inside =
            |start: usize, room: usize| start.checked_add(len).is_some_and(|end| end <= room);
        if !is_inside(from, ends.len) || !is_inside(to, self.to_len) {
            return false;
        }
        if len > 0 {
            let (from, to) = (ends.from + from as u64, ends.to + to as u64);
            self.ranges.push(Range { from, to, len });
            self.bytes += len;
        }
        true
    }

    /// Adds pages of `len` bytes by their places between the ends; `false` where some aren't
    /// inside of them.
    pub fn push_all(&mut self, places: Places<'_>, len: usize) -> bool {
        let (to_len, crossover) = (self.to_len, self.ranges.crossover());
        let even = |ends| Even::between(ends, to_len, places, len, crossover);
        if let Some(even) = self.ends.as_ref().and_then(even) {
            self.bytes += len * places.words.len();
            self.evens.push(even);
            return true;
        }
        self.ranges.make_room(places.words.len());
        places.offsets().all(|[from, to]| self.push(from, to, len))
    }

    /// The list, to be launched.
    ///
    /// # Errors
    /// Refused: nothing is in it.
    pub fn finish(mut self) -> Result<Pages, Failure> {
        let none = || Failure::refused("copy", "there is nothing to copy");
        let (driver, device) = self.gpu.take().ok_or_else(none)?;
        if self.is_out_of_reach {
            self.evens.drain(..).for_each(|pages| self.ranges.extend_apart(pages.ranges()));
        }
        let mut launches = launches(&self.ranges, !self.is_out_of_reach);
        launches.extend(self.evens.into_iter().map(Launch::Even));
        let Self { regions, views, bytes, .. } = self;
        Ok(Pages { driver, device, launches, regions, views, bytes })
    }

    /// Keeps the work's memory; `true` where some of it was not held yet.
    fn hold(&mut self, work: &CopyWork) -> bool {
        let source = match &work.source {
            Source::Region(slice) => keep(&mut self.regions, slice.region()),
            Source::View(slice) => keep(&mut self.views, slice.view()),
            Source::Process(_) => false,
        };
        keep(&mut self.regions, work.target.region()) | source
    }
}

impl Pages {
    /// The copies of `works`, of which one end at least is on the same GPU; as many bytes of each
    /// as its shorter end has.
    ///
    /// # Errors
    /// As [`PageList::between`].
    pub fn of<'a>(works: impl Iterator<Item = &'a CopyWork>) -> Result<Self, Failure> {
        let mut list = PageList::with_room(works.size_hint().0);
        for work in works {
            list.between(work)?;
            list.push(0, 0, work.bytes());
        }
        list.finish()
    }

    /// Copies between two regions, which the GPU reaches.
    pub(super) fn planned(
        (driver, device): (Arc<dyn Driver>, u32),
        regions: Vec<Arc<Region>>,
        ranges: &Ranges,
    ) -> Self {
        let (launches, views) = (launches(ranges, true), Vec::new());
        Self { driver, device, launches, regions, views, bytes: 0 }
    }

    /// No copies, for what stands behind an event on a device and nothing else.
    pub fn none(driver: Arc<dyn Driver>, device: u32) -> Self {
        let (launches, regions, views) = Default::default();
        Self { driver, device, launches, regions, views, bytes: 0 }
    }

    /// Bytes that are copied.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether another process waits for some of it to be closed: it is not to be held for long.
    pub fn is_borrowed(&self) -> bool {
        let mut devices = self.regions.iter().filter_map(|region| region.device());
        devices.any(DeviceMemory::is_opened)
    }

    pub(super) fn touches(&self, region: &Arc<Region>) -> bool {
        self.regions.iter().any(|held| Arc::ptr_eq(held, region))
    }
}

fn keep<T>(held: &mut Vec<Arc<T>>, one: &Arc<T>) -> bool {
    let is_held = held.iter().rev().take(HELD_LOOKED_AT).any(|held| Arc::ptr_eq(held, one));
    if !is_held {
        held.push(one.clone());
    }
    !is_held
}

impl CopyWork {
    /// Whether a GPU has to make it: one end is on one, and the other isn't another process's own
    /// memory, which no GPU reaches.
    pub fn is_on_gpu(&self) -> bool {
        self.driver().is_some()
    }

    /// The number of the GPU that makes it; none where the CPU does.
    pub(crate) fn gpu(&self) -> Option<u32> {
        self.driver().map(|(_, device)| device)
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
        // What can't be reached is copied by another launch.
        let _ = (source, self.target.region().reach(driver));
        Some(device)
    }

    fn source_device(&self) -> Option<&DeviceMemory> {
        match &self.source {
            Source::Region(slice) => slice.region().device(),
            Source::View(_) | Source::Process(_) => None,
        }
    }

    /// The driver and the device that make it: the target's, since it is the one that answers for
    /// the memory, unless only the source's reaches both ends.
    fn driver(&self) -> Option<(&Arc<dyn Driver>, u32)> {
        if let Source::Process(_) = self.source {
            return None;
        }
        let device = match (self.source_device(), self.target.region().device()) {
            (Some(source), Some(target)) => {
                let is_sources =
                    !source.is_reached_by(target.device()) && target.is_reached_by(source.device());
                if is_sources { source } else { target }
            }
            (source, target) => target.or(source)?,
        };
        Some((device.driver(), device.device()))
    }

    /// What lies between the device that makes it and the memory.
    fn way(&self, device: u32) -> Way {
        match (self.source_device(), self.target.region().device()) {
            (Some(source), Some(target)) => {
                let is_far = (source.device(), target.device()) != (device, device);
                if is_far { Way::OtherGpu } else { Way::SameGpu }
            }
            _ => Way::Host,
        }
    }

    /// Names the two regions as long as they are held.
    fn pair(&self) -> (usize, usize) {
        let source = match &self.source {
            Source::Region(slice) => Arc::as_ptr(slice.region()).addr(),
            Source::View(slice) => Arc::as_ptr(slice.view()).addr(),
            Source::Process(_) => 0,
        };
        (source, Arc::as_ptr(self.target.region()).addr())
    }

    /// Where the source is, for a device; nowhere where it is another process's own.
    fn from(&self) -> Option<u64> {
        match &self.source {
            Source::Region(slice) => Some(slice.addr()),
            Source::View(slice) => Some(slice.addr()),
            Source::Process(_) => None,
        }
    }

    /// # Errors
    /// Refused: one end is held by a GPU that `device` doesn't reach.
    fn check_reach(&self, device: u32) -> Result<(), Failure> {
        let ends = [self.source_device(), self.target.region().device()];
        match ends.into_iter().flatten().find(|far| !far.is_reached_by(device)) {
            None => Ok(()),
            Some(far) => {
                let far = far.device();
                let why = format!("GPU {device} does not reach this memory of GPU {far}");
                Err(Failure::refused("copy", why))
            }
        }
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

#[cfg(all(test, feature = "sim"))]
mod tests;
