//! The world: processes, the fabric and the control messages between them, one clock and one seed.
//! Each step one thing happens, then the oracle looks at every byte.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kvrail_reactors::region::{Region, Slice};
use kvrail_reactors::sim::fabric::Fabric;

use super::process::{Asked, PROCESS_BYTES, Process};
use super::schedule::Schedule;
use super::trouble::Ill;
use super::work::{Under, node_of};
use crate::ErrorKind;
use crate::path::rdma::{Action, InitiatorId, Message};
use crate::sim::Report;

/// Steps of one seed: ten times what the longest take. More means that something spins.
const STEPS_MAX: u64 = 400_000;

/// Everything has ended so long after the last fault: a peer is lost after 10 s without success,
/// and an order meets that twice at most, with the time for fences before.
const PATIENCE_NS: u64 = 40_000_000_000;

/// What is to come at a moment.
#[derive(Debug)]
pub(super) enum Coming {
    Message {
        to: usize,
        from: usize,
        message: Message,
    },
    Cancel {
        node: usize,
        order: u64,
    },
    Well {
        node: usize,
        rail: usize,
        ill: Ill,
    },
    Lossless,
    /// Control messages arrive again.
    Together,
    Resume {
        node: usize,
        incarnation: u64,
    },
    Evict {
        node: usize,
        initiator: InitiatorId,
    },
    Hurry {
        node: usize,
        grant: u128,
    },
}

pub(super) struct World<'a> {
    pub(super) rng: fastrand::Rng,
    pub(super) fabric: Fabric,
    pub(super) now_ns: u64,
    pub(super) schedule: Schedule,
    next: usize,
    pub(super) processes: Vec<Process>,
    pub(super) under_way: Vec<Under>,
    coming: BTreeMap<(u64, u64), Coming>,
    comings: u64,
    /// When the last fault has ended.
    well_ns: u64,
    pub(super) is_partitioned: bool,
    /// Grants that were taken back and may still be used.
    pub(super) revoking: BTreeMap<u128, (usize, u64, usize)>,
    arena: Arc<Region>,
    pub(super) report: &'a mut Report,
    is_traced: bool,
}

/// Notes a line of the trace, which is only written where somebody reads it.
macro_rules! note {
    ($world:expr, $($words:tt)*) => {
        if $world.is_traced() {
            let line = format!($($words)*);
            $world.write(line);
        }
    };
}
pub(super) use note;

impl<'a> World<'a> {
    pub(super) fn new(
        seed: u64,
        schedule: Schedule,
        report: &'a mut Report,
        is_traced: bool,
    ) -> Self {
        let mut world = Self {
            rng: fastrand::Rng::with_seed(!seed),
            fabric: Fabric::new(seed),
            now_ns: 0,
            schedule,
            next: 0,
            processes: Vec::new(),
            under_way: Vec::new(),
            coming: BTreeMap::new(),
            comings: 0,
            well_ns: 0,
            is_partitioned: false,
            revoking: BTreeMap::new(),
            arena: ARENA.with(Arc::clone),
            report,
            is_traced,
        };
        for node in 0..world.schedule.nodes {
            let nics = (0..world.schedule.rails).map(|_| world.fabric.nic()).collect();
            let memory = world.memory_of(node);
            let process = Process::start(node, 1, nics, memory, &world.schedule);
            world.processes.push(process);
        }
        world
    }

    pub(super) fn memory_of(&self, node: usize) -> Slice {
        let memory = Slice::new(self.arena.clone(), node * PROCESS_BYTES, PROCESS_BYTES);
        memory.expect("the arena is for the largest world")
    }

    pub(super) fn is_traced(&self) -> bool {
        self.is_traced
    }

    pub(super) fn write(&mut self, line: String) {
        let now_us = self.now_ns as f64 / 1_000.0;
        self.report.trace.push(format!("{now_us:>12.3} us  {line}"));
    }

    /// Runs to the end.
    ///
    /// # Errors
    /// What broke.
    pub(super) fn run(mut self) -> Result<(), String> {
        while !self.is_idle() {
            self.step()?;
        }
        self.stop()
    }

    fn is_idle(&self) -> bool {
        self.next == self.schedule.happenings.len() && self.have_all_ended()
    }

