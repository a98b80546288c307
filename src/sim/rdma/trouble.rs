//! Faults, and what owners do to those who use their memory.

use super::memory::Is;
use super::process::Process;
use super::schedule::{Happening, What};
use super::world::{Coming, World, note};
use crate::path::rdma::{InitiatorId, Signals};

/// The fault of a NIC that ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ill {
    Cut,
    Silent,
    Slow,
}

impl World<'_> {
    pub(super) fn begin(&mut self, happening: Happening) -> Result<(), String> {
        let mut rng = fastrand::Rng::with_seed(happening.seed);
        let node = self.somebody_busy(&mut rng);
        let rail = rng.usize(..self.schedule.rails);
        let after_ns = duration_ns(&mut rng);
        if happening.what != What::Transfer {
            note!(self, "fault     {:?} at node {node}, rail {rail}", happening.what);
        }
        match happening.what {
            What::Transfer => self.transfer(happening),
            What::Cut => self.ill(node, rail, Ill::Cut, after_ns),
            What::Silence => self.ill(node, rail, Ill::Silent, after_ns),
            What::Slow => self.ill(node, rail, Ill::Slow, after_ns),
            What::Loss => {
                self.fabric.set_loss(rng.u32(2..20));
                self.later(after_ns, Coming::Lossless);
            }
            What::Surprise if self.schedule.limits.signals == Signals::Behind => {
                self.processes[node].nics.iter().for_each(|nic| nic.surprise());
            }
            What::Surprise => {}
            What::Partition => {
                self.is_partitioned = true;
                self.later(after_ns, Coming::Together);
            }
            What::Pause => {
                let process = &mut self.processes[node];
                process.is_paused = true;
                let incarnation = process.incarnation;
                self.later(after_ns, Coming::Resume { node, incarnation });
            }
            What::Crash => self.crash(node),
            What::Reuse => self.reuse_under_a_reader(node, &mut rng),
            What::Revoke => self.revoke(node, &mut rng),
            What::Unregister => self.unregister(node),
            What::Close => self.close(node, &mut rng),
        }
        Ok(())
    }

    /// Faults mostly hit where something is under way.
    fn somebody_busy(&self, rng: &mut fastrand::Rng) -> usize {
        let anybody = rng.usize(..self.processes.len());
        let busy = self.under_way.iter().filter(|under| under.ending.is_none());
        let ends: Vec<usize> = busy.flat_map(|under| [under.from, under.to]).collect();
        let busy = rng.choice(&ends).copied();
        busy.filter(|_| rng.u8(..4) > 0).unwrap_or(anybody)
    }

    fn ill(&mut self, node: usize, rail: usize, ill: Ill, after_ns: u64) {
        self.set_ill(node, rail, ill, true);
        self.later(after_ns, Coming::Well { node, rail, ill });
    }

    pub(super) fn set_ill(&mut self, node: usize, rail: usize, ill: Ill, is_ill: bool) {
        let nic = &self.processes[node].nics[rail];
        match ill {
            Ill::Cut => nic.set_link(!is_ill),
            Ill::Silent => nic.set_silent(is_ill),
            Ill::Slow => nic.set_slowness(if is_ill { 50 } else { 1 }),
        }
    }

    /// A process dies; its peers hear of it after a while, and end what it had open.
    fn crash(&mut self, node: usize) {
        let gone = &self.processes[node];
        let (ids, incarnation) = (gone.ids.clone(), gone.incarnation + 1);
        let nics = gone.nics.clone();
        nics.iter().for_each(|nic| nic.crash());
        for under in self.under_way.iter().filter(|under| under.from == node) {
            let process = &mut self.processes[under.to];
            for &(_, there) in &under.pairs {
                let block = &mut process.memory.blocks[there];
                match std::mem::replace(&mut block.is, Is::Idle) {
                    Is::Incoming(order, new) if order == under.id => {
                        block.is = Is::Doubtful(order, new);
                    }
                    Is::Source(order) if order == under.id => {}
                    other => block.is = other,
                }
            }
        }
        let memory = self.memory_of(node);
        let process = Process::start(node, incarnation, nics, memory, &self.schedule);
        self.processes[node] = process;
        for peer in (0..self.processes.len()).filter(|peer| *peer != node) {
            // Some hear of it while its last packets are on their way.
            let longest_ns = [20_000, 2_000_000][self.rng.usize(..2)];
            let after_ns = self.rng.u64(..longest_ns);
            for &initiator in &ids {
                self.later(after_ns, Coming::Evict { node: peer, initiator });
            }
        }
    }

    pub(super) fn evicted(&mut self, node: usize, initiator: InitiatorId) {
        for under in &self.under_way {
            if under.initiator != initiator || under.to != node {
                continue;
            }
            let memory = &mut self.processes[node].memory;
            for &(_, there) in &under.pairs {
                if matches!(&memory.blocks[there].is, Is::Doubtful(order, _) if *order == under.id)
                {
                    memory.reuse(there);
                }
            }
        }
    }

    /// An owner moves a block on that somebody reads with its generation.
    fn reuse_under_a_reader(&mut self, node: usize, rng: &mut fastrand::Rng) {
        let memory = &mut self.processes[node].memory;
        let read = self.under_way.iter().filter(|under| under.is_guarded_read(node));
        let blocks = read.flat_map(|under| under.pairs.iter().map(|pair| (under.id, pair.1)));
        let is_held =
            |(order, block): &(u64, usize)| memory.blocks[*block].is == Is::Source(*order);
        let blocks: Vec<usize> = blocks.filter(is_held).map(|(_, block)| block).collect();
        if let Some(&block) = rng.choice(&blocks) {
            memory.refill(block);
        }
    }

    fn revoke(&mut self, node: usize, rng: &mut fastrand::Rng) {
        let process = &mut self.processes[node];
        let grants: Vec<u128> = process.grants.keys().copied().collect();
        if let Some(&grant) = rng.choice(&grants) {
            if let Some((block, _)) = process.grants.remove(&grant) {
                self.revoking.insert(grant, (node, process.incarnation, block));
            }
            process.target.revoke(grant);
            // A silent NIC never closes a window; an owner in a hurry ends the endpoint instead.
            self.later(1_000_000_000, Coming::Hurry { node, grant });
        }
    }

    /// Nothing reaches a block by this grant any more: its owner uses it at once.
    pub(super) fn revoked(&mut self, node: usize, grant: u128) {
        let Some((_, incarnation, block)) = self.revoking.remove(&grant) else { return };
        let process = &mut self.processes[node];
        if process.incarnation == incarnation {
            self.take_back(node, block, grant as u64);
        }
    }

    fn take_back(&mut self, node: usize, block: usize, order: u64) {
        let memory = &mut self.processes[node].memory;
        let is = &memory.blocks[block].is;
        let holds =
            matches!(is, Is::Incoming(o, _) | Is::Doubtful(o, _) | Is::Source(o) if *o == order);
        if holds {
            memory.reuse(block);
        }
    }

    /// The device itself proves that nothing comes by a key that was taken back.
    fn unregister(&mut self, node: usize) {
        self.processes[node].deregister();
        let of_keys = |under: &&super::work::Under| under.to == node && !under.is_granted;
        let orders: Vec<_> = self.under_way.iter().filter(of_keys).collect();
        let blocks: Vec<_> = orders
            .into_iter()
            .flat_map(|under| under.pairs.iter().map(|pair| (pair.1, under.id)))
            .collect();
        for (block, order) in blocks {
            self.take_back(node, block, order);
        }
        self.processes[node].register();
    }

    fn close(&mut self, node: usize, rng: &mut fastrand::Rng) {
        let now_ns = self.now_ns;
        let process = &mut self.processes[node];
        let links: Vec<(usize, u64)> = process.links.clone().into_iter().collect();
        if let Some(&(to, peer)) = rng.choice(&links) {
            process.links.remove(&to);
            process.initiator.close(peer, now_ns);
        }
    }
}

/// Most faults are as short as a transfer; some outlast every time-out.
fn duration_ns(rng: &mut fastrand::Rng) -> u64 {
    match rng.u8(..4) {
        0 | 1 => rng.u64(50_000..3_000_000),
        2 => rng.u64(3_000_000..300_000_000),
        _ => rng.u64(300_000_000..8_000_000_000),
    }
}
