//! What is under way on one device: groups that wait to be added to its stream, and those that
//! were.

use std::collections::VecDeque;
use std::sync::Arc;

use super::driver::{Driver, Failure, Stream};
use super::plan::Launch;
use super::reactor::{Group, GroupDone};
use crate::doorbell::Doorbell;
use crate::region::Region;

/// Launches that are under way on one device before more are added. The driver takes about a
/// thousand and then waits; 64 are some 150 us of adding, and more than hide that.
const LAUNCHES_MAX: usize = 64;

/// The work of one device.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) driver: Arc<dyn Driver>,
    pub(super) device: u32,
    stream: Box<dyn Stream>,
    /// Not wholly added yet, oldest first.
    pub(super) waiting: VecDeque<Waiting>,
    /// Added, oldest first.
    flying: VecDeque<Flying>,
    /// Launches behind each mark that has not passed.
    launched: VecDeque<(u64, usize)>,
    last_mark: u64,
    /// The mark behind which somebody rings.
    rung_mark: u64,
    lost: Option<Failure>,
}

#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) name: u64,
    pub(super) group: Group,
    pub(super) launches: VecDeque<Launch>,
    pub(super) error: Option<Failure>,
}

#[derive(Debug)]
struct Flying {
    mark: u64,
    done: GroupDone,
}

impl Line {
    pub(super) fn new(driver: Arc<dyn Driver>, device: u32) -> Result<Self, Failure> {
        let stream = driver.stream(device)?;
        Ok(Self {
            driver,
            device,
            stream,
            waiting: VecDeque::new(),
            flying: VecDeque::new(),
            launched: VecDeque::new(),
            last_mark: 0,
            rung_mark: 0,
            lost: None,
        })
    }

    fn room(&self) -> usize {
        let launched: usize = self.launched.iter().map(|(_, count)| count).sum();
        LAUNCHES_MAX.saturating_sub(launched)
    }

    /// Adds what there is room for; returns how much.
    pub(super) fn start(&mut self, blocks: u32) -> usize {
        if self.lost.is_some() {
            self.give_up();
        }
        let mut added = 0;
        let room = self.room();
        while let Some(waiting) = self.waiting.front_mut() {
            while added < room
                && let Some(launch) = waiting.launches.pop_front()
            {
                // SAFETY: the group owns its works, and with them every region that the launch
                // names. It is let go of only behind a mark that has passed, or behind `drain`.
                if let Err(failure) = unsafe { self.stream.enqueue(&launch, blocks) } {
                    waiting.error = Some(failure);
                    waiting.launches.clear();
                }
                added += 1;
            }
            if !waiting.launches.is_empty() {
                break;
            }
            let Some(Waiting { group: Group { tag, works }, error, .. }) = self.waiting.pop_front()
            else {
                break;
            };
            // Behind what was added of it, whatever failed.
            let mark = self.mark();
            self.flying.push_back(Flying { mark, done: GroupDone { tag, error, works } });
        }
        if added > 0 {
            let mark = match self.waiting.is_empty() {
                true => self.last_mark,
                false => self.mark(),
            };
            self.launched.push_back((mark, added));
        }
        added
    }

    /// A device that is lost gets no more work.
    fn give_up(&mut self) {
        for waiting in &mut self.waiting {
            waiting.launches.clear();
            waiting.error = waiting.error.take().or_else(|| self.lost.clone());
        }
    }

    fn mark(&mut self) -> u64 {
        if self.lost.is_some() {
            return self.last_mark;
        }
        match self.stream.mark() {
            Ok(mark) => self.last_mark = mark,
            // No mark can be set behind what was added, so it is waited for here.
            Err(failure) => self.lose(failure),
        }
        self.last_mark
    }

    /// The device is lost: whatever was under way is over.
    fn lose(&mut self, failure: Failure) {
        self.stream.drain();
        self.lost = Some(failure);
    }

    fn passed(&mut self) -> u64 {
        if self.lost.is_none() {
            match self.stream.passed() {
                Ok(passed) => return passed,
                Err(failure) => self.lose(failure),
            }
        }
        u64::MAX
    }

    /// Takes back what has ended, at most `budget` groups.
    pub(super) fn end(&mut self, budget: usize, done: &mut Vec<GroupDone>) {
        if self.launched.is_empty() && self.flying.is_empty() {
            return;
        }
        let passed = self.passed();
        while self.launched.front().is_some_and(|(mark, _)| *mark <= passed) {
            self.launched.pop_front();
        }
        for _ in 0..budget {
            if self.flying.front().is_none_or(|flying| flying.mark > passed) {
                return;
            }
            let Some(Flying { done: mut group, .. }) = self.flying.pop_front() else { return };
            group.error = group.error.or_else(|| self.lost.clone());
            done.push(group);
        }
    }

    pub(super) fn arm(&mut self, doorbell: &Arc<Doorbell>) -> bool {
        let has_room = self.room() > 0;
        if self.waiting.front().is_some() && has_room {
            return false;
        }
        let Some((first, _)) = self.launched.front().copied() else {
            return self.flying.is_empty();
        };
        if self.rung_mark < self.last_mark {
            if let Err(failure) = self.stream.ring_behind(doorbell) {
                self.lose(failure);
                return false;
            }
            self.rung_mark = self.last_mark;
        }
        self.passed() < first
    }

    /// Drops what wasn't added of these groups; the rest comes out when it has ended.
    pub(super) fn fence(&mut self, mut is_meant: impl FnMut(&Waiting) -> bool) {
        for waiting in self.waiting.iter_mut().filter(|waiting| is_meant(waiting)) {
            waiting.launches.clear();
            waiting.error.get_or_insert_with(|| Failure::refused("copy", "it was fenced"));
        }
    }

    pub(super) fn settle(&mut self, region: &Arc<Region>) {
        self.fence(|waiting| waiting.group.works.iter().any(|work| work.touches(region)));
        let touches = |flying: &Flying| flying.done.works.iter().any(|work| work.touches(region));
        if self.flying.iter().any(touches) || !self.waiting.is_empty() {
            self.stream.drain();
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // The groups go with the line, so nothing of them may be under way.
        self.stream.drain();
    }
}
