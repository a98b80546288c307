//! Bodies on their way from a receive to where they belong. Those of GPUs come in blocks of pinned
//! memory, headers and all, and one launch brings those of several receives to their places, while
//! more comes; none of them is acknowledged before, and nothing that stands behind them is told.

use std::collections::VecDeque;
use std::sync::Arc;

use kvrail_reactors::cuda::{Driver, Failure, Landing};
use kvrail_reactors::region::{Region, Slice};

use super::wire::Version;
use crate::limits::SMALL_ROOM_BYTES;
use crate::memory::grant::Use;

/// Bytes that wait for a launch at most: an H100 takes 30 us for so many, and 12 us for few.
const WAITING_MAX_BYTES: usize = 1 << 20;

/// Receives that wait for a launch at most, since each has a block.
const WAITING_MAX_RECEIVES: u32 = 4;

/// Bytes that have come, wherever they stand.
pub(super) enum Came<'a> {
    Bytes(&'a [u8]),
    Block(Slice),
}

impl Came<'_> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Block(block) => block.len(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn advance(&mut self, count: usize) {
        match self {
            Self::Bytes(bytes) => *bytes = &bytes[count..],
            Self::Block(block) => block.advance(count),
        }
    }

    /// Copies the first bytes, as many as there is room for; returns how many.
    pub(super) fn copy_to(&self, room: &mut [u8]) -> usize {
        let count = self.len().min(room.len());
        match self {
            Self::Bytes(bytes) => room[..count].copy_from_slice(&bytes[..count]),
            Self::Block(block) => {
                block.read(0, &mut room[..count]).expect("a block of host memory has its bytes");
            }
        }
        count
    }

    /// Appends the first bytes, `most` of them where there are so many; returns how many.
    pub(super) fn append_to(&self, all: &mut Vec<u8>, most: usize) -> usize {
        let (start, count) = (all.len(), self.len().min(most));
        all.resize(start + count, 0);
        self.copy_to(&mut all[start..])
    }

    /// Stores the first `count` bytes in host memory that has room for them.
    pub(super) fn store(&self, target: &Slice, count: usize) {
        match self {
            Self::Bytes(bytes) => target.write(0, &bytes[..count]).expect("host memory with room"),
            Self::Block(block) => {
                let mut now = block.clone();
                now.truncate(count);
                now.copy_to(target);
            }
        }
    }

    /// Has as many of the first bytes as `target` takes brought to a GPU.
    fn bring(&self, target: Slice, landing: &mut Landing) -> Result<(), Failure> {
        match self {
            Self::Bytes(bytes) => landing.bring_bytes(&bytes[..target.len()], target),
            Self::Block(block) => {
                let mut now = block.clone();
                now.truncate(target.len());
                landing.bring(now, target)
            }
        }
    }
}

/// A connection's bodies for GPUs.
#[derive(Debug, Default)]
pub(super) struct Storing {
    /// Where the receive under way goes.
    block: Option<Slice>,
    /// Who brings the last body to its place, if a GPU's driver does.
    driver: Option<Arc<dyn Driver>>,
    /// The last receive brought more than the room for small requests holds.
    is_streaming: bool,
    /// Bodies are on their way, by launches after so many.
    since: Option<u64>,
    /// What of them waits for a launch, in bytes and receives.
    waiting_bytes: usize,
    waiting_receives: u32,
    /// The regions that bodies are on their way to, by where they are, each with the last launch
    /// that brings any.
    targets: Vec<(usize, u64)>,
    /// Those that have come wholly, oldest first.
    held: VecDeque<Held>,
}

/// A body that is on its way.
#[derive(Debug)]
struct Held {
    /// The launch that it comes by.
    launch: u64,
    /// How many replies stand before its own, or before those that its end is told by.
    before: usize,
    has_answer: bool,
    /// What it is stored under.
    _used: Option<Use>,
}

impl Storing {
    /// A body of this target begins.
    pub(super) fn begin(&mut self, target: &Slice) {
        if self.driver.is_some() || target.driver().is_some() {
            self.driver = target.driver().cloned();
        }
    }

    /// Takes a block for the next receive: where it goes on with a GPU's body, or behind a lot.
    pub(super) fn lend(&mut self, body: Option<&Slice>, landing: &mut Landing) {
        self.block = None;
        let driver = match body {
            Some(target) => target.driver(),
            None => self.driver.as_ref().filter(|_| self.is_streaming),
        };
        self.block = driver.and_then(|driver| landing.lend(driver));
    }

