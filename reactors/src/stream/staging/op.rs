//! One send or receive of a GPU's bytes: which of them stand in blocks, and what is next. It is in
//! parts, of which a GPU works on one while the socket works on another.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use super::{Direction, Done, Manner, Work};
use crate::copy::CopyWork;
use crate::cuda::driver::Driver;
use crate::cuda::{Failure, Pages};
use crate::region::Slice;
use crate::stream::is_fenced;
use crate::vector::{Staged, StagedPair};

/// Parts at a time: one for the GPU and one for the socket.
const PARTS_MAX: usize = 2;

pub(super) struct Op {
    /// As it was asked for. The vector keeps the GPU's memory.
    pub(super) work: Work,
    /// Bytes that were cut into parts to be sent.
    cut: usize,
    /// Bytes that the socket has taken or given.
    moved: usize,
    /// Oldest first. The socket sends the first, and receives into the last.
    parts: VecDeque<Part>,
    next_number: u64,
    pub(super) under_way: Option<UnderWay>,
    /// The socket has bytes to be received, or an end.
    is_readable: bool,
    /// It stands in line for a block.
    pub(super) is_waiting: bool,
    /// It stands in line for the sockets' reactor.
    pub(super) is_unsent: bool,
    /// Nothing more is begun.
    is_ending: bool,
    fault: Option<Fault>,
}

/// A piece of the vector, and the block in which its GPU's bytes stand.
struct Part {
    number: u64,
    staged: Staged,
    block: Slice,
    /// Bytes that have been received into it.
    filled: usize,
    /// Groups of a GPU's copies that are under way.
    copies: usize,
}

impl Part {
    /// Whether the socket has it, and has brought something.
    fn is_filling(&self) -> bool {
        self.filled > 0 && self.copies == 0
    }

    /// Whether nothing was brought yet, or all is stored.
    fn is_empty(&self) -> bool {
        self.filled == 0 && self.copies == 0
    }
}

/// What the sockets' reactor is doing for an operation.
pub(super) struct UnderWay {
    pub(super) name: u64,
    pub(super) manner: Manner,
}

enum Fault {
    /// A GPU's, or there is no block.
    Gpu(Failure),
    /// The socket's, or a fence.
    Socket(io::Error),
}

/// What an operation can do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Take a block; the first of its blocks is waited for.
    Block { is_first: bool },
    /// Have the sockets' reactor do its part.
    Post(Manner),
    /// Have GPUs take what has been received into the last part.
    Store,
    /// Take back a peek that nobody waits for any more.
    TakeBack(u64),
    /// Something has to end first.
    Wait,
    /// Nothing touches its memory any more.
    Over,
}

impl Op {
    pub(super) fn new(work: Work) -> Self {
        Self {
            work,
            cut: 0,
            moved: 0,
            parts: VecDeque::new(),
            next_number: 0,
            under_way: None,
            is_readable: false,
            is_waiting: false,
            is_unsent: false,
            is_ending: false,
            fault: None,
        }
    }

    pub(super) fn direction(&self) -> Direction {
        self.work.direction
    }

    pub(super) fn driver(&self) -> Option<&Arc<dyn Driver>> {
        self.work.vector.memory().find_map(Slice::driver)
    }

    pub(super) fn step(&self) -> Step {
        let is_over = self.is_ending || self.fault.is_some() || self.is_all_moved();
        if self.is_stored_next(is_over) {
            return Step::Store;
        }
        match (is_over, self.direction(), &self.under_way) {
            (false, Direction::Send, _) => self.send(),
            (false, Direction::Receive, _) => self.receive(),
            (true, _, Some(UnderWay { name, manner: Manner::Peek })) => Step::TakeBack(*name),
            (true, _, Some(_)) => Step::Wait,
            (true, ..) if self.parts.iter().any(|part| part.copies > 0) => Step::Wait,
            (true, ..) => Step::Over,
        }
    }

