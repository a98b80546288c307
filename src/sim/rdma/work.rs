//! Orders: what processes ask of each other, and what their ends must be true about.

use super::memory::{BLOCK_BYTES, Is, Memory};
use super::process::NODES_MAX;
use super::schedule::Happening;
use super::world::{Coming, World, note};
use crate::path::rdma::{
    Ending, Event, Fenced, Guard, Incarnation, InitiatorId, Keys, Order, RdmaSlice,
};
use crate::receipt::Proof;
use crate::sim::pattern::WORD;
use crate::{ErrorKind, Landed};

/// An order that was taken on.
pub(super) struct Under {
    pub(super) id: u64,
    pub(super) from: usize,
    /// Which process of that name.
    pub(super) from_incarnation: u64,
    pub(super) initiator: InitiatorId,
    pub(super) to: usize,
    pub(super) to_incarnation: u64,
    /// Blocks here and there.
    pub(super) pairs: Vec<(usize, usize)>,
    is_write: bool,
    /// What each block's reader must find, or its writer brings.
    contents: Vec<Vec<u8>>,
    has_event: bool,
    is_guarded: bool,
    pub(super) is_granted: bool,
    pub(super) ending: Option<Ending>,
    /// Its memory here is free again.
    is_released: bool,
    counted: u32,
}