    /// One thing happens.
    fn step(&mut self) -> Result<(), String> {
        self.report.steps += 1;
        if self.report.steps > STEPS_MAX {
            return Err(format!("it does not end: {STEPS_MAX} steps, {}", self.left()));
        }
        self.take_turns()?;
        let Some(at_ns) = self.next_ns() else {
            // The last turn may have been what everybody waited for.
            if self.is_idle() {
                return Ok(());
            }
            return Err(format!("everything sleeps for ever: {}", self.left()));
        };
        self.now_ns = self.now_ns.max(at_ns);
        self.report.virtual_ns = self.now_ns;
        self.fabric.pass(self.now_ns);
        self.happen()?;
        if let Some(moved) = self.fabric.step(self.now_ns) {
            note!(self, "nic {:<5} {:?}: {}", moved.nic, moved.qp, moved.what);
        }
        self.act()?;
        self.look()
    }

    /// Processes with something to do take it up, sooner or later.
    fn take_turns(&mut self) -> Result<(), String> {
        for node in 0..self.processes.len() {
            if self.processes[node].is_woken() && self.rng.u8(..4) > 0 {
                let budget = self.rng.usize(1..=8);
                let now_ns = self.now_ns;
                self.processes[node].turn(budget, now_ns);
                self.act()?;
            }
        }
        Ok(())
    }

    fn next_ns(&mut self) -> Option<u64> {
        let happening = self.schedule.happenings.get(self.next).map(|next| next.at_ns);
        let coming = self.coming.first_key_value().map(|((at_ns, _), _)| *at_ns);
        let (now_ns, fabric) = (self.now_ns, self.fabric.next_ns());
        let ticks = self.processes.iter().filter_map(|process| process.wake_at_ns(now_ns)).min();
        let is_woken = self.processes.iter_mut().any(Process::is_woken);
        let woken = is_woken.then_some(now_ns + 500);
        [happening, coming, fabric, ticks, woken].into_iter().flatten().min()
    }

    /// Everything whose time has come, but for the fabric.
    fn happen(&mut self) -> Result<(), String> {
        while let Some(&happening) = self.schedule.happenings.get(self.next) {
            if happening.at_ns > self.now_ns {
                break;
            }
            self.next += 1;
            self.begin(happening)?;
            self.act()?;
        }
        while let Some(entry) = self.coming.first_entry() {
            if entry.key().0 > self.now_ns {
                break;
            }
            let coming = entry.remove();
            self.come(coming);
            self.act()?;
        }
        let now_ns = self.now_ns;
        for process in &mut self.processes {
            if process.wake_at_ns(now_ns).is_some_and(|at_ns| at_ns <= now_ns) {
                process.tick(now_ns);
            }
        }
        let last_ns = self.schedule.happenings.last().map_or(0, |last| last.at_ns);
        if now_ns > last_ns.max(self.well_ns) + PATIENCE_NS {
            return Err(format!("it takes longer than any patience: {}", self.left()));
        }
        self.act()
    }

    pub(super) fn later(&mut self, after_ns: u64, coming: Coming) {
        let at_ns = self.now_ns + after_ns;
        if !matches!(coming, Coming::Message { .. } | Coming::Cancel { .. }) {
            self.well_ns = self.well_ns.max(at_ns);
        }
        self.comings += 1;
        self.coming.insert((at_ns, self.comings), coming);
    }

    fn come(&mut self, coming: Coming) {
        note!(self, "comes     {coming:?}");
        let now_ns = self.now_ns;
        match coming {
            // One who is stopped reads it when it goes on.
            Coming::Message { to, from, message } if self.processes[to].is_paused => {
                self.processes[to].mail.push((from, message));
            }
            Coming::Message { to, from, message } => {
                self.processes[to].told(from as u64, message, now_ns);
            }
            Coming::Cancel { node, order } if !self.processes[node].is_paused => {
                self.processes[node].initiator.cancel(order, ErrorKind::Cancelled, now_ns);
            }
            Coming::Cancel { .. } => {}
            Coming::Well { node, rail, ill } => self.set_ill(node, rail, ill, false),
            Coming::Lossless => self.fabric.set_loss(0),
            Coming::Together => self.is_partitioned = false,
            Coming::Resume { node, incarnation } => {
                let process = &mut self.processes[node];
                if process.incarnation == incarnation {
                    process.is_paused = false;
                    for (from, message) in std::mem::take(&mut process.mail) {
                        process.told(from as u64, message, now_ns);
                    }
                }
            }
            Coming::Evict { node, initiator } => self.processes[node].target.evict(initiator),
            Coming::Hurry { node, grant } => self.processes[node].target.hurry(grant),
        }
    }

    /// Carries out what the machines ask.
    fn act(&mut self) -> Result<(), String> {
        let (rails, now_ns) = (self.schedule.rails, self.now_ns);
        for node in 0..self.processes.len() {
            let nic_of = |peer, rail: u8| node_of(peer) * rails + usize::from(rail);
            for asked in self.processes[node].act(now_ns, nic_of) {
                match asked {
                    Asked::Tell(peer, message) => self.tell(node, node_of(peer), message),
                    Asked::Done(action) => self.done(node, action)?,
                }
            }
        }
        Ok(())
    }

