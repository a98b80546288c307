//! Bytes of GPUs on their way through sockets: each send and receive borrows a block of pinned host
//! memory, which a GPU fills before the one and empties behind the other. A send may be short: its
//! owner sends the rest, by the next block.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use slab::Slab;

use super::{Direction, Done, Kind, Work};
use crate::Reactor;
use crate::copy::CopyWork;
use crate::cuda::{Cuda, Failure, Group, GroupDone};
use crate::doorbell::Doorbell;
use crate::region::{Region, Slice};
use crate::vector::{Staged, StagedPair};

/// Bytes of a block: as long as the sends that are asked for, so that each takes one.
const BLOCK_BYTES: usize = 1 << 20;

/// Blocks at most. A receive holds one until its bytes are there: so many peers may dawdle before
/// others wait for them.
const BLOCKS_MAX: usize = 64;

/// Sends and receives that are under way or wait for a block.
const OPS_MAX: usize = 4096;

/// Operations that pass through host memory.
pub(super) struct Staging {
    cuda: Cuda,
    ops: Slab<Op>,
    /// Those that wait for a block, oldest first.
    waiting: VecDeque<usize>,
    /// Those that the sockets' reactor had no room for.
    unsent: VecDeque<usize>,
    blocks: Vec<Slice>,
    made: usize,
    ended: Vec<Done>,
    groups_done: Vec<GroupDone>,
}

struct Op {
    /// As it was asked for. The vector keeps the GPU's memory.
    work: Work,
    block: Option<Slice>,
    /// What stands in the block; the vector is the sockets' meanwhile.
    staged: Staged,
    state: State,
    is_fenced: bool,
}

enum State {
    Waiting,
    /// A GPU fills the block.
    Loading,
    /// It is the sockets' reactor's, by this name.
    Moving(u64),
    /// A GPU empties the block, into which so many bytes came.
    Storing(usize),
}

/// What an operation is called, here and by the sockets' reactor: counted from the top, where no
/// ticket and no name of theirs is.
fn name(index: usize) -> u64 {
    u64::MAX - index as u64
}

fn index(name: u64) -> Option<usize> {
    usize::try_from(u64::MAX - name).ok().filter(|index| *index < OPS_MAX)
}

