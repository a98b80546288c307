//! The world's workload: transfers between blocks, some of them under grants, with what their
//! callers make of them.

use std::time::Duration;

use super::hearing::{COUNTER, Tells};
use super::pattern::WORD;
use super::process::{Block, Use};
use super::tenancy::Claim;
use super::transfer::{Asked, Course, Enough, Under};
use super::world::{World, note};
use crate::Peer;
use crate::memory::Operation;
use crate::request::Batch;

/// How a transfer's caller behaves.
struct Caller {
    tells: Tells,
    /// Ends by itself so soon.
    deadline: Option<Duration>,
    gives_up: Option<(u64, Enough)>,
    /// Prepares the batch, and posts it so many times more.
    repeats: Option<u32>,
}

impl Caller {
    fn new(rng: &mut fastrand::Rng, now_ns: u64, can_tell: bool) -> Self {
        let tells = Tells { counts: can_tell && rng.bool(), says: can_tell && rng.u8(..4) == 0 };
        let deadline = (rng.u8(..4) == 0).then(|| Duration::from_micros(rng.u64(1..3_000)));
        let enough = if rng.bool() { Enough::Drops } else { Enough::Cancels };
        let gives_up = (rng.u8(..5) < 2).then(|| (now_ns + rng.u64(..1_500_000), enough));
        let repeats = (rng.u8(..6) == 0).then(|| rng.u32(..3));
        Self { tells, deadline, gives_up, repeats }
    }
}

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
        let caller = Caller::new(&mut rng, self.now_ns, !self.is_old(from));
        let batch = self.batch((from, to), number, &requests, &caller);
        let process = &self.processes[from].node;
        let course = match caller.repeats {
            Some(again) => Course::repeated(&process.engine, batch, again),
            None => Course::once(&process.engine, batch),
        };
        let far = &mut self.processes[to];
        far.hearing.asked(number, caller.tells);
        let under = Under {
            number,
            from: (from, self.processes[from].node.incarnation),
            to: (to, self.processes[to].node.incarnation),
            requests,
            tells: caller.tells,
            is_patient: caller.deadline.is_none() && caller.gives_up.is_none(),
            gives_up: caller.gives_up,
            course,
        };
        self.allow(&under);
        self.under_way.push(under);
    }

    /// Whether a node speaks to its peers as Mooncake's older processes do.
    fn is_old(&self, node: usize) -> bool {
        self.schedule.old_node == Some(node)
    }

    fn batch(
        &mut self,
        (from, to): (usize, usize),
        number: usize,
        requests: &[Asked],
        caller: &Caller,
    ) -> Batch {
        let Caller { tells, deadline, gives_up, repeats } = caller;
        let under = requests.iter().filter(|asked| asked.claim.is_some()).count();
        note!(
            self,
            "transfer {number} of {} requests, {under} under grants, node {from} to node {to}: \
            {tells:?}, deadline {deadline:?}, gives up {gives_up:?}, repeats {repeats:?}",
            requests.len()
        );
        let mut batch = Batch::new(&self.peer(from, to));
        requests.iter().for_each(|asked| self.add(&mut batch, asked));
        if tells.counts {
            batch.count(COUNTER, 1);
        }
        if tells.says {
            batch.notify(number.to_string());
        }
        if let Some(after) = *deadline {
            batch.deadline(after);
        }
        batch
    }

    /// Has the oracle know what a transfer may write.
    fn allow(&mut self, under: &Under) {
        for (index, asked) in under.requests.iter().enumerate() {
            let (target, at) = asked.target();
            let (writer, len) = (under.writer(index), asked.bytes.len());
            let process = &mut self.processes[target.node];
            let space = &mut process.spaces[target.space];
            let start = space.range(target.block).start + at;
            if !asked.is_outdated() {
                space.memory.allow(writer, start..start + len, asked.bytes.clone());
            }
            match (asked.claim, asked.operation) {
                (Some(claim), Operation::Write) => process.writes_under(claim, writer),
                // What was taken back is answered with zeros.
                (Some(_), Operation::Read) => {
                    space.memory.allow(writer, start..start + len, vec![0; len]);
                }
                (None, _) => {}
            }
        }
    }

    fn peer(&mut self, from: usize, to: usize) -> Peer {
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
        let Some((far, claim)) = self.other_side(rng, operation, (from, to)) else {
            self.processes[from].release(near);
            return None;
        };
        let words = self.schedule.block_bytes / WORD;
        let is_whole = rng.u8(..4) == 0;
        let near_at = if is_whole { 0 } else { rng.usize(..words) };
        let far_at = if is_whole { 0 } else { rng.usize(..words) };
        let most = words - near_at.max(far_at);
        let len = if is_whole { most } else { rng.usize(1..=most) } * WORD;
        let (near_at, far_at) = (near_at * WORD, far_at * WORD);
        let (source, at) = match operation {
            Operation::Read => (far, far_at),
            Operation::Write => (near, near_at),
        };
        let space = &self.processes[source.node].spaces[source.space];
        let start = space.range(source.block).start + at;
        let bytes = space.memory.expected(start..start + len).to_vec();
        Some(Asked { operation, near, far, claim, near_at, far_at, bytes })
    }

    /// A block at the peer, under a grant or as its region permits.
    fn other_side(
        &mut self,
        rng: &mut fastrand::Rng,
        operation: Operation,
        (from, to): (usize, usize),
    ) -> Option<(Block, Option<Claim>)> {
        if rng.u8(..8) < 3 && !self.is_old(from) {
            let (far, claim) = self.granted(rng, operation, (from, to))?;
            return Some((far, Some(claim)));
        }
        let process = &mut self.processes[to];
        let is_read = operation == Operation::Read;
        let fits = |held| held == Use::Free || is_read && matches!(held, Use::Readers(_));
        let far = process.pick(rng, to, fits)?;
        let readers = match process.held(far) {
            Use::Readers(readers) => readers,
            _ => 0,
        };
        process.take(far, if is_read { Use::Readers(readers + 1) } else { Use::Held });
        Some((far, None))
    }

    fn add(&self, batch: &mut Batch, asked: &Asked) {
        let len = asked.bytes.len();
        let far = &self.processes[asked.far.node].spaces[asked.far.space];
        let remote =
            far.memory.region.addr() + (far.range(asked.far.block).start + asked.far_at) as u64;
        let near = &self.processes[asked.near.node].spaces[asked.near.space];
        let start = near.range(asked.near.block).start + asked.near_at;
        let region = &near.memory.region;
        let range = start..start + len;
        let grant = asked.claim.map(|claim| self.processes[asked.far.node].reference(claim));
        let offset = asked.far_at as u64;
        match asked.operation {
            Operation::Write => {
                let lease = region.share(range).expect("nobody else has the block");
                match grant {
                    Some(grant) => batch.write_to(&lease, &grant, offset),
                    None => batch.write(&lease, remote),
                };
            }
            Operation::Read => {
                let lease = region.lease(range).expect("nobody else has the block");
                match grant {
                    Some(grant) => batch.read_from(lease, &grant, offset),
                    None => batch.read(lease, remote),
                };
            }
        }
    }
}
