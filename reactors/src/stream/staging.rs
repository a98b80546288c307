//! Bytes of GPUs on their way through sockets: each send and receive borrows blocks of pinned host
//! memory, which a GPU fills before the socket and empties behind it, the one block while the
//! socket has the other. A send may be short: its owner sends the rest.

mod blocks;
mod op;

use std::collections::VecDeque;
use std::sync::Arc;

use self::blocks::{Blocks, slab};
use self::op::{Op, Step, UnderWay, by_gpu};
use super::{Direction, Done, Kind, Manner, Work};
use crate::Reactor;
use crate::copy::CopyWork;
use crate::cuda::{Cuda, Failure, Group, GroupDone};
use crate::doorbell::Doorbell;
use crate::region::Slice;
use crate::ticket::{Table, Ticket};
use crate::vector::Vector;

/// Sends and receives that are under way or wait for a block.
const OPS_MAX: usize = 4096;

/// Groups of copies under way: a few for each block, by the GPUs that it has bytes of.
const GROUPS_MAX: usize = 4096;

/// What names of staged operations have and no reactor's own: it is above every index there.
const STAGED: u64 = 1 << 31;

/// Whether it is the name of an operation here.
pub(super) fn is_staged(name: u64) -> bool {
    name & STAGED != 0
}

fn name(ticket: Ticket<Op>) -> u64 {
    ticket.to_raw() | STAGED
}

fn ticket(name: u64) -> Ticket<Op> {
    Ticket::from_raw(name & !STAGED)
}

/// Operations that pass through host memory.
pub(super) struct Staging {
    cuda: Cuda,
    ops: Table<Op>,
    copies: Table<Copying>,
    blocks: Blocks,
    /// Those that wait for a block, oldest first.
    senders: VecDeque<Ticket<Op>>,
    receivers: VecDeque<Ticket<Op>>,
    /// Those that the sockets' reactor had no room for.
    unsent: VecDeque<Ticket<Op>>,
    ended: VecDeque<Done>,
    groups_done: Vec<GroupDone>,
}

/// What a group of copies is for.
struct Copying {
    op: Ticket<Op>,
    part: u64,
}

