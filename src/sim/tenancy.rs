//! Blocks that their owners grant to peers and take back under load: no tenant's request touches
//! the next tenant's bytes, and none ends well that was asked for under a grant that is over.

use std::pin::Pin;
use std::task::{Context, Waker};
use std::time::Duration;

use super::ends::Ended;
use super::node::name_of;
use super::process::{Block, Process, Registration, Use};
use super::world::{World, note};
use crate::memory::{Access, Grant, GrantOptions, Operation, Reference};

/// A block from its grant to the moment in which its owner has it back.
pub(super) struct Tenancy {
    pub(super) block: Block,
    pub(super) reference: Reference,
    /// The only node that may use it.
    holder: Option<usize>,
    expires_ns: Option<u64>,
    state: State,
    /// What is under way under it.
    held: Use,
    /// Requests that may write into the block.
    writers: Vec<usize>,
}

enum State {
    Holds(Grant),
    /// The owner waits until no holder reaches the block.
    Ending(Pin<Box<dyn Future<Output = Duration>>>),
    Over,
}

/// Under which grant a request is made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Claim {
    tenancy: usize,
    /// It was over before, and whoever asks has not heard of that.
    pub(super) is_outdated: bool,
}

impl World {
    /// An owner takes a block back.
    pub(super) fn revoke(&mut self, rng: &mut fastrand::Rng) {
        let node = rng.usize(..self.processes.len());
        let process = &self.processes[node];
        let held = process.tenancies.iter().enumerate();
        let held = held.filter(|(_, tenancy)| matches!(tenancy.state, State::Holds(_)));
        let numbers: Vec<usize> = held.map(|(number, _)| number).collect();
        if let Some(&number) = rng.choice(&numbers).filter(|_| !process.node.is_paused) {
            self.take_back(node, number);
        }
    }

    fn take_back(&mut self, node: usize, number: usize) {
        note!(self, "node {node}    takes its grant {number} back");
        let tenancy = &mut self.processes[node].tenancies[number];
        if let State::Holds(grant) = std::mem::replace(&mut tenancy.state, State::Over) {
            tenancy.state = State::Ending(Box::pin(grant.revoke()));
        }
        // A future does nothing before it is polled.
        self.taken_back();
    }

    /// Every grant is taken back, however little its holders do.
    pub(super) fn take_all_back(&mut self) {
        for node in 0..self.processes.len() {
            for number in 0..self.processes[node].tenancies.len() {
                if matches!(self.processes[node].tenancies[number].state, State::Holds(_)) {
                    self.take_back(node, number);
                }
            }
        }
    }

    /// Blocks that no holder reaches any more belong to their owners, who use them at once.
    pub(super) fn taken_back(&mut self) {
        for node in 0..self.processes.len() {
            for number in 0..self.processes[node].tenancies.len() {
                let process = &mut self.processes[node];
                if !process.node.is_paused && process.tenancies[number].is_quiet() {
                    process.has_back(number);
                    note!(self, "node {node}    has the block of its grant {number} back");
                }
            }
        }
    }

    /// Where a request's other side lies, under a grant that holds or, now and then, did.
    pub(super) fn granted(
        &mut self,
        rng: &mut fastrand::Rng,
        operation: Operation,
        (from, to): (usize, usize),
    ) -> Option<(Block, Claim)> {
        let now_ns = self.now_ns;
        let process = &mut self.processes[to];
        if rng.u8(..4) == 0 {
            return process.outdated(rng);
        }
        let tenancy = process.tenancy_for(rng, operation, from, now_ns);
        let tenancy = tenancy.or_else(|| process.grant(rng, (from, to), now_ns))?;
        process.tenancies[tenancy].begin(operation);
        Some((process.tenancies[tenancy].block, Claim { tenancy, is_outdated: false }))
    }
}

impl Tenancy {
    /// Whether a request of this kind may go beside what is under way.
    fn takes(&self, operation: Operation, from: usize, now_ns: u64) -> bool {
        let fits = match self.held {
            Use::Free => true,
            Use::Readers(_) => operation == Operation::Read,
            Use::Held => false,
        };
        let is_holder = self.holder.is_none_or(|holder| holder == from);
        fits && is_holder && self.holds(now_ns)
    }

    fn begin(&mut self, operation: Operation) {
        self.held = match (operation, self.held) {
            (Operation::Write, _) => Use::Held,
            (Operation::Read, Use::Readers(readers)) => Use::Readers(readers + 1),
            (Operation::Read, _) => Use::Readers(1),
        };
    }

    /// Whether nothing has ended it.
    fn holds(&self, now_ns: u64) -> bool {
        let is_due = self.expires_ns.is_some_and(|expires_ns| expires_ns <= now_ns);
        matches!(self.state, State::Holds(_)) && !is_due
    }

