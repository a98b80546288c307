//! The faults of a world: connections that die or stall, processes that stop, die and come back,
//! regions that are taken back under load.

use std::task::{Context, Waker};

use super::ends::Ended;
use super::process::{Closing, Process, Registration, Use};
use super::schedule::{Happening, What};
use super::transfer::Under;
use super::world::{Coming, World, note};

impl World {
    /// Something of the schedule happens.
    pub(super) fn begin(&mut self, happening: Happening) {
        let mut rng = fastrand::Rng::with_seed(happening.seed);
        match happening.what {
            What::Transfer => self.begin_transfer(happening.seed),
            What::Reset => self.reset(&mut rng),
            What::Stall => self.stall(&mut rng),
            What::Pause => self.pause(&mut rng),
            What::Crash => self.crash(&mut rng),
            What::Unregister => self.unregister(&mut rng),
            What::Revoke => self.revoke(&mut rng),
            What::Close => self.close(&mut rng),
            What::Forget => {
                let node = rng.usize(..self.processes.len());
                note!(self, "node {node}    lets go of its peers");
                self.processes[node].peers.fill_with(|| None);
            }
        }
    }

    fn reset(&mut self, rng: &mut fastrand::Rng) {
        if let Some(end) = rng.choice(self.ground.network.ends()) {
            note!(self, "net       connection {end} is reset");
            self.ground.network.reset(end);
        }
    }

    fn stall(&mut self, rng: &mut fastrand::Rng) {
        for _ in 0..rng.usize(1..=3) {
            let Some(end) = rng.choice(self.ground.network.ends()) else { return };
            // Short of any patience, or past that of a transfer that has ended.
            let after_ns = 1 << if rng.bool() { rng.u32(18..27) } else { rng.u32(27..31) };
            note!(self, "net       what goes to {end} waits for {after_ns} ns");
            self.ground.network.stall(end, true);
            self.later(after_ns, Coming::Unstall(end));
        }
    }

    fn pause(&mut self, rng: &mut fastrand::Rng) {
        let node = rng.usize(..self.processes.len());
        let process = &mut self.processes[node].node;
        if process.is_paused {
            return;
        }
        let (after_ns, incarnation) = (1 << rng.u32(18..31), process.incarnation);
        process.pause(&self.ground.network, true);
        note!(self, "node {node}    stops for {after_ns} ns");
        self.later(after_ns, Coming::Resume(node, incarnation));
    }

    /// A process dies, and a new one takes its name.
    fn crash(&mut self, rng: &mut fastrand::Rng) {
        let node = rng.usize(..self.processes.len());
        let incarnation = self.processes[node].node.incarnation + 1;
        note!(self, "node {node}    dies and is started again as {incarnation}");
        let (own, others) =
            std::mem::take(&mut self.under_way).into_iter().partition(|under| under.from.0 == node);
        self.under_way = others;
        let own: Vec<Under> = own;
        self.ended += own.len();
        for asked in own.iter().flat_map(|under| &under.requests) {
            // What it wrote may still be on its way.
            self.leave(asked, Ended::Unproven, usize::MAX);
        }
        let nodes = self.schedule.nodes;
        let bytes = self.schedule.block_bytes;
        // Its shards are dropped as they are: nothing of it gets another turn.
        drop(self.processes.remove(node));
        drop(own);
        let new = Process::start(&self.ground, node, nodes, incarnation, bytes);
        self.processes.insert(node, new);
    }

    fn unregister(&mut self, rng: &mut fastrand::Rng) {
        let node = rng.usize(..self.processes.len());
        let bytes = self.schedule.block_bytes;
        let process = &mut self.processes[node];
        if process.unregistering.is_some() || process.node.is_paused {
            return;
        }
        let open = process.spaces.iter().enumerate();
        let mut open = open.filter(|(_, space)| space.state == Registration::Open);
        let Some((index, _)) = open.next_back() else { return };
        let region = process.spaces[index].memory.region.clone();
        process.spaces[index].state = Registration::Closing;
        let engine = process.node.engine.clone();
        process.strike(index);
        let work = Box::pin(async move { engine.unregister(region).await });
        process.unregistering = Some((index, work));
        process.register(&self.ground, node, bytes);
        note!(self, "node {node}    takes its region {index} back");
        // A future does nothing before it is polled.
        self.unregistered();
    }

    /// Regions that nobody reaches any more belong to their owners, who use them at once.
    pub(super) fn unregistered(&mut self) {
        for node in 0..self.processes.len() {
            let process = &mut self.processes[node];
            let Some((index, work)) = &mut process.unregistering else { continue };
            if process.node.is_paused {
                continue;
            }
            let index = *index;
            let polled = work.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            if polled.is_ready() {
                process.unregistering = None;
                process.spaces[index].reclaim(node, index);
                process.spaces[index].blocks.fill(Use::Held);
                note!(self, "node {node}    has its region {index} back");
            }
        }
    }

    /// A process closes a peer, with whatever is under way to it.
    fn close(&mut self, rng: &mut fastrand::Rng) {
        let node = rng.usize(..self.processes.len());
        let process = &mut self.processes[node];
        if process.closing.is_some() || process.node.is_paused {
            return;
        }
        let number = rng.usize(..process.peers.len());
        let Some((incarnation, peer)) = process.peers[number].take() else { return };
        let engine = process.node.engine.clone();
        let work = Box::pin(async move { engine.close(peer).await });
        let (peer, before) = ((number, incarnation), self.transfers);
        process.closing = Some(Closing { peer, before, work });
        note!(self, "node {node}    closes node {number}");
    }

    /// Nothing is under way any more to a peer that is closed.
    pub(super) fn closed(&mut self) -> Result<(), String> {
        for (node, process) in self.processes.iter_mut().enumerate() {
            let Some(closing) = &mut process.closing else { continue };
            let is_paused = process.node.is_paused;
            let context = &mut Context::from_waker(Waker::noop());
            if is_paused || closing.work.as_mut().poll(context).is_pending() {
                continue;
            }
            let (own, Closing { peer, before, .. }) = ((node, process.node.incarnation), closing);
            let is_left =
                |under: &&Under| under.from == own && under.to == *peer && under.number < *before;
            if let Some(left) = self.under_way.iter().find(is_left) {
                let number = left.number;
                return Err(format!("transfer {number} is under way to a peer that is closed"));
            }
            process.closing = None;
        }
        Ok(())
    }
}
