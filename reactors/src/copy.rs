//! Copies into memory of this process, from its own or from another process's: the reactor
//! contract at its shortest.

use std::collections::VecDeque;
use std::io;

use crate::Reactor;
use crate::host::process::{ProcessSlice, READ_MAX_PARTS};
use crate::host::view::ViewSlice;
use crate::region::Slice;

/// Bytes moved before a turn ends: 256 KiB is 10-40 us of copying, so that the shard's other
/// reactors are never kept waiting long, and still 100 times the cost of a turn.
const TURN_BYTES: usize = 256 << 10;

/// Where the bytes of a copy are.
#[derive(Debug, Clone)]
pub enum Source {
    /// In a region of this process.
    Region(Slice),
    /// In a peer's region that is mapped here.
    View(ViewSlice),
    /// In another process's memory.
    Process(ProcessSlice),
}

/// Copy `source` onto `target` (as many bytes as the shorter one has).
#[derive(Debug)]
pub struct CopyWork {
    /// Whose work it is; comes back with the completion.
    pub tag: u64,
    /// Where the bytes are.
    pub source: Source,
    /// Where they go.
    pub target: Slice,
}

/// A copy that has ended.
#[derive(Debug)]
pub struct CopyDone {
    /// The work's tag.
    pub tag: u64,
    /// Bytes copied; fewer than asked for only after a fence or an error.
    pub copied_bytes: usize,
    /// Why the source could not be read to its end.
    pub error: Option<io::Error>,
}

impl Source {
    /// Length in bytes.
    pub fn len(&self) -> usize {
        match self {
            Self::Region(slice) => slice.len(),
            Self::View(slice) => slice.len(),
            Self::Process(slice) => slice.len(),
        }
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies the first `min(len)` bytes onto those of `target`; returns how many, which is fewer
    /// only where another process's memory ends.
    ///
    /// # Errors
    /// That of [`ProcessSlice::copy_to`]; the others can't fail.
    pub fn copy_to(&self, target: &Slice) -> io::Result<usize> {
        match self {
            Self::Region(slice) => Ok(slice.copy_to(target)),
            Self::View(slice) => Ok(slice.copy_to(target)),
            Self::Process(slice) => slice.copy_to(target),
        }
    }

    fn advance(&mut self, count: usize) {
        match self {
            Self::Region(slice) => slice.advance(count),
            Self::View(slice) => slice.advance(count),
            Self::Process(slice) => slice.advance(count),
        }
    }

    fn truncate(&mut self, len: usize) {
        match self {
            Self::Region(slice) => slice.truncate(len),
            Self::View(slice) => slice.truncate(len),
            Self::Process(slice) => slice.truncate(len),
        }
    }
}

impl From<Slice> for Source {
    fn from(slice: Slice) -> Self {
        Self::Region(slice)
    }
}

impl CopyWork {
    /// Does several in their order, here and now; returns how each ended.
    pub fn run_all(works: Vec<CopyWork>) -> Vec<CopyDone> {
        let mut done = Vec::with_capacity(works.len());
        let mut works = VecDeque::from(works);
        while !works.is_empty() {
            let count = readable_at_once(works.iter(), usize::MAX);
            if count > 1 && read_at_once(works.range(..count)).is_ok() {
                let read = works.drain(..count);
                done.extend(read.map(|work| CopyDone::complete(work.tag, work.bytes())));
            } else {
                done.extend(works.pop_front().map(CopyWork::run));
            }
        }
        done
    }

    /// How many bytes it moves.
    pub fn bytes(&self) -> usize {
        self.source.len().min(self.target.len())
    }

    /// Does it all here and now; returns how many bytes were copied, and why not all.
    pub fn run(mut self) -> CopyDone {
        let mut copied_bytes = 0;
        let mut error = None;
        while error.is_none() && self.bytes() > 0 {
            let copied = self.source.copy_to(&self.target);
            match self.advance(copied) {
                Ok(copied) => copied_bytes += copied,
                Err(failed) => error = Some(failed),
            }
        }
        CopyDone { tag: self.tag, copied_bytes, error }
    }