    /// Whether its owner has waited for long enough.
    fn is_quiet(&mut self) -> bool {
        let State::Ending(revoking) = &mut self.state else { return false };
        revoking.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    pub(super) fn is_ending(&self) -> bool {
        matches!(self.state, State::Ending(_))
    }
}

impl Process {
    /// Another tenancy of a free block.
    fn grant(
        &mut self,
        rng: &mut fastrand::Rng,
        (from, to): (usize, usize),
        now_ns: u64,
    ) -> Option<usize> {
        if self.node.is_paused {
            return None;
        }
        let block = self.pick(rng, to, |held| held == Use::Free)?;
        let space = &self.spaces[block.space];
        let (region, range) = (space.memory.region.clone(), space.range(block.block));
        let holder = rng.bool().then_some(from);
        let expires_after = (rng.u8(..4) == 0).then(|| Duration::from_micros(rng.u64(50..3_000)));
        let options = GrantOptions { holder: holder.map(name_of), expires_after };
        let engine = &self.node.engine;
        let grant = engine.grant(&region, range, Access::READ_WRITE, options);
        let grant = grant.expect("few grants of an open region");
        self.take(block, Use::Held);
        self.tenancies.push(Tenancy {
            block,
            reference: grant.reference(),
            holder,
            expires_ns: expires_after.map(|after| now_ns + after.as_nanos() as u64),
            state: State::Holds(grant),
            held: Use::Free,
            writers: Vec::new(),
        });
        Some(self.tenancies.len() - 1)
    }

    fn tenancy_for(
        &self,
        rng: &mut fastrand::Rng,
        operation: Operation,
        from: usize,
        now_ns: u64,
    ) -> Option<usize> {
        let tenancies = self.tenancies.iter().enumerate();
        let fitting = tenancies.filter(|(_, tenancy)| tenancy.takes(operation, from, now_ns));
        rng.choice(fitting.map(|(number, _)| number).collect::<Vec<_>>())
    }

    /// A tenancy that is over, for somebody who has not heard of that.
    fn outdated(&self, rng: &mut fastrand::Rng) -> Option<(Block, Claim)> {
        let tenancies = self.tenancies.iter().enumerate();
        let over = tenancies.filter(|(_, tenancy)| matches!(tenancy.state, State::Over));
        let (tenancy, over) = rng.choice(over.collect::<Vec<_>>())?;
        Some((over.block, Claim { tenancy, is_outdated: true }))
    }

    pub(super) fn reference(&self, claim: Claim) -> Reference {
        self.tenancies[claim.tenancy].reference
    }

    /// A request may write into the block of its tenancy.
    pub(super) fn writes_under(&mut self, claim: Claim, writer: usize) {
        self.tenancies[claim.tenancy].writers.push(writer);
    }

    /// Whether a request under that grant may end as Stale.
    pub(super) fn may_be_stale(&self, claim: Claim, now_ns: u64) -> bool {
        claim.is_outdated || !self.tenancies[claim.tenancy].holds(now_ns)
    }

    /// Whether the block is still what the tenancy's requests made it.
    pub(super) fn is_let(&self, claim: Claim) -> bool {
        !matches!(self.tenancies[claim.tenancy].state, State::Over)
    }

    /// A request under a grant has ended.
    pub(super) fn leaves(&mut self, claim: Claim, operation: Operation, end: Ended, writer: usize) {
        let tenancy = &mut self.tenancies[claim.tenancy];
        if claim.is_outdated || matches!(tenancy.state, State::Over) {
            return;
        }
        match (operation, tenancy.held) {
            (Operation::Read, Use::Readers(readers)) if readers > 1 => {
                tenancy.held = Use::Readers(readers - 1);
            }
            (Operation::Read, _) => tenancy.held = Use::Free,
            // Only the end of the grant proves that it doesn't write any more.
            (Operation::Write, _) if end == Ended::Unproven => {}
            (Operation::Write, _) => {
                tenancy.held = Use::Free;
                let block = tenancy.block;
                self.rewrite(block, &[writer]);
            }
        }
    }

    /// A block whose grant was taken back is quiet, whatever became of its requests.
    fn has_back(&mut self, number: usize) {
        let tenancy = &mut self.tenancies[number];
        tenancy.state = State::Over;
        let (block, writers) = (tenancy.block, std::mem::take(&mut tenancy.writers));
        self.rewrite(block, &writers);
        if self.spaces[block.space].state == Registration::Open {
            self.take(block, Use::Free);
        }
    }

    /// A region goes, and its grants with it.
    pub(super) fn strike(&mut self, space: usize) {
        for tenancy in self.tenancies.iter_mut().filter(|one| one.block.space == space) {
            if matches!(tenancy.state, State::Holds(_)) {
                tenancy.state = State::Over;
            }
        }
    }
}
