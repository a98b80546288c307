//! Copies inside this process: the reactor contract at its shortest.

use std::collections::VecDeque;

use crate::Reactor;
use crate::region::Slice;

/// Bytes moved before a turn ends: 256 KiB is 10-40 us of copying, so that the shard's other
/// reactors are never kept waiting long, and still 100 times the cost of a turn.
const TURN_BYTES: usize = 256 << 10;

/// Copy `source` onto `target` (as many bytes as the shorter one has).
#[derive(Debug)]
pub struct CopyWork {
    /// Whose work it is; comes back with the completion.
    pub tag: u64,
    /// Where the bytes are.
    pub source: Slice,
    /// Where they go.
    pub target: Slice,
}

/// A copy that has ended.
#[derive(Debug, PartialEq, Eq)]
pub struct CopyDone {
    /// The work's tag.
    pub tag: u64,
    /// Bytes copied; fewer than asked for only after a fence.
    pub copied_bytes: usize,
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
}

impl Copy {
    /// A reactor that holds at most `capacity` pieces of work.
    pub fn new(capacity: usize) -> Self {
        Self { queue: VecDeque::new(), capacity, next_name: 0 }
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
        self.queue.push_back(Job { name, work, copied_bytes: 0 });
        Ok(name)
    }

    fn poll(&mut self, budget: usize, done: &mut Vec<CopyDone>) -> usize {
        let mut room_bytes = TURN_BYTES;
        let mut ended = 0;
        while ended < budget && room_bytes > 0 {
            let Some(job) = self.queue.front_mut() else { break };
            room_bytes -= job.step(room_bytes);
            if job.is_done() {
                done.push(job.done());
                self.queue.pop_front();
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
        let mut source = self.work.source.clone();
        source.truncate(limit);
        let copied = source.copy_to(&self.work.target);
        self.work.source.advance(copied);
        self.work.target.advance(copied);
        self.copied_bytes += copied;
        copied
    }

    fn is_done(&self) -> bool {
        self.work.source.is_empty() || self.work.target.is_empty()
    }

    fn done(&self) -> CopyDone {
        CopyDone { tag: self.work.tag, copied_bytes: self.copied_bytes }
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

    #[test]
    fn work_ends_in_turns_and_full_gives_it_back() {
        let len = 3 * TURN_BYTES + 5;
        let (source, target) = (slice(len, 1), slice(len, 0));
        let mut copy = Copy::new(1);
        let work = |tag| CopyWork { tag, source: source.clone(), target: target.clone() };
        copy.submit(work(1)).unwrap();
        assert_eq!(copy.submit(work(2)).unwrap_err().tag, 2);
        let mut done = Vec::new();
        let mut turns = 0;
        while !copy.arm() {
            assert!(copy.poll(8, &mut done) > 0);
            turns += 1;
        }
        assert_eq!((turns, done), (4, vec![CopyDone { tag: 1, copied_bytes: len }]));
        let mut out = vec![0; len];
        target.read(0, &mut out).unwrap();
        assert!(out.iter().all(|&byte| byte == 1));
    }

    #[test]
    fn a_fence_ends_work_early_and_says_how_far_it_came() {
        let len = 4 * TURN_BYTES;
        let (source, target) = (slice(len, 1), slice(len, 0));
        let mut copy = Copy::new(2);
        let name = copy.submit(CopyWork { tag: 9, source, target: target.clone() }).unwrap();
        let mut done = Vec::new();
        copy.poll(1, &mut done);
        assert!(done.is_empty());
        copy.fence(name);
        copy.poll(1, &mut done);
        assert_eq!(done, [CopyDone { tag: 9, copied_bytes: TURN_BYTES }]);
        let mut byte = [9];
        target.read(TURN_BYTES, &mut byte).unwrap();
        assert_eq!(byte, [0], "nothing is stored behind the fence");
    }
}
