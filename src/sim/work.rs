//! The world's workload: transfers between blocks, and what their ends promise. Memory that a
//! receipt calls quiet is used again at once.

use kvrail_reactors::region::Slice;

use super::pattern::WORD;
use super::process::{Block, COUNTER, Process, Registration, Use};
use super::transfer::{Asked, Under};
use super::world::{World, note};
use crate::memory::Operation;
use crate::request::Batch;
use crate::{Failed, Landed, Outcome, Proof, Result};

impl World {
    /// A process asks for a transfer, if there are blocks for it.
    pub(super) fn begin_transfer(&mut self, seed: u64) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let from = rng.usize(..self.processes.len());
        let to = rng.usize(..self.processes.len());
        if self.processes[from].node.is_paused {
            return;
        }
        let count = rng.usize(1..=3);
        let requests: Vec<_> = (0..count).filter_map(|_| self.ask(&mut rng, from, to)).collect();
        if requests.is_empty() {
            return;
        }
        let number = self.transfers;
        self.transfers += 1;
        let counts = rng.bool();
        let peer = self.peer(from, to);
        let mut batch = Batch::new(&peer);
        for asked in &requests {
            self.add(&mut batch, asked);
        }
        if counts {
            batch.count(COUNTER, 1);
        }
        let is_short = rng.u8(..4) == 0;
        if is_short {
            batch.deadline(std::time::Duration::from_micros(rng.u64(1..3_000)));
        }
        let drop_at_ns = (rng.u8(..5) == 0).then(|| self.now_ns + rng.u64(..1_500_000));
        note!(
            self,
            "transfer {number} of {} requests, node {from} to node {to}, counts: {counts}, \
            deadline: {is_short}, dropped: {}",
            requests.len(),
            drop_at_ns.is_some()
        );
        let to_incarnation = self.processes[to].node.incarnation;
        if counts {
            self.processes[to].possible += 1;
        }
        let incarnation = self.processes[from].node.incarnation;
        let ends = ((from, incarnation), (to, to_incarnation));
        let is_patient = !is_short && drop_at_ns.is_none();
        let future = self.processes[from].node.engine.transfer(batch);
        let under =
            Under::new(number, ends.0, ends.1, requests, counts, is_patient, drop_at_ns, future);
        for (index, asked) in under.requests.iter().enumerate() {
            let (target, at) = match asked.operation {
                Operation::Write => (asked.far, asked.far_at),
                Operation::Read => (asked.near, asked.near_at),
            };
            let space = &mut self.processes[target.node].spaces[target.space];
            let start = space.range(target.block).start + at;
            let range = start..start + asked.bytes.len();
            space.memory.allow(under.writer(index), range, asked.bytes.clone());
        }
        self.under_way.push(under);
    }

    fn peer(&mut self, from: usize, to: usize) -> crate::Peer {
        if from == to {
            return self.processes[from].node.engine.local();
        }
        let incarnation = self.processes[to].node.incarnation;
        if let Some((known, peer)) = &self.processes[from].peers[to]
            && *known == incarnation
        {
            return peer.clone();
        }
        let peer = self.processes[to].node.as_peer(to, &self.processes[from].node.engine);
        self.processes[from].peers[to] = Some((incarnation, peer.clone()));
        peer
    }

    /// Picks two blocks for a request, and takes them.
    fn ask(&mut self, rng: &mut fastrand::Rng, from: usize, to: usize) -> Option<Asked> {
        let operation = if rng.bool() { Operation::Write } else { Operation::Read };
        let near = self.processes[from].pick(rng, from, |held| held == Use::Free)?;
        self.processes[from].take(near, Use::Held);
        let is_read = operation == Operation::Read;
        let fits = |held| held == Use::Free || is_read && matches!(held, Use::Readers(_));
        let Some(far) = self.processes[to].pick(rng, to, fits) else {
            self.processes[from].release(near);
            return None;
        };
        let readers = match self.processes[to].held(far) {
            Use::Readers(readers) => readers,
            _ => 0,
        };
        let held = if is_read { Use::Readers(readers + 1) } else { Use::Held };
        self.processes[to].take(far, held);
        let words = self.schedule.block_bytes / WORD;
        let near_at = rng.usize(..words);
        let far_at = rng.usize(..words);
        let most = words - near_at.max(far_at);
        let len = rng.usize(1..=most) * WORD;
        let (near_at, far_at) = (near_at * WORD, far_at * WORD);
        let (source, at) = if is_read { (far, far_at) } else { (near, near_at) };
        let space = &self.processes[source.node].spaces[source.space];
        let start = space.range(source.block).start + at;
        let bytes = space.memory.expected(start..start + len).to_vec();
        Some(Asked { operation, near, far, near_at, far_at, bytes })
    }

    fn add(&self, batch: &mut Batch, asked: &Asked) {
        let len = asked.bytes.len();
        let far = &self.processes[asked.far.node].spaces[asked.far.space];
        let remote =
            far.memory.region.addr() + (far.range(asked.far.block).start + asked.far_at) as u64;
        let near = &self.processes[asked.near.node].spaces[asked.near.space];
        let start = near.range(asked.near.block).start + asked.near_at;
        let region = &near.memory.region;
        match asked.operation {
            Operation::Write => {
                let lease = region.share(start..start + len).expect("nobody else has the block");
                batch.write(&lease, remote);
            }
            Operation::Read => {
                let lease = region.lease(start..start + len).expect("nobody else has the block");
                batch.read(lease, remote);
            }
        }
    }

    /// Callers look for their transfers' ends, or give up on them.
    pub(super) fn callers(&mut self) -> Result<(), String> {
        let mut index = 0;
        while index < self.under_way.len() {
            if self.processes[self.under_way[index].from].node.is_paused {
                index += 1;
                continue;
            }
            let now_ns = self.now_ns;
            let under = &mut self.under_way[index];
            if under.drop_at_ns.is_some_and(|at_ns| at_ns <= now_ns) {
                under.abandon();
                let number = under.number;
                note!(self, "transfer {number} is dropped");
            }
            let under = &mut self.under_way[index];
            let ended = under.poll();
            if let Some(ended) = ended {
                let under = self.under_way.swap_remove(index);
                self.ended(under, ended)?;
            } else if under.is_abandoned() && !self.is_leased(index) {
                let under = self.under_way.swap_remove(index);
                note!(self, "transfer {} has given its leases back", under.number);
                self.ended += 1;
                let unknown = vec![Ended::Unproven; under.requests.len()];
                self.settle(&under, &unknown)?;
            } else {
                index += 1;
            }
        }
        Ok(())
    }

    fn is_leased(&self, index: usize) -> bool {
        self.under_way[index].requests.iter().any(|asked| {
            let space = &self.processes[asked.near.node].spaces[asked.near.space];
            let start = space.range(asked.near.block).start + asked.near_at;
            space.memory.region.is_leased(start..start + asked.bytes.len())
        })
    }

    fn ended(&mut self, under: Under, ended: Result<Outcome, Failed>) -> Result<(), String> {
        self.ended += 1;
        let (error, outcome) = match ended {
            Ok(outcome) => (None, outcome),
            Err(failed) => (Some(failed.error().clone()), failed.into_outcome()),
        };
        note!(
            self,
            "transfer {} ends: {}",
            under.number,
            error.as_ref().map_or("OK", |error| error.kind().label())
        );
        self.succeeded += usize::from(error.is_none());
        if let Some(error) = &error
            && !self.schedule.has_faults()
            && under.is_patient
        {
            return Err(format!("transfer {} failed without a fault: {error}", under.number));
        }
        let ends: Vec<Ended> = outcome
            .statuses()
            .iter()
            .map(|status| match status {
                Ok(()) => Ended::Whole,
                Err(error) if error.landed() == Landed::No => Ended::Untouched,
                Err(error) if error.remote() == Proof::Quiet => Ended::Quiet,
                Err(_) => Ended::Unproven,
            })
            .collect();
        drop(outcome);
        let far = &mut self.processes[under.to];
        if under.counts && far.node.incarnation == under.to_incarnation {
            match &error {
                None => {
                    far.certain += 1;
                    far.possible -= 1;
                }
                // No event goes behind a request that failed.
                Some(_) if ends.iter().any(|end| *end != Ended::Whole) => far.possible -= 1,
                Some(error) if error.landed() == Landed::No => far.possible -= 1,
                Some(_) => {}
            }
        }
        self.settle(&under, &ends)
    }

    /// What the ends promise holds, and quiet memory is used again at once.
    fn settle(&mut self, under: &Under, ends: &[Ended]) -> Result<(), String> {
        for (index, (asked, end)) in under.requests.iter().zip(ends).enumerate() {
            let (target, at) = match asked.operation {
                Operation::Write => (asked.far, asked.far_at),
                Operation::Read => (asked.near, asked.near_at),
            };
            if *end == Ended::Whole && !self.processes[target.node].has(target, at, &asked.bytes) {
                let number = under.number;
                return Err(format!(
                    "request {index} of transfer {number} ended OK without its bytes"
                ));
            }
            let writer = under.writer(index);
            self.processes[asked.near.node].reuse(asked.near, writer);
            match (asked.operation, end) {
                (Operation::Read, _) => self.processes[asked.far.node].release(asked.far),
                (Operation::Write, Ended::Unproven) => {}
                (Operation::Write, _) => self.processes[asked.far.node].reuse(asked.far, writer),
            }
        }
        Ok(())
    }
}