    fn tell(&mut self, from: usize, to: usize, message: Message) {
        note!(self, "node {from}    tells node {to}: {message:?}");
        let (loss, twice) = (self.schedule.control_loss, self.schedule.control_twice);
        let copies = 1 + usize::from(twice > 0 && self.rng.u32(..twice) == 0);
        for _ in 0..copies {
            let is_lost = self.is_partitioned || loss > 0 && self.rng.u32(..loss) == 0;
            // Some are as fast as packets, some slower than any transfer.
            let range = match self.rng.u8(..32) {
                0 => 0..400_000_000,
                1..=12 => 500..5_000,
                _ => 5_000..300_000,
            };
            let after_ns = self.rng.u64(range);
            if !is_lost {
                self.later(after_ns, Coming::Message { to, from, message: message.clone() });
            }
        }
    }

    fn done(&mut self, node: usize, action: Action) -> Result<(), String> {
        match action {
            Action::Ended { order, ending } => self.ended(order, ending),
            Action::Released { order } => {
                note!(self, "order {order}   is released");
                self.released(order)
            }
            Action::Counted { counted, .. } => self.counted(node, counted.counter, counted.amount),
            Action::Revoked { grant } => {
                note!(self, "node {node}    has revoked grant {grant}");
                self.revoked(node, grant);
                Ok(())
            }
            Action::Evicted { initiator } => {
                note!(self, "node {node}    has evicted {initiator:?}");
                self.evicted(node, initiator);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn look(&mut self) -> Result<(), String> {
        for (number, process) in self.processes.iter_mut().enumerate() {
            process.memory.check().map_err(|what| format!("at node {number}, {what}"))?;
        }
        Ok(())
    }

    fn left(&self) -> String {
        let under = self.under_way.iter().filter(|under| under.ending.is_none());
        let orders: Vec<u64> = under.map(|under| under.id).collect();
        let busy = |is_idle: fn(&Process) -> bool| -> Vec<usize> {
            let busy = self.processes.iter().filter(|process| !is_idle(process));
            busy.map(|process| process.number).collect()
        };
        let initiators = busy(|process| process.initiator.is_idle());
        let targets = busy(|process| process.target.is_idle());
        format!(
            "orders {orders:?} are under way, initiators {initiators:?} and targets {targets:?} \
             busy"
        )
    }

    /// Everybody lets go of everybody; afterwards nothing is left of anything.
    fn stop(&mut self) -> Result<(), String> {
        note!(self, "everybody stops");
        while let Some((_, coming)) = self.coming.pop_first() {
            if !matches!(coming, Coming::Message { .. }) {
                self.come(coming);
            }
        }
        let (now_ns, patience_ns) = (self.now_ns, self.now_ns + PATIENCE_NS);
        for process in &mut self.processes {
            process.nics.iter().for_each(|nic| nic.set_silent(false));
            let links = std::mem::take(&mut process.links);
            links.values().for_each(|peer| process.initiator.close(*peer, now_ns));
        }
        self.act()?;
        while self.processes.iter().any(|process| !process.initiator.is_idle()) {
            self.step()?;
            if self.now_ns > patience_ns {
                return Err("an initiator does not stop: something is still under way".into());
            }
        }
        self.evict_all();
        self.act()?;
        while self.processes.iter().any(|process| !process.target.is_idle()) {
            self.step()?;
            if self.now_ns > patience_ns {
                return Err("a target does not stop: something is still under way".into());
            }
        }
        self.check_ends()?;
        self.check_grants()?;
        let objects: Vec<usize> = self.processes.iter().map(Process::objects).collect();
        if objects.iter().any(|left| *left > 0) {
            return Err(format!("{objects:?} objects of devices leak"));
        }
        Ok(())
    }

    /// What nobody could tell a target while control was cut, its owner ends by itself.
    fn evict_all(&mut self) {
        let initiators: Vec<_> =
            self.processes.iter().flat_map(|process| process.ids.clone()).collect();
        let orders = self.under_way.iter().map(|under| under.initiator);
        let all: BTreeSet<_> = initiators.into_iter().chain(orders).collect();
        for process in &mut self.processes {
            all.iter().for_each(|initiator| process.target.evict(*initiator));
        }
    }
}

thread_local! {
    /// Used by one world after the other: faulting it in is the dearest part of a seed.
    static ARENA: Arc<Region> =
        Arc::new(Region::allocate(3 * PROCESS_BYTES, None).expect("some hundred kilobytes"));
}
