//! What is under way on one device: groups that wait to be added to its stream, and those that
//! were.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::driver::{Driver, Event, Failure, FailureKind, Stream};
use super::reactor::{Group, GroupDone, Order, Recorded};
use crate::doorbell::Doorbell;
use crate::region::Region;

/// Launches that are under way on one device before more are added. The driver takes about a
/// thousand and then waits; 64 are some 150 us of adding, and more than hide that.
const LAUNCHES_MAX: usize = 64;

/// Before a device is asked again whether it is done, when it can't say: while another thread
/// captures a graph, say, which takes milliseconds.
const DRAIN_PAUSE: Duration = Duration::from_millis(1);

/// The work of one device.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) driver: Arc<dyn Driver>,
    pub(super) device: u32,
    /// Its groups wait for events of the caller's.
    pub(super) is_behind: bool,
    stream: Box<dyn Stream>,
    /// Not wholly added yet, oldest first.
    pub(super) waiting: VecDeque<Waiting>,
    /// Added, oldest first.
    flying: VecDeque<Flying>,
    /// Launches before each mark that has not passed; none where it could not be set yet.
    launched: VecDeque<(Option<u64>, usize)>,
    last_mark: u64,
    /// The last mark that is known to have passed.
    passed: u64,
    /// The mark behind which somebody rings.
    rung_mark: u64,
    lost: Option<Failure>,
}

#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) name: u64,
    pub(super) group: Group,
    /// What is still to be waited for, and to be recorded.
    order: Order,
    /// Launches that were added, or given up.
    pub(super) launched: usize,
    /// Addresses that were taken back.
    pub(super) taken: Vec<Range<u64>>,
    pub(super) error: Option<Failure>,
}

#[derive(Debug)]
struct Flying {
    /// None where it could not be set yet.
    mark: Option<u64>,
    done: GroupDone,
}

impl Waiting {
    pub(super) fn new(name: u64, group: Group, order: Order) -> Self {
        Self { name, group, order, launched: 0, taken: Vec::new(), error: None }
    }

    fn is_added(&self) -> bool {
        self.order.after.is_none() && self.launched >= self.group.pages.launches.len()
    }

    /// No more of it is added.
    fn give_up(&mut self) {
        self.order.after = None;
        self.launched = self.group.pages.launches.len();
    }

    /// Adds launches, so many at most; returns how many.
    fn add(&mut self, stream: &mut dyn Stream, blocks: u32, most: usize) -> usize {
        let mut added = self.wait(stream, most);
        while added < most
            && self.order.after.is_none()
            && let Some(launch) = self.group.pages.launches.get(self.launched)
        {
            self.launched += 1;
            let launch = match self.taken.is_empty() {
                true => Some(Cow::Borrowed(launch)),
                false => launch.without(&self.taken).map(Cow::Owned),
            };
            let Some(launch) = launch else { continue };
            // SAFETY: the group owns its pages, and with them every region that the launch names.
            // It is let go of only behind a mark that has passed, behind `drain`, or when the
            // device is lost.
            if let Err(failure) = unsafe { stream.enqueue(&launch, blocks) } {
                self.error = Some(failure);
                self.give_up();
            }
            added += 1;
        }
        added
    }

    /// Has the stream wait for its event, which counts as a launch.
    fn wait(&mut self, stream: &mut dyn Stream, most: usize) -> usize {
        let Some(event) = self.order.after.filter(|_| most > 0) else { return 0 };
        match stream.wait(&event) {
            Ok(()) => self.order.after = None,
            // Nothing may begin before it.
            Err(failure) => {
                self.error.get_or_insert(failure);
                self.give_up();
            }
        }
        1
    }
}