    /// Where the next receive goes, if not to memory of its own.
    pub(super) fn block(&self) -> Option<&Slice> {
        self.block.as_ref()
    }

    /// So many bytes were received; the block that they stand in.
    pub(super) fn received(&mut self, count: usize) -> Option<Slice> {
        self.is_streaming = count >= SMALL_ROOM_BYTES;
        let mut block = self.block.take()?;
        block.truncate(count);
        Some(block)
    }

    /// Has as many bytes as `target` takes brought there.
    pub(super) fn bring(
        &mut self,
        came: &Came<'_>,
        target: Slice,
        landing: &mut Landing,
    ) -> Result<(), Failure> {
        self.since.get_or_insert(landing.begun());
        self.waiting_bytes += target.len();
        let region = Arc::as_ptr(target.region()).addr();
        let brought = came.bring(target, landing);
        let launch = landing.last();
        match self.targets.iter_mut().find(|(known, _)| *known == region) {
            Some((_, last)) => *last = launch,
            None => self.targets.push((region, launch)),
        }
        brought
    }

    /// All of a body is on its way; `before` replies stand before its own.
    pub(super) fn await_landing(
        &mut self,
        (version, before): (Version, usize),
        used: Option<Use>,
        landing: &Landing,
    ) {
        let (launch, has_answer) = (landing.last(), version == Version::V2);
        self.held.push_back(Held { launch, before, has_answer, _used: used });
    }

    /// How many replies may be sent: they don't say that a body is in its place which is not yet.
    pub(super) fn sendable(&self) -> usize {
        self.held.front().map_or(usize::MAX, |held| held.before)
    }

    /// So many replies were sent.
    pub(super) fn sent(&mut self, replies: usize) {
        self.held.iter_mut().for_each(|held| held.before -= replies);
    }

    /// Whether bodies are on their way.
    pub(super) fn is_under_way(&self) -> bool {
        self.since.is_some()
    }

    /// Whether some are on their way to `region`.
    pub(super) fn touches(&self, region: &Region) -> bool {
        self.targets.iter().any(|(known, _)| *known == std::ptr::from_ref(region).addr())
    }

    /// A receive was looked at; whether what has come by now is to be brought at once, rather than
    /// with what the socket may have already.
    pub(super) fn is_enough(&mut self) -> bool {
        self.waiting_receives += u32::from(self.is_under_way());
        self.waiting_bytes >= WAITING_MAX_BYTES || self.waiting_receives >= WAITING_MAX_RECEIVES
    }

    /// Begins to bring what waits, once what was begun before is over.
    ///
    /// # Errors
    /// A GPU's: nobody knows which bodies are in their places.
    pub(super) fn launch(&mut self, landing: &mut Landing) -> Result<(), Failure> {
        (self.waiting_bytes, self.waiting_receives) = (0, 0);
        landing.begin()?;
        // What is given up is on its way no more.
        self.release(landing).inspect_err(|_| landing.wait())
    }

    /// Brings what is on its way to its place.
    ///
    /// # Errors
    /// As [`Storing::launch`].
    pub(super) fn land(&mut self, landing: &mut Landing) -> Result<(), Failure> {
        landing.finish()?;
        self.release(landing)
    }

    /// Lets go of what is in its place.
    fn release(&mut self, landing: &Landing) -> Result<(), Failure> {
        let Some(since) = self.since else { return Ok(()) };
        // Others' bodies, and some of ours, may have gone before.
        if let Some(failure) = landing.failed_after(since) {
            return Err(failure.clone());
        }
        let ended = landing.ended();
        self.held.drain(..self.held.partition_point(|held| held.launch <= ended));
        self.targets.retain(|(_, last)| *last > ended);
        self.since = (!self.targets.is_empty()).then_some(ended);
        if self.since.is_none() {
            (self.waiting_bytes, self.waiting_receives) = (0, 0);
        }
        Ok(())
    }

    /// None is under way any more. How many replies stand before those of each that was, and
    /// whether it has one of its own.
    pub(super) fn give_up(&mut self) -> impl Iterator<Item = (usize, bool)> {
        (self.since, self.waiting_bytes, self.waiting_receives) = Default::default();
        self.targets.clear();
        self.held.drain(..).map(|held| (held.before, held.has_answer))
    }
}