    /// Copies at most `limit` bytes.
    fn step(&mut self, limit: usize) -> io::Result<usize> {
        let mut source = self.source.clone();
        source.truncate(limit);
        self.advance(source.copy_to(&self.target))
    }

    fn advance(&mut self, copied: io::Result<usize>) -> io::Result<usize> {
        match copied {
            // Nothing to read where there should be more: the other process's memory ends.
            Ok(0) => Err(io::Error::from_raw_os_error(libc::EFAULT)),
            Ok(copied) => {
                self.source.advance(copied);
                self.target.advance(copied);
                Ok(copied)
            }
            Err(error) => Err(error),
        }
    }
}

impl CopyDone {
    fn complete(tag: u64, copied_bytes: usize) -> Self {
        Self { tag, copied_bytes, error: None }
    }
}

/// How many of the first works are one process's memory and fit into one call of `limit` bytes.
fn readable_at_once<'a>(works: impl Iterator<Item = &'a CopyWork>, limit: usize) -> usize {
    let (mut first, mut bytes) = (None, 0usize);
    let mut fits = |work: &'a CopyWork| {
        let Source::Process(source) = &work.source else { return false };
        if work.target.device().is_some() {
            return false;
        }
        bytes = bytes.saturating_add(work.bytes());
        bytes <= limit && first.get_or_insert(source).is_with(source)
    };
    works.take(READ_MAX_PARTS).take_while(|work| fits(work)).count()
}

fn read_at_once<'a>(works: impl Iterator<Item = &'a CopyWork>) -> io::Result<usize> {
    ProcessSlice::copy_all(works.filter_map(|work| match &work.source {
        Source::Process(source) => Some((source, &work.target)),
        _ => None,
    }))
}

/// Copies queued work a turn's worth at a time on the thread that polls it.
#[derive(Debug)]
pub struct Copy {
    queue: VecDeque<Job>,
    capacity: usize,
    next_name: u64,
}

#[derive(Debug)]
struct Job {
    name: u64,
    work: CopyWork,
    copied_bytes: usize,
    error: Option<io::Error>,
}

impl Copy {
    /// A reactor that holds at most `capacity` pieces of work.
    pub fn new(capacity: usize) -> Self {
        Self { queue: VecDeque::new(), capacity, next_name: 0 }
    }

    /// Reads as much of the queue as one call can; returns how many pieces of work it ended.
    fn read_at_once(&self, limit: usize, budget: usize) -> usize {
        let works = || self.queue.iter().map(|job| &job.work);
        let count = readable_at_once(works(), limit).min(budget);
        // One is as fast by itself; and a failure is told apart by going one by one.
        if count > 1 && read_at_once(works().take(count)).is_ok() { count } else { 0 }
    }
}

impl Reactor for Copy {
    type Work = CopyWork;
    type Done = CopyDone;

    fn submit(&mut self, work: CopyWork) -> Result<u64, CopyWork> {
        if self.queue.len() >= self.capacity {
            return Err(work);
        }
        let name = self.next_name;
        self.next_name += 1;
        self.queue.push_back(Job { name, work, copied_bytes: 0, error: None });
        Ok(name)
    }

    fn poll(&mut self, budget: usize, done: &mut Vec<CopyDone>) -> usize {
        let mut room_bytes = TURN_BYTES;
        let mut ended = 0;
        while ended < budget && room_bytes > 0 {
            let read = self.read_at_once(room_bytes, budget - ended);
            if read > 0 {
                for job in self.queue.drain(..read) {
                    let bytes = job.work.bytes();
                    room_bytes -= bytes;
                    done.push(CopyDone::complete(job.work.tag, job.copied_bytes + bytes));
                }
                ended += read;
                continue;
            }
            let Some(job) = self.queue.front_mut() else { break };
            room_bytes -= job.step(room_bytes);
            if job.is_done() {
                done.extend(self.queue.pop_front().map(Job::done));
                ended += 1;
            }
        }
        ended + usize::from(room_bytes < TURN_BYTES)
    }