    /// What comes in small pieces is gathered: a GPU takes as long for a few bytes as for a block
    /// of them (10 us), and it costs a system call to see that there are no more.
    fn is_stored_next(&self, is_over: bool) -> bool {
        let is_whole = |part: &Part| is_over || !self.is_readable || part.staged.vector.is_empty();
        self.under_way.is_none()
            && self.parts.back().is_some_and(|part| part.is_filling() && is_whole(part))
    }

    fn is_all_moved(&self) -> bool {
        self.moved == self.work.vector.len()
    }

    fn send(&self) -> Step {
        let is_filled = self.parts.front().is_some_and(|part| part.copies == 0);
        if is_filled && self.under_way.is_none() {
            Step::Post(Manner::Wait)
        } else if self.parts.len() < PARTS_MAX && self.cut < self.work.vector.len() {
            Step::Block { is_first: self.parts.is_empty() }
        } else {
            Step::Wait
        }
    }

    /// Goes on for as long as a GPU works on what came before: then the owner has to know. A block
    /// is taken only once there are bytes for it, so that peers who dawdle hold none.
    fn receive(&self) -> Step {
        let is_at_rest = self.moved > 0 && self.parts.is_empty();
        match &self.under_way {
            Some(UnderWay { name, manner: Manner::Peek }) if is_at_rest => Step::TakeBack(*name),
            Some(_) => Step::Wait,
            None if is_at_rest => Step::Over,
            // The GPU has nothing to do with it yet: it is for the socket.
            None if self.parts.back().is_some_and(|part| part.copies == 0) => {
                Step::Post(Manner::Now)
            }
            None if !self.is_readable => Step::Post(Manner::Peek),
            None if self.parts.len() < PARTS_MAX => Step::Block { is_first: self.parts.is_empty() },
            None => Step::Wait,
        }
    }

    /// Takes a block for the next part; returns its number and what a GPU has to bring there.
    pub(super) fn begin_part(&mut self, block: Slice) -> (u64, Vec<CopyWork>) {
        let at = match self.direction() {
            Direction::Send => self.cut,
            Direction::Receive => self.moved,
        };
        let staged = self.work.vector.staged(at, &block);
        let mut works = Vec::new();
        if self.direction() == Direction::Send {
            self.cut += staged.vector.len();
            let load = |pair: &StagedPair| copy(pair.gpu.clone(), pair.block.clone());
            works.extend(staged.pairs.iter().map(load));
        }
        let number = self.next_number;
        self.next_number += 1;
        self.parts.push_back(Part { number, staged, block, filled: 0, copies: 0 });
        (number, works)
    }

    /// The part that is the socket's next.
    pub(super) fn staged(&mut self) -> Option<&mut Staged> {
        let part = match self.direction() {
            Direction::Send => self.parts.front_mut(),
            Direction::Receive => self.parts.back_mut(),
        };
        part.map(|part| &mut part.staged)
    }

    /// GPUs work for a part.
    pub(super) fn copies(&mut self, number: u64) {
        self.parts.iter_mut().filter(|part| part.number == number).for_each(|part| {
            part.copies += 1;
        });
    }

    /// A GPU has done its share of a part. Returns a block that is free again.
    pub(super) fn copied(&mut self, number: u64) -> Option<Slice> {
        let index = self.parts.iter().position(|part| part.number == number)?;
        let part = &mut self.parts[index];
        part.copies -= 1;
        let is_stored = part.copies == 0 && self.work.direction == Direction::Receive;
        if is_stored { self.parts.remove(index).map(|part| part.block) } else { None }
    }

    /// The sockets' reactor has sent some of the first part. Returns a block that is free again.
    pub(super) fn sent(&mut self, done: Done) -> Option<Slice> {
        let part = self.parts.front_mut()?;
        part.staged.vector = done.vector;
        match done.result {
            Ok(count) => {
                self.moved += count;
                part.staged.vector.advance(count);
                self.is_ending = count == 0;
            }
            // Nobody knows how much of it went out, whatever a GPU says.
            Err(error) => self.fault = Some(Fault::Socket(error)),
        }
        let is_sent = self.parts.front().is_some_and(|part| part.staged.vector.is_empty());
        if is_sent { self.parts.pop_front().map(|part| part.block) } else { None }
    }