impl Line {
    pub(super) fn new(
        driver: Arc<dyn Driver>,
        device: u32,
        is_behind: bool,
    ) -> Result<Self, Failure> {
        let stream = driver.stream(device)?;
        Ok(Self {
            driver,
            device,
            is_behind,
            stream,
            waiting: VecDeque::new(),
            flying: VecDeque::new(),
            launched: VecDeque::new(),
            last_mark: 0,
            passed: 0,
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
            added += waiting.add(&mut *self.stream, blocks, room - added);
            if !waiting.is_added() {
                break;
            }
            let Some(waiting) = self.waiting.pop_front() else { break };
            let Waiting { group: Group { tag, pages }, order, error, .. } = waiting;
            if let Some(Recorded { event, told }) = order.before {
                told(self.record(&event));
            }
            // Behind what was added of it, whatever failed.
            let mark = self.mark();
            self.flying.push_back(Flying { mark, done: GroupDone { tag, error, pages } });
        }
        if added > 0 {
            let mark = match self.waiting.is_empty() {
                true => self.flying.back().and_then(|flying| flying.mark),
                false => self.mark(),
            };
            self.launched.push_back((mark, added));
        }
        added
    }

    /// Records an event of the caller's behind all that was added.
    fn record(&mut self, event: &Event) -> Result<(), Failure> {
        match &self.lost {
            Some(failure) => Err(failure.clone()),
            None => self.stream.record(event).inspect_err(|failure| self.failed(failure.clone())),
        }
    }

    /// A device that is lost gets no more work.
    fn give_up(&mut self) {
        for waiting in &mut self.waiting {
            waiting.give_up();
            waiting.error = waiting.error.take().or_else(|| self.lost.clone());
        }
    }

    /// Sets a mark; none where that is to be tried again.
    fn mark(&mut self) -> Option<u64> {
        if self.lost.is_some() {
            return None;
        }
        match self.stream.mark() {
            Ok(mark) => {
                self.last_mark = mark;
                Some(mark)
            }
            Err(failure) => {
                self.failed(failure);
                None
            }
        }
    }

    /// Sets the marks that could not be set before: all that was added stands before the one that
    /// is set now.
    fn mark_again(&mut self) {
        let launched = self.launched.iter_mut().map(|(mark, _)| mark);
        let flying = self.flying.iter_mut().map(|flying| &mut flying.mark);
        if launched.chain(flying).any(|mark| mark.is_none())
            && let mark @ Some(_) = self.mark()
        {
            let launched = self.launched.iter_mut().map(|(mark, _)| mark);
            let flying = self.flying.iter_mut().map(|flying| &mut flying.mark);
            launched.chain(flying).for_each(|known| *known = known.or(mark));
        }
    }

    /// A call failed. Only of a device that is lost it is known that whatever was under way is
    /// over.
    fn failed(&mut self, failure: Failure) {
        if failure.kind == FailureKind::Lost {
            self.lost.get_or_insert(failure);
        }
    }

    fn passed(&mut self) -> u64 {
        if self.lost.is_none() {
            match self.stream.passed() {
                Ok(passed) => self.passed = passed,
                Err(failure) => self.failed(failure),
            }
        }
        if self.lost.is_some() { u64::MAX } else { self.passed }
    }

    /// Waits until nothing of it touches any memory any more.
    fn drain(&mut self) {
        while self.lost.is_none()
            && let Err(failure) = self.stream.drain()
        {
            self.failed(failure);
            std::thread::sleep(DRAIN_PAUSE);
        }
    }

    /// Whether what stands before this mark is done.
    fn is_over(&self, mark: Option<u64>, passed: u64) -> bool {
        self.lost.is_some() || mark.is_some_and(|mark| mark <= passed)
    }

    /// Takes back what has ended, at most `budget` groups.
    pub(super) fn end(&mut self, budget: usize, done: &mut Vec<GroupDone>) {
        if self.launched.is_empty() && self.flying.is_empty() {
            return;
        }
        self.mark_again();
        let passed = self.passed();
        while self.launched.front().is_some_and(|(mark, _)| self.is_over(*mark, passed)) {
            self.launched.pop_front();
        }
        for _ in 0..budget {
            let front = self.flying.front();
            if front.is_none_or(|flying| !self.is_over(flying.mark, passed)) {
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
        // A mark that is to be set again: nobody would ring.
        let Some(first) = first else { return false };
        if self.rung_mark < self.last_mark {
            if let Err(failure) = self.stream.ring_behind(doorbell) {
                self.failed(failure);
                return false;
            }
            self.rung_mark = self.last_mark;
        }
        self.passed() < first
    }

    /// Drops what wasn't added of these groups; the rest comes out when it has ended.
    pub(super) fn fence(&mut self, mut is_meant: impl FnMut(&Waiting) -> bool) {
        for waiting in self.waiting.iter_mut().filter(|waiting| is_meant(waiting)) {
            waiting.give_up();
            waiting.error.get_or_insert_with(|| Failure::refused("copy", "it was fenced"));
        }
    }

    /// Nothing of `region` is touched any more when this returns. What of it was not added is left
    /// out; all else goes on.
    pub(super) fn settle(&mut self, region: &Arc<Region>) {
        let addresses = region.addr()..region.addr() + region.len() as u64;
        let touches = |waiting: &&mut Waiting| waiting.group.pages.touches(region);
        for waiting in self.waiting.iter_mut().filter(touches) {
            waiting.taken.push(addresses.clone());
            waiting.error.get_or_insert_with(Failure::fenced);
        }
        let touches = |flying: &Flying| flying.done.pages.touches(region);
        if self.flying.iter().any(touches) || !self.waiting.is_empty() {
            self.drain();
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // The groups go with the line, so nothing of them may be under way.
        self.drain();
    }
}