/// How a request ended, for the memory it writes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// All its bytes are there, and it is quiet.
    Whole,
    /// Quiet, without a byte of it.
    Untouched,
    /// Some of its bytes may be there; no more come.
    Quiet,
    /// Nothing is known of the far side.
    Unproven,
}

impl Process {
    fn pick(
        &self,
        rng: &mut fastrand::Rng,
        node: usize,
        fits: impl Fn(Use) -> bool,
    ) -> Option<Block> {
        let open = self.spaces.iter().enumerate();
        let open = open.filter(|(_, space)| space.state == Registration::Open);
        let blocks = open.flat_map(|(number, space)| {
            let fits = space.blocks.iter().enumerate().filter(|(_, held)| fits(**held));
            fits.map(move |(block, _)| (number, block))
        });
        let (space, block) = rng.choice(blocks.collect::<Vec<_>>())?;
        Some(Block { node, incarnation: self.node.incarnation, space, block })
    }

    fn held(&self, block: Block) -> Use {
        self.spaces[block.space].blocks[block.block]
    }

    fn take(&mut self, block: Block, held: Use) {
        self.spaces[block.space].blocks[block.block] = held;
    }

    /// One user less.
    pub(super) fn release(&mut self, block: Block) {
        if block.incarnation != self.node.incarnation {
            return;
        }
        let held = &mut self.spaces[block.space].blocks[block.block];
        *held = match *held {
            Use::Readers(readers) if readers > 1 => Use::Readers(readers - 1),
            _ => Use::Free,
        };
    }

    /// A block is quiet: its owner writes into it at once, and nobody else may from here on.
    fn reuse(&mut self, block: Block, writer: usize) {
        if block.incarnation != self.node.incarnation {
            return;
        }
        let space = &mut self.spaces[block.space];
        space.memory.forbid(writer);
        space.fill(block.node, block.space, block.block);
        self.release(block);
    }

    /// Whether these bytes are in a block.
    fn has(&self, block: Block, at: usize, bytes: &[u8]) -> bool {
        if block.incarnation != self.node.incarnation {
            return true;
        }
        let space = &self.spaces[block.space];
        if space.state == Registration::Gone {
            return true;
        }
        let start = space.range(block.block).start + at;
        let slice = Slice::new(space.memory.region.memory().clone(), start, bytes.len());
        let mut there = vec![0; bytes.len()];
        let read = slice.and_then(|slice| slice.read(0, &mut there));
        read.is_ok() && there == bytes
    }
}