    fn arm(&mut self) -> bool {
        self.queue.is_empty()
    }

    fn fence(&mut self, name: u64) {
        if let Some(job) = self.queue.iter_mut().find(|job| job.name == name) {
            job.work.source.truncate(0);
        }
    }
}

impl Job {
    /// Copies at most `limit` bytes.
    fn step(&mut self, limit: usize) -> usize {
        if self.work.bytes() == 0 {
            return 0;
        }
        match self.work.step(limit) {
            Ok(copied) => {
                self.copied_bytes += copied;
                copied
            }
            Err(error) => {
                self.error = Some(error);
                0
            }
        }
    }

    fn is_done(&self) -> bool {
        self.error.is_some() || self.work.bytes() == 0
    }

    fn done(self) -> CopyDone {
        CopyDone { tag: self.work.tag, copied_bytes: self.copied_bytes, error: self.error }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::region::Region;

    fn slice(len: usize, fill: u8) -> Slice {
        let slice = Slice::new(Arc::new(Region::allocate(len, None).unwrap()), 0, len).unwrap();
        slice.write(0, &vec![fill; len]).unwrap();
        slice
    }

    fn ended(done: &[CopyDone]) -> Vec<(u64, usize)> {
        done.iter().map(|done| (done.tag, done.copied_bytes)).collect()
    }

    #[test]
    fn a_source_that_ends_early_is_an_error_and_the_next_copy_goes_on() {
        use crate::host::process::{Process, ProcessSlice, Token};
        let ourselves = Process::new(std::process::id() as i32, Token::new().place()).unwrap();
        let ourselves = Arc::new(ourselves);
        let (good, target) = (slice(8, 3), slice(8, 0));
        let mut copy = Copy::new(2);
        let nowhere = Source::Process(ProcessSlice::new(ourselves, 8, 8));
        copy.submit(CopyWork { tag: 1, source: nowhere, target: target.clone() }).unwrap();
        copy.submit(CopyWork { tag: 2, source: good.into(), target: target.clone() }).unwrap();
        let mut done = Vec::new();
        while !copy.arm() {
            copy.poll(8, &mut done);
        }
        assert_eq!(ended(&done), [(1, 0), (2, 8)]);
        assert!(done[0].error.is_some() && done[1].error.is_none());
    }

    #[test]
    fn work_ends_in_turns_and_full_gives_it_back() {
        let len = 3 * TURN_BYTES + 5;
        let (source, target) = (slice(len, 1), slice(len, 0));
        let mut copy = Copy::new(1);
        let work = |tag| CopyWork { tag, source: source.clone().into(), target: target.clone() };
        copy.submit(work(1)).unwrap();
        assert_eq!(copy.submit(work(2)).unwrap_err().tag, 2);
        let mut done = Vec::new();
        let mut turns = 0;
        while !copy.arm() {
            assert!(copy.poll(8, &mut done) > 0);
            turns += 1;
        }
        assert_eq!((turns, ended(&done)), (4, vec![(1, len)]));
        let mut out = vec![0; len];
        target.read(0, &mut out).unwrap();
        assert!(out.iter().all(|&byte| byte == 1));
    }

    #[test]
    fn a_fence_ends_work_early_and_says_how_far_it_came() {
        let len = 4 * TURN_BYTES;
        let (source, target) = (slice(len, 1), slice(len, 0));
        let mut copy = Copy::new(2);
        let name = copy
            .submit(CopyWork { tag: 9, source: source.into(), target: target.clone() })
            .unwrap();
        let mut done = Vec::new();
        copy.poll(1, &mut done);
        assert!(done.is_empty());
        copy.fence(name);
        copy.poll(1, &mut done);
        assert_eq!(ended(&done), [(9, TURN_BYTES)]);
        let mut byte = [9];
        target.read(TURN_BYTES, &mut byte).unwrap();
        assert_eq!(byte, [0], "nothing is stored behind the fence");
    }
}