impl Staging {
    pub(super) fn new(doorbell: Arc<Doorbell>, blocks: u32) -> Self {
        Self {
            cuda: Cuda::new(GROUPS_MAX, doorbell).with_blocks(blocks),
            ops: Table::default(),
            copies: Table::default(),
            blocks: Blocks::default(),
            senders: VecDeque::new(),
            receivers: VecDeque::new(),
            unsent: VecDeque::new(),
            ended: VecDeque::new(),
            groups_done: Vec::new(),
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.ops.is_empty() && self.ended.is_empty()
    }

    pub(super) fn awaits_gpus(&self) -> bool {
        !self.copies.is_empty()
    }

    pub(super) fn submit(&mut self, work: Work, kind: &mut Kind) -> Result<u64, Work> {
        if self.ops.len() + self.ended.len() >= OPS_MAX {
            return Err(work);
        }
        let ticket = self.ops.insert(Op::new(work));
        self.advance(ticket, kind);
        self.lend(kind);
        Ok(name(ticket))
    }

    /// GPUs are looked at first and last: what they have is the sockets' in this turn, and what
    /// they get they work on while the thread is with the sockets.
    pub(super) fn poll(&mut self, budget: usize, done: &mut Vec<Done>, kind: &mut Kind) -> usize {
        let full = done.len().saturating_add(budget);
        let mut moved = self.poll_gpus(kind) + self.take_ended(full, done);
        moved += self.poll_sockets(full.saturating_sub(done.len()), done, kind);
        for _ in 0..self.unsent.len() {
            let Some(ticket) = self.unsent.pop_front() else { break };
            self.ops.get_mut(ticket).into_iter().for_each(|op| op.is_unsent = false);
            self.advance(ticket, kind);
        }
        self.lend(kind);
        moved + self.poll_gpus(kind) + self.take_ended(full, done)
    }

    fn take_ended(&mut self, full: usize, done: &mut Vec<Done>) -> usize {
        let room = full.saturating_sub(done.len()).min(self.ended.len());
        done.extend(self.ended.drain(..room));
        room
    }

    fn poll_sockets(&mut self, budget: usize, done: &mut Vec<Done>, kind: &mut Kind) -> usize {
        let before = done.len();
        let moved = kind.poll(budget, done);
        if done[before..].iter().any(|ended| is_staged(ended.tag)) {
            for ended in done.split_off(before) {
                match is_staged(ended.tag) {
                    true => self.moved(ended, kind),
                    false => done.push(ended),
                }
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
        self.lend(kind);
        moved
    }

    /// What the sockets' reactor has no room for waits for it, which rings.
    pub(super) fn arm(&mut self) -> bool {
        self.ended.is_empty() && self.cuda.arm()
    }

    pub(super) fn fence(&mut self, name: u64, kind: &mut Kind) {
        let ticket = ticket(name);
        let Some(op) = self.ops.get_mut(ticket) else { return };
        op.fence();
        if let Some(UnderWay { name, .. }) = op.under_way {
            kind.fence(name);
        }
        // What a GPU does ends by itself, soon.
        self.advance(ticket, kind);
        self.lend(kind);
    }

    /// Does for an operation all that can be done now.
    fn advance(&mut self, ticket: Ticket<Op>, kind: &mut Kind) {
        while let Some(op) = self.ops.get_mut(ticket) {
            let goes_on = match op.step() {
                Step::Block { is_first: true } => self.stand_in_line(ticket),
                Step::Block { is_first: false } => self.work_ahead(ticket),
                Step::Post(manner) => self.post(ticket, manner, kind),
                Step::Store => self.store(ticket),
                Step::TakeBack(name) => {
                    kind.fence(name);
                    false
                }
                Step::Wait => false,
                Step::Over => self.finish(ticket),
            };
            if !goes_on {
                return;
            }
        }
    }

    fn finish(&mut self, ticket: Ticket<Op>) -> bool {
        if let Some(op) = self.ops.remove(ticket) {
            let direction = op.direction();
            if op.is_waiting {
                self.line(direction).retain(|waiting| *waiting != ticket);
            }
            if op.is_unsent {
                self.unsent.retain(|unsent| *unsent != ticket);
            }
            let (done, blocks) = op.finish();
            blocks.for_each(|block| self.blocks.give_back(direction, block));
            self.ended.push_back(done);
        }
        false
    }

    fn line(&mut self, direction: Direction) -> &mut VecDeque<Ticket<Op>> {
        match direction {
            Direction::Send => &mut self.senders,
            Direction::Receive => &mut self.receivers,
        }
    }

    /// The first block is given by [`Staging::lend`].
    fn stand_in_line(&mut self, ticket: Ticket<Op>) -> bool {
        let Some(op) = self.ops.get_mut(ticket) else { return false };
        let direction = op.direction();
        if !std::mem::replace(&mut op.is_waiting, true) {
            self.line(direction).push_back(ticket);
        }
        false
    }

    /// Takes one more block, where none is missed elsewhere.
    fn work_ahead(&mut self, ticket: Ticket<Op>) -> bool {
        let Some(op) = self.ops.get(ticket) else { return false };
        let direction = op.direction();
        if !self.blocks.are_plenty(direction) || !self.line(direction).is_empty() {
            return false;
        }
        let Some(op) = self.ops.get(ticket) else { return false };
        match self.blocks.lend(direction, || slab(op.driver())) {
            Ok(Some(block)) => self.begin_part(ticket, block),
            Ok(None) | Err(_) => return false,
        }
        true
    }

    /// Gives blocks to those that wait, and goes on with them.
    fn lend(&mut self, kind: &mut Kind) {
        while self.lend_one(Direction::Receive, kind) || self.lend_one(Direction::Send, kind) {}
    }

    fn lend_one(&mut self, direction: Direction, kind: &mut Kind) -> bool {
        let Some(ticket) = self.line(direction).front().copied() else { return false };
        let Some(op) = self.ops.get_mut(ticket) else { return false };
        let lent = self.blocks.lend(direction, || slab(op.driver()));
        op.is_waiting = matches!(lent, Ok(None));
        match lent {
            Ok(None) => return false,
            Ok(Some(block)) => self.begin_part(ticket, block),
            Err(failure) => op.fail_gpu(failure),
        }
        self.line(direction).pop_front();
        self.advance(ticket, kind);
        true
    }

    fn begin_part(&mut self, ticket: Ticket<Op>, block: Slice) {
        if let Some(op) = self.ops.get_mut(ticket) {
            let (part, works) = op.begin_part(block);
            self.copy(ticket, part, works);
        }
    }

    /// Hands the next part to the sockets' reactor; `false` where that is full.
    fn post(&mut self, ticket: Ticket<Op>, manner: Manner, kind: &mut Kind) -> bool {
        let Some(op) = self.ops.get_mut(ticket) else { return false };
        if op.is_unsent {
            return false;
        }
        let (direction, socket) = (op.direction(), op.work.socket.clone());
        let mut vector = Vector::default();
        match (manner, op.staged()) {
            (Manner::Peek, _) => vector.push_room(1),
            (_, Some(staged)) => vector = std::mem::take(&mut staged.vector),
            (_, None) => return false,
        }
        let work = Work { tag: name(ticket), socket, direction, vector };
        match kind.submit_as(work, manner) {
            Ok(name) => {
                op.under_way = Some(UnderWay { name, manner });
                true
            }
            Err(work) => {
                if let Some(staged) = op.staged().filter(|_| manner != Manner::Peek) {
                    staged.vector = work.vector;
                }
                op.is_unsent = true;
                self.unsent.push_back(ticket);
                false
            }
        }
    }

    /// The sockets' reactor is done with a part, or has peeked.
    fn moved(&mut self, done: Done, kind: &mut Kind) {
        let ticket = ticket(done.tag);
        let Some(op) = self.ops.get_mut(ticket) else { return };
        let under_way = op.under_way.take();
        let is_peek = under_way.is_some_and(|under_way| under_way.manner == Manner::Peek);
        let direction = op.direction();
        let freed = match direction {
            Direction::Send => op.sent(done),
            Direction::Receive if is_peek => {
                op.peeked(done.result);
                None
            }
            Direction::Receive => {
                op.received(done);
                op.drop_unused()
            }
        };
        freed.into_iter().for_each(|block| self.blocks.give_back(direction, block));
        self.advance(ticket, kind);
    }

    /// Has GPUs take what was received into the last part. It may have been another's than a GPU's.
    fn store(&mut self, ticket: Ticket<Op>) -> bool {
        let Some((part, works)) = self.ops.get_mut(ticket).and_then(Op::store) else {
            return false;
        };
        self.copy(ticket, part, works);
        let freed = self.ops.get_mut(ticket).and_then(Op::drop_unused);
        freed.into_iter().for_each(|block| self.blocks.give_back(Direction::Receive, block));
        true
    }

    /// Has GPUs make copies for a part, each its own.
    fn copy(&mut self, ticket: Ticket<Op>, part: u64, works: Vec<CopyWork>) {
        let all = match by_gpu(works) {
            Ok(all) => all,
            Err(failure) => return self.fail(ticket, failure),
        };
        for pages in all {
            let copying = self.copies.insert(Copying { op: ticket, part });
            let group = Group { tag: copying.to_raw(), pages: Arc::new(pages) };
            match (self.cuda.submit(group), self.ops.get_mut(ticket)) {
                (Ok(_), Some(op)) => op.copies(part),
                (Ok(_), None) => {}
                (Err(_), _) => {
                    self.copies.remove(copying);
                    self.fail(ticket, Failure::refused("copy", "too many are under way"));
                }
            }
        }
    }

    fn fail(&mut self, ticket: Ticket<Op>, failure: Failure) {
        self.ops.get_mut(ticket).into_iter().for_each(|op| op.fail_gpu(failure.clone()));
    }

    /// A GPU is done with its share of a part.
    fn copied(&mut self, group: GroupDone, kind: &mut Kind) {
        let Some(copying) = self.copies.remove(Ticket::from_raw(group.tag)) else { return };
        let Copying { op: ticket, part } = copying;
        if let Some(failure) = group.error {
            self.fail(ticket, failure);
        }
        let Some(op) = self.ops.get_mut(ticket) else { return };
        let direction = op.direction();
        let freed = op.copied(part);
        freed.into_iter().for_each(|block| self.blocks.give_back(direction, block));
        self.advance(ticket, kind);
    }
}

#[cfg(all(test, feature = "sim"))]
impl super::Streams {
    /// Groups of copies that are under way.
    fn awaiting(&self) -> usize {
        self.staging.as_ref().map_or(0, |staging| staging.copies.len())
    }
}

#[cfg(all(test, feature = "sim"))]
mod tests;