impl Staging {
    pub(super) fn new(doorbell: Arc<Doorbell>, blocks: u32) -> Self {
        Self {
            cuda: Cuda::new(OPS_MAX, doorbell).with_blocks(blocks),
            ops: Slab::new(),
            waiting: VecDeque::new(),
            unsent: VecDeque::new(),
            blocks: Vec::new(),
            made: 0,
            ended: Vec::new(),
            groups_done: Vec::new(),
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.ops.is_empty() && self.ended.is_empty()
    }

    pub(super) fn has(&self, name: u64) -> bool {
        index(name).is_some_and(|index| self.ops.contains(index))
    }

    pub(super) fn submit(&mut self, work: Work, kind: &mut Kind) -> Result<u64, Work> {
        if self.ops.len() >= OPS_MAX {
            return Err(work);
        }
        let staged = Staged::default();
        let op = Op { work, block: None, staged, state: State::Waiting, is_fenced: false };
        let index = self.ops.insert(op);
        self.waiting.push_back(index);
        self.begin(kind);
        Ok(name(index))
    }

    pub(super) fn poll(&mut self, budget: usize, done: &mut Vec<Done>, kind: &mut Kind) -> usize {
        let mut moved = self.poll_sockets(budget, done, kind) + self.poll_gpus(kind);
        for _ in 0..self.unsent.len() {
            let Some(index) = self.unsent.pop_front() else { break };
            self.to_sockets(index, kind);
            moved += usize::from(!self.unsent.contains(&index));
        }
        moved += self.ended.len();
        done.append(&mut self.ended);
        moved
    }

    fn poll_sockets(&mut self, budget: usize, done: &mut Vec<Done>, kind: &mut Kind) -> usize {
        let before = done.len();
        let moved = kind.poll(budget, done);
        for ended in done.split_off(before) {
            match index(ended.tag).filter(|index| self.ops.contains(*index)) {
                Some(index) => self.moved(index, ended, kind),
                None => done.push(ended),
            }
        }
        moved
    }

    fn poll_gpus(&mut self, kind: &mut Kind) -> usize {
        let mut groups = std::mem::take(&mut self.groups_done);
        let moved = self.cuda.poll(usize::MAX, &mut groups);
        for group in groups.drain(..) {
            self.copied(group, kind);
        }
        self.groups_done = groups;
        moved
    }

    pub(super) fn arm(&mut self) -> bool {
        self.ended.is_empty() && self.unsent.is_empty() && self.cuda.arm()
    }

    pub(super) fn fence(&mut self, name: u64, kind: &mut Kind) {
        let Some(index) = index(name).filter(|index| self.ops.contains(*index)) else { return };
        self.ops[index].is_fenced = true;
        match self.ops[index].state {
            State::Moving(inner) => kind.fence(inner),
            State::Waiting => {
                self.waiting.retain(|waiting| *waiting != index);
                self.finish(index, Err(fenced()), kind);
            }
            State::Loading if self.unsent.contains(&index) => {
                self.unsent.retain(|unsent| *unsent != index);
                self.finish(index, Err(fenced()), kind);
            }
            // It ends by itself, soon.
            State::Loading | State::Storing(_) => {}
        }
    }

    /// Gives blocks to those that wait.
    fn begin(&mut self, kind: &mut Kind) {
        while let Some(index) = self.waiting.front().copied() {
            let block = match self.block(index) {
                Ok(Some(block)) => block,
                Ok(None) => return,
                Err(error) => {
                    self.waiting.pop_front();
                    let Op { work, .. } = self.ops.remove(index);
                    self.ended.push(ended(work, Err(error)));
                    continue;
                }
            };
            self.waiting.pop_front();
            let op = &mut self.ops[index];
            op.staged = op.work.vector.staged(&block);
            op.block = Some(block);
            match op.work.direction {
                Direction::Receive => self.to_sockets(index, kind),
                Direction::Send => {
                    op.state = State::Loading;
                    let works = op
                        .staged
                        .pairs
                        .iter()
                        .map(|StagedPair { gpu, block, .. }| copy(gpu.clone(), block.clone()));
                    let group = Group { tag: index as u64, works: works.collect() };
                    // There is room for as many groups as operations.
                    drop(self.cuda.submit(group));
                }
            }
        }
    }

    /// A block; none while all are lent.
    fn block(&mut self, index: usize) -> io::Result<Option<Slice>> {
        if let Some(block) = self.blocks.pop() {
            return Ok(Some(block));
        }
        if self.made >= BLOCKS_MAX {
            return Ok(None);
        }
        let region = Arc::new(Region::allocate(BLOCK_BYTES, None)?);
        if let Some(driver) = self.ops[index].work.vector.memory().find_map(|slice| slice.driver())
        {
            // Without, the copies are slower.
            let _: Result<(), Failure> = region.reach(driver);
        }
        self.made += 1;
        Ok(Slice::new(region, 0, BLOCK_BYTES).ok())
    }

    fn to_sockets(&mut self, index: usize, kind: &mut Kind) {
        let op = &mut self.ops[index];
        let vector = std::mem::take(&mut op.staged.vector);
        let Work { socket, direction, .. } = &op.work;
        let work = Work { tag: name(index), socket: socket.clone(), direction: *direction, vector };
        match kind.submit(work) {
            Ok(inner) => op.state = State::Moving(inner),
            Err(work) => {
                op.state = State::Loading;
                op.staged.vector = work.vector;
                self.unsent.push_back(index);
            }
        }
    }

    /// The sockets are done with it.
    fn moved(&mut self, index: usize, done: Done, kind: &mut Kind) {
        let op = &mut self.ops[index];
        let count = match done.result {
            Ok(count) if count > 0 && op.work.direction == Direction::Receive => count,
            result => return self.finish(index, result, kind),
        };
        op.work.vector.take_scratch(&done.vector);
        let works: Vec<_> = op.staged.pairs.iter().filter_map(|pair| store(pair, count)).collect();
        if works.is_empty() {
            return self.finish(index, Ok(count), kind);
        }
        op.state = State::Storing(count);
        // There is room for as many groups as operations.
        drop(self.cuda.submit(Group { tag: index as u64, works }));
    }

    /// A GPU is done with it.
    fn copied(&mut self, group: GroupDone, kind: &mut Kind) {
        let index = group.tag as usize;
        let Some(op) = self.ops.get(index) else { return };
        let result = match (&group.error, &op.state) {
            (Some(failure), _) => Err(io::Error::other(failure.clone())),
            (None, State::Storing(count)) => Ok(*count),
            (None, _) if op.is_fenced => Err(fenced()),
            (None, _) => return self.to_sockets(index, kind),
        };
        self.finish(index, result, kind);
    }

    fn finish(&mut self, index: usize, result: io::Result<usize>, kind: &mut Kind) {
        let Op { work, block, .. } = self.ops.remove(index);
        self.blocks.extend(block);
        self.ended.push(ended(work, result));
        self.begin(kind);
    }
}

/// The copy out of a block of what came for a pair, if something did.
fn store(pair: &StagedPair, count: usize) -> Option<CopyWork> {
    let came = count.checked_sub(pair.at).filter(|came| *came > 0)?;
    let (mut source, target) = (pair.block.clone(), pair.gpu.clone());
    source.truncate(came);
    Some(copy(source, target))
}

fn copy(source: Slice, target: Slice) -> CopyWork {
    CopyWork { tag: 0, source: source.into(), target }
}

fn ended(work: Work, result: io::Result<usize>) -> Done {
    let Work { tag, direction, vector, .. } = work;
    Done { tag, direction, result, vector }
}

fn fenced() -> io::Error {
    io::Error::from_raw_os_error(libc::ECANCELED)
}