    /// The socket has bytes, or an end.
    pub(super) fn peeked(&mut self, result: io::Result<usize>) {
        match result {
            Ok(0) => self.is_ending = true,
            Ok(_) => self.is_readable = true,
            // That was all there is for now.
            Err(error) if is_fenced(&error) && self.moved > 0 => self.is_ending = true,
            Err(error) => self.fail(error),
        }
    }

    /// The sockets' reactor has received into the last part, or not.
    pub(super) fn received(&mut self, done: Done) {
        let Some(part) = self.parts.back_mut() else { return };
        match &done.result {
            Ok(0) => self.is_ending = true,
            Ok(count) => {
                self.work.vector.take_scratch(self.moved, &done.vector);
                self.moved += count;
                part.filled += count;
                part.staged.vector = done.vector;
                part.staged.vector.advance(*count);
            }
            // That was all there is for now.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.is_readable = false,
            Err(error) => self.fail(again(error)),
        }
    }

    /// The last part's number, and what a GPU has to bring from there.
    pub(super) fn store(&mut self) -> Option<(u64, Vec<CopyWork>)> {
        let part = self.parts.back_mut()?;
        let filled = std::mem::take(&mut part.filled);
        let works = part.staged.pairs.iter().filter_map(|pair| store(pair, filled)).collect();
        Some((part.number, works))
    }

    /// Gives up the last part, if it is of no use to a GPU.
    pub(super) fn drop_unused(&mut self) -> Option<Slice> {
        if self.parts.back().is_some_and(Part::is_empty) {
            self.parts.pop_back().map(|part| part.block)
        } else {
            None
        }
    }

    fn fail(&mut self, error: io::Error) {
        self.fault.get_or_insert(Fault::Socket(error));
    }

    /// It goes on no more.
    pub(super) fn fence(&mut self) {
        self.fail(io::Error::from_raw_os_error(libc::ECANCELED));
    }

    /// Bytes did not get to or from a GPU. What has been received and is not there outweighs
    /// whatever the socket says.
    pub(super) fn fail_gpu(&mut self, failure: Failure) {
        match self.direction() {
            Direction::Receive => self.fault = Some(Fault::Gpu(failure)),
            Direction::Send => {
                self.fault.get_or_insert(Fault::Gpu(failure));
            }
        }
    }

    /// What it comes to, and the blocks that it had.
    pub(super) fn finish(self) -> (Done, impl Iterator<Item = Slice>) {
        let Work { tag, direction, vector, .. } = self.work;
        let result = match (self.fault, direction) {
            (None, _) => Ok(self.moved),
            // The rest fails by itself, and then nothing of it has gone out.
            (Some(Fault::Gpu(_)), Direction::Send) if self.moved > 0 => Ok(self.moved),
            // The next receive hears of it.
            (Some(Fault::Socket(_)), Direction::Receive) if self.moved > 0 => Ok(self.moved),
            (Some(Fault::Gpu(failure)), _) => Err(io::Error::other(failure)),
            (Some(Fault::Socket(error)), _) => Err(error),
        };
        let done = Done { tag, direction, result, vector };
        (done, self.parts.into_iter().map(|part| part.block))
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

/// The same error once more.
fn again(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)
}

/// Copies of one GPU each.
///
/// # Errors
/// A GPU's that can't make its own.
pub(super) fn by_gpu(mut works: Vec<CopyWork>) -> Result<Vec<Pages>, Failure> {
    let mut all = Vec::new();
    while let Some(first) = works.first() {
        let gpu = first.gpu();
        let (same, others) = works.into_iter().partition(|work: &CopyWork| work.gpu() == gpu);
        let same: Vec<CopyWork> = same;
        all.push(Pages::of(same.iter())?);
        works = others;
    }
    Ok(all)
}