impl World<'_> {
    /// A process asks for a transfer, if it has blocks for one.
    pub(super) fn transfer(&mut self, happening: Happening) {
        let mut rng = fastrand::Rng::with_seed(happening.seed);
        let from = rng.usize(..self.processes.len());
        let to = (from + rng.usize(1..self.processes.len())) % self.processes.len();
        let wanted = rng.usize(1..=3);
        let is_idle = |memory: &Memory| -> Vec<usize> {
            let blocks = memory.blocks.iter().enumerate();
            blocks.filter(|(_, block)| block.is == Is::Idle).map(|(number, _)| number).collect()
        };
        let here = is_idle(&self.processes[from].memory);
        let there = is_idle(&self.processes[to].memory);
        let pairs: Vec<_> = here.into_iter().zip(there).take(wanted).collect();
        if self.processes[from].is_paused || pairs.is_empty() {
            return;
        }
        self.order(&mut rng, (from, to), pairs);
    }

    fn order(
        &mut self,
        rng: &mut fastrand::Rng,
        (from, to): (usize, usize),
        pairs: Vec<(usize, usize)>,
    ) {
        self.report.transfers += 1;
        let id = self.report.transfers as u64;
        let is_write = rng.u8(..8) < 5;
        // A window opens one block.
        let is_granted = rng.u8(..4) == 0;
        let pairs = if is_granted { pairs[..1].to_vec() } else { pairs };
        let is_guarded = !is_write && !is_granted && rng.bool();
        let has_event = rng.u8(..8) < if is_write { 5 } else { 1 };
        let keys = if is_granted {
            self.processes[to].grants.insert(u128::from(id), (pairs[0].1, is_write));
            Keys::Grant(u128::from(id))
        } else {
            Keys::Registered(self.processes[to].keys.clone())
        };
        let mut slices = Vec::new();
        for &pair in &pairs {
            self.cut(rng, (from, to), pair, (is_write, &keys), &mut slices);
        }
        let memory = &self.processes[to].memory;
        let guard = is_guarded.then(|| Guard {
            addr: self.processes[to].base() + Memory::word_offset(pairs[0].1) as u64,
            keys: keys.clone(),
            expected: memory.blocks[pairs[0].1].generation,
        });
        // One generation word stands for the block that it is of.
        let pairs = if is_guarded { pairs[..1].to_vec() } else { pairs };
        if is_guarded {
            slices.retain(|slice: &RdmaSlice| self.block_of(to, slice.addr) == pairs[0].1);
        }
        let deadline_ns = (rng.u8(..6) == 0).then(|| self.now_ns + rng.u64(20_000..40_000_000));
        let event = has_event.then_some(Event { counter: id, amount: 1 });
        let contents = self.occupy(id, (from, to), &pairs, is_write);
        let fresh = self.report.transfers as u64;
        let rails = self.schedule.rails;
        let peer = self.processes[from].peer(to, rails, || fresh);
        let incarnation = Incarnation(self.processes[to].incarnation);
        let target = (rng.u8(..4) > 0).then_some(incarnation);
        let order = Order { id, peer, slices, target, guard, event, deadline_ns };
        self.under_way.push(Under {
            id,
            from,
            from_incarnation: self.processes[from].incarnation,
            initiator: self.processes[from].id_for(peer),
            to,
            to_incarnation: self.processes[to].incarnation,
            pairs,
            is_write,
            contents,
            has_event,
            is_guarded,
            is_granted,
            ending: None,
            is_released: false,
            counted: 0,
        });
        if rng.u8(..4) == 0 {
            // While an endpoint opens, while slices are under way, and while they are re-sent.
            let longest_ns = [100_000, 500_000, 5_000_000][rng.usize(..3)];
            self.later(rng.u64(..longest_ns), Coming::Cancel { node: from, order: id });
        }
        self.note_order(&order, from, to);
        let taken = self.processes[from].initiator.carry(order, self.now_ns);
        assert_eq!(taken, Ok(()), "an order is taken");
    }

    fn note_order(&mut self, order: &Order, from: usize, to: usize) {
        let verb = if order.slices[0].is_write { "writes to" } else { "reads from" };
        let (base, id) = (self.processes[to].base(), order.id);
        let slices = order.slices.iter().map(|slice| (slice.addr - base, slice.local.len()));
        let slices: Vec<_> = slices.collect();
        let (keys, guard) = (&order.slices[0].keys, &order.guard);
        let (event, deadline_ns) = (&order.event, &order.deadline_ns);
        note!(
            self,
            "node {from}    order {id} {verb} node {to} at {slices:?} by {keys:?}, {guard:?}, \
             {event:?}, deadline {deadline_ns:?}"
        );
    }

    /// Cuts one block into slices.
    fn cut(
        &self,
        rng: &mut fastrand::Rng,
        (from, to): (usize, usize),
        (here, there): (usize, usize),
        (is_write, keys): (bool, &Keys),
        slices: &mut Vec<RdmaSlice>,
    ) {
        let local = self.processes[from].memory.part(here);
        let base = self.processes[to].base() + (there * BLOCK_BYTES) as u64;
        let mut start = 0;
        while start < BLOCK_BYTES {
            let len = (rng.usize(1..=BLOCK_BYTES / WORD) * WORD).min(BLOCK_BYTES - start);
            let part = local.part(start, len).expect("inside of the block");
            let addr = base + start as u64;
            slices.push(RdmaSlice { is_write, local: part, addr, keys: keys.clone(), near: 0 });
            start += len;
        }
    }

    fn block_of(&self, node: usize, addr: u64) -> usize {
        (addr - self.processes[node].base()) as usize / BLOCK_BYTES
    }

    /// Marks the blocks of an order; returns what it brings.
    fn occupy(
        &mut self,
        id: u64,
        (from, to): (usize, usize),
        pairs: &[(usize, usize)],
        is_write: bool,
    ) -> Vec<Vec<u8>> {
        let mut contents = Vec::new();
        for &(here, there) in pairs {
            let source = if is_write { (from, here) } else { (to, there) };
            let bytes = self.processes[source.0].memory.blocks[source.1].shadow.clone();
            let incoming = Is::Incoming(id, bytes.clone());
            let (own, theirs) = if is_write {
                (Is::Source(id), incoming)
            } else {
                (Is::Scratch(id), Is::Source(id))
            };
            self.processes[from].memory.blocks[here].is = own;
            self.processes[to].memory.blocks[there].is = theirs;
            contents.push(bytes);
        }
        contents
    }

    /// An order has ended: what its receipt says has to be true, and its memory is used at once.
    pub(super) fn ended(&mut self, order: u64, ending: Ending) -> Result<(), String> {
        note!(self, "order {order}   ends: {ending:?}");
        let at = self.under_way.iter().position(|under| under.id == order);
        let at = at.ok_or_else(|| format!("order {order} ended and was never asked for"))?;
        if self.under_way[at].ending.is_some() {
            return Err(format!("order {order} ended twice"));
        }
        self.report.succeeded += usize::from(ending.kind.is_none());
        is_plausible(&self.under_way[at], &ending)
            .map_err(|what| format!("order {order} {what}"))?;
        self.under_way[at].ending = Some(ending.clone());
        for pair in 0..self.under_way[at].pairs.len() {
            self.over_there(at, pair, &ending)?;
        }
        if ending.local == Proof::Quiet {
            self.released(order)?;
        }
        Ok(())
    }

    /// The peer's block of a pair, at the order's end.
    fn over_there(&mut self, at: usize, pair: usize, ending: &Ending) -> Result<(), String> {
        let under = &self.under_way[at];
        let (id, content) = (under.id, &under.contents[pair]);
        let (here, there) = under.pairs[pair];
        if ending.kind.is_none() && !under.is_write {
            let read = self.processes[under.from].memory.bytes(here);
            if read != *content {
                return Err(format!("order {id} ended well, but did not read one generation"));
            }
        }
        let process_is_same = under.to_incarnation == self.processes[under.to].incarnation;
        let process = if process_is_same { &mut self.processes[under.to] } else { return Ok(()) };
        match process.memory.blocks[there].is.clone() {
            Is::Incoming(order, new) if order == id => {
                let bytes = process.memory.bytes(there);
                let is_old = bytes == process.memory.blocks[there].shadow;
                if ending.kind.is_none() && bytes != new {
                    return Err(format!("order {id} ended well, but block {there} lacks bytes"));
                }
                if ending.landed == Landed::No && !is_old {
                    return Err(format!("order {id} did not land, but block {there} changed"));
                }
                if ending.remote() == Proof::Quiet {
                    process.memory.reuse(there);
                } else {
                    process.memory.blocks[there].is = Is::Doubtful(id, new);
                }
            }
            Is::Source(order) if order == id => process.memory.blocks[there].is = Is::Idle,
            // Its owner has it back already.
            _ => {}
        }
        Ok(())
    }

    /// An order's memory here is quiet: used at once.
    pub(super) fn released(&mut self, order: u64) -> Result<(), String> {
        let at = self.under_way.iter().position(|under| under.id == order);
        let under = &mut self.under_way[at.ok_or("a made-up order was released")?];
        if under.ending.is_none() || under.is_released {
            return Err(format!("order {order} was released before its end, or twice"));
        }
        under.is_released = true;
        let process = &mut self.processes[under.from];
        for &(here, _) in &under.pairs {
            process.memory.reuse(here);
        }
        Ok(())
    }

    /// A counter has advanced: once, and behind its data, which nothing of the order touches any
    /// more: its owner may use the blocks at once.
    pub(super) fn counted(&mut self, node: usize, counter: u64, amount: u64) -> Result<(), String> {
        let under = self.under_way.iter_mut().find(|under| under.id == counter);
        let under = under.filter(|under| under.to == node && under.has_event);
        let under = under.ok_or_else(|| format!("counter {counter} is nobody's"))?;
        under.counted += amount as u32;
        if under.counted > 1 {
            return Err(format!("order {counter} counted twice"));
        }
        let is_used_at_once = self.rng.bool();
        let memory = &mut self.processes[node].memory;
        for &(_, there) in &under.pairs {
            let block = &memory.blocks[there];
            let is_of_it = match &block.is {
                Is::Incoming(order, new) if *order == counter => {
                    if memory.bytes(there) != *new {
                        return Err(format!("order {counter} counted before its bytes came"));
                    }
                    true
                }
                Is::Source(order) => *order == counter,
                _ => false,
            };
            if is_of_it && is_used_at_once {
                memory.reuse(there);
            }
        }
        Ok(())
    }

    /// What must be true when nothing is under way any more.
    pub(super) fn check_ends(&self) -> Result<(), String> {
        for under in &self.under_way {
            let is_there = self.processes[under.to].incarnation == under.to_incarnation;
            let is_ours = self.processes[under.from].incarnation == under.from_incarnation;
            let is_ok = under.ending.as_ref().is_some_and(|ending| ending.kind.is_none());
            if is_ours && !under.is_released {
                return Err(format!("order {} keeps its memory for ever", under.id));
            }
            if is_there && is_ok && under.has_event && under.counted != 1 {
                return Err(format!("order {} ended well and never counted", under.id));
            }
        }
        Ok(())
    }

    /// Grants of processes that live are taken back in bounded time.
    pub(super) fn check_grants(&self) -> Result<(), String> {
        let lives =
            |(node, incarnation): (usize, u64)| self.processes[node].incarnation == incarnation;
        let left =
            self.revoking.iter().find(|(_, (node, incarnation, _))| lives((*node, *incarnation)));
        left.map_or(Ok(()), |(grant, _)| Err(format!("grant {grant} is never taken back")))
    }

    /// Every order of the processes that live has ended.
    pub(super) fn have_all_ended(&self) -> bool {
        let lives =
            |under: &Under| self.processes[under.from].incarnation == under.from_incarnation;
        self.under_way.iter().all(|under| under.ending.is_some() || !lives(under))
    }
}

impl Under {
    /// Whether it reads from this node, and looks at the generation behind.
    pub(super) fn is_guarded_read(&self, node: usize) -> bool {
        self.to == node && self.is_guarded && self.ending.is_none()
    }
}

/// Whether what a receipt says goes together.
fn is_plausible(under: &Under, ending: &Ending) -> Result<(), String> {
    let is_ok = ending.kind.is_none();
    let wrong = [
        (is_ok && ending.landed != Landed::Yes, "succeeded, and did not land"),
        (is_ok && ending.remote() != Proof::Quiet, "succeeded, and is not quiet"),
        (
            ending.fenced == Fenced::Unposted && ending.landed != Landed::No,
            "landed without being posted",
        ),
        (
            ending.kind == Some(ErrorKind::Stale) && !under.is_guarded && !under.is_granted,
            "is stale, and nobody looked",
        ),
    ];
    wrong.iter().find(|(is_wrong, _)| *is_wrong).map_or(Ok(()), |(_, what)| Err((*what).to_owned()))
}

/// The node behind a peer's name.
pub(super) fn node_of(peer: u64) -> usize {
    (peer % NODES_MAX) as usize
}
