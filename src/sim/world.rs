//! A world: processes, the network between them, one clock and one seed. Each step one thing
//! happens, then the oracle looks at every byte.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use kvrail_reactors::region::Region;
use kvrail_reactors::sim::Network;
use kvrail_reactors::stream::Socket;

use super::node::{Arena, Asked, Dialing, EndLane, Ground, name_of};
use super::process::Process;
use super::schedule::Schedule;
use super::tenancy::Tenancy;
use super::transfer::Under;
use crate::Error;
use crate::auth::PeerId;
use crate::limits::FENCE_MS;
use crate::path::tcp::{Dialed, Message};
use crate::receipt::Fenced;

/// Steps of one seed: ten times what the longest take. More means that something spins.
const STEPS_MAX: u64 = 400_000;

/// Everything has ended so long after the last happening: a peer is given up after 0.3 s, three
/// times, and by a transfer that has ended after 2 s.
const PATIENCE_NS: u64 = 10_000_000_000;

/// What is to come at a moment.
pub(super) enum Coming {
    Dialed(Dialing),
    /// A question to a peer's control plane.
    EndLane(EndLane),
    /// Its answer, or that nobody waits for it any longer.
    Fenced(EndLane, Fenced),
    /// A connection's side is stalled no longer.
    Unstall(usize),
    /// A process of this incarnation runs again.
    Resume(usize, u64),
    /// A message to a shard whose inbox was full.
    Retry {
        node: usize,
        incarnation: u64,
        shard: usize,
        message: Message,
    },
}

pub(super) struct World {
    pub(super) rng: fastrand::Rng,
    pub(super) ground: Ground,
    mock: Arc<quanta::Mock>,
    pub(super) now_ns: u64,
    pub(super) schedule: Schedule,
    next: usize,
    pub(super) processes: Vec<Process>,
    pub(super) under_way: Vec<Under>,
    pub(super) transfers: usize,
    pub(super) ended: usize,
    pub(super) succeeded: usize,
    coming: BTreeMap<(u64, u64), Coming>,
    /// Lanes that are being ended; over when the last shard has let go.
    ending: Vec<(EndLane, flume::Receiver<()>)>,
    comings: u64,
    /// Somebody looks around who could not before.
    is_stirred: bool,
    pub(super) steps: u64,
    pub(super) trace: Option<Vec<String>>,
}

/// Notes a line of the trace, which is only written where somebody reads it.
macro_rules! note {
    ($world:expr, $($words:tt)*) => {
        if $world.trace.is_some() {
            let line = format!($($words)*);
            $world.write(line);
        }
    };
}
pub(super) use note;

impl World {
    pub(super) fn new(seed: u64, schedule: Schedule, is_traced: bool) -> Self {
        let (clock, mock) = quanta::Clock::mock();
        let tasks = tokio::runtime::Builder::new_current_thread().build();
        let ground = Ground {
            network: Network::new(seed),
            clock,
            outbox: Arc::default(),
            tasks: tasks.expect("a runtime without drivers"),
            arena: Arena::new(arena(), schedule.nodes),
            capacity: schedule.capacity,
            connections_max: schedule.connections_max,
            mailbox: schedule.mailbox,
            old_node: schedule.old_node,
            is_rebuilt_alike: schedule.is_rebuilt_alike,
        };
        let start =
            |number| Process::start(&ground, number, schedule.nodes, 1, schedule.block_bytes);
        let processes = (0..schedule.nodes).map(start).collect();
        Self {
            rng: fastrand::Rng::with_seed(!seed),
            ground,
            mock,
            now_ns: 0,
            schedule,
            next: 0,
            processes,
            under_way: Vec::new(),
            transfers: 0,
            ended: 0,
            succeeded: 0,
            coming: BTreeMap::new(),
            ending: Vec::new(),
            comings: 0,
            is_stirred: false,
            steps: 0,
            trace: is_traced.then(Vec::new),
        }
    }

    pub(super) fn write(&mut self, line: String) {
        let now_us = self.now_ns as f64 / 1_000.0;
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{now_us:>12.3} us  {line}"));
        }
    }

    /// Runs to the end.
    ///
    /// # Errors
    /// What broke.
    pub(super) fn run(&mut self) -> Result<(), String> {
        while !self.is_idle() {
            self.step()?;
        }
        self.take_all_back();
        while !self.is_idle() {
            self.step()?;
        }
        self.stop()
    }

    fn is_idle(&self) -> bool {
        let is_busy = |process: &Process| {
            process.unregistering.is_some()
                || process.closing.is_some()
                || process.tenancies.iter().any(Tenancy::is_ending)
        };
        self.next == self.schedule.happenings.len()
            && self.under_way.is_empty()
            && !self.processes.iter().any(is_busy)
    }

    /// One thing happens.
    fn step(&mut self) -> Result<(), String> {
        self.steps += 1;
        if self.steps > STEPS_MAX {
            return Err(format!("it does not end: {STEPS_MAX} steps, {}", self.left()));
        }
        self.happen();
        self.arrive();
        self.keep_time();
        let can_move = self.ground.network.is_moving();
        let awake = self.awake();
        if !can_move && awake.is_empty() {
            self.jump()?;
        } else {
            if can_move && (awake.is_empty() || self.rng.bool()) {
                self.move_bytes();
            } else {
                let (node, shard) = awake[self.rng.usize(..awake.len())];
                self.processes[node].node.turn(shard, self.now_ns);
            }
            let passed_ns = self.rng.u64(100..6_000);
            self.pass(passed_ns);
        }
        self.collect();
        self.look()
    }

    fn keep_time(&mut self) {
        for process in self.processes.iter_mut().filter(|process| !process.node.is_paused) {
            process.node.keep_time(self.now_ns);
        }
    }

    fn move_bytes(&mut self) {
        if let Some(moved) = self.ground.network.step() {
            note!(self, "net       {moved:?}");
        }
    }

    fn pass(&mut self, ns: u64) {
        self.now_ns += ns;
        self.mock.increment(ns);
    }

    /// Work and faults whose time has come.
    fn happen(&mut self) {
        while let Some(&happening) = self.schedule.happenings.get(self.next) {
            if happening.at_ns > self.now_ns {
                return;
            }
            self.next += 1;
            self.begin(happening);
        }
    }

    pub(super) fn later(&mut self, after_ns: u64, coming: Coming) {
        self.comings += 1;
        self.coming.insert((self.now_ns + after_ns, self.comings), coming);
    }

    fn arrive(&mut self) {
        while let Some(entry) = self.coming.first_entry() {
            if entry.key().0 > self.now_ns {
                return;
            }
            match entry.remove() {
                Coming::Dialed(dialing) => self.dialed(dialing),
                Coming::EndLane(asked) => self.end_lane(asked),
                Coming::Fenced(EndLane { node, incarnation, shard, key, lane, .. }, fenced) => {
                    let message = Message::Fenced { peer: key, lane, fenced };
                    self.tell(node, incarnation, shard, message);
                }
                Coming::Unstall(end) => self.ground.network.stall(end, false),
                Coming::Resume(node, incarnation) => self.resume(node, incarnation),
                Coming::Retry { node, incarnation, shard, message } => {
                    self.tell(node, incarnation, shard, message);
                }
            }
        }
    }

    fn resume(&mut self, node: usize, incarnation: u64) {
        let process = &mut self.processes[node];
        if process.node.incarnation == incarnation {
            process.node.pause(&self.ground.network, false);
            note!(self, "node {node}    goes on");
            self.is_stirred = true;
        }
    }

    /// A connection that was asked for: there, or refused where nobody listens.
    fn dialed(&mut self, dialing: Dialing) {
        let Dialing { node, incarnation, shard, key, host, port } = dialing;
        let is_there = |node: &usize| {
            let process = &self.processes[*node].node;
            name_of(*node) == host && process.port == port
        };
        let to = (0..self.processes.len()).find(is_there);
        let is_unlucky = self.schedule.has_faults() && self.rng.u8(..32) == 0;
        let result = match to.filter(|_| !is_unlucky) {
            Some(to) => {
                let (near, far) = self.ground.network.connect();
                note!(
                    self,
                    "node {node}    shard {shard} connects to node {to}: {}, {}",
                    near.end(),
                    far.end()
                );
                self.processes[to].node.accept(Socket::Sim(far));
                Ok(Dialed::open(Socket::Sim(near)))
            }
            None => Err(Error::lost("nobody listens")),
        };
        self.tell(node, incarnation, shard, Message::Dialed { peer: key, result });
    }

    /// A peer's control plane has every shard end a lane, as the daemon does.
    fn end_lane(&mut self, asked: EndLane) {
        let is_meant = |node: &usize| {
            name_of(*node) == asked.peer && self.processes[*node].node.incarnation == asked.to
        };
        let Some(to) = (0..self.processes.len()).find(is_meant) else { return };
        note!(self, "node {to}    is to end a lane of node {}", asked.node);
        let (guard, quiet) = flume::bounded(0);
        for shard in 0..self.processes[to].node.shards.len() {
            let (peer, lane, guard) = (PeerId::Anyone, asked.lane, guard.clone());
            self.tell(to, asked.to, shard, Message::EndLane { peer, lane, guard });
        }
        self.ending.push((asked, quiet));
    }

    /// Answers for lanes that have ended; those of a process that died get none.
    fn ended_lanes(&mut self) {
        let mut ending = std::mem::take(&mut self.ending);
        for (asked, _) in ending.extract_if(.., |(_, quiet)| quiet.is_disconnected()) {
            let is_alive = self.processes.iter().any(|one| one.node.incarnation == asked.to);
            if is_alive && !self.is_lost() {
                note!(self, "a lane of node {} has ended", asked.node);
                let after_ns = self.rng.u64(5_000..300_000);
                self.later(after_ns, Coming::Fenced(asked, Fenced::Lane));
            }
        }
        self.ending.append(&mut ending);
    }

    /// Whether a message of the control planes gets lost.
    fn is_lost(&mut self) -> bool {
        self.schedule.has_faults() && self.rng.u8(..16) == 0
    }

    fn tell(&mut self, node: usize, incarnation: u64, shard: usize, message: Message) {
        let process = &self.processes[node].node;
        if process.incarnation != incarnation {
            return;
        }
        if let Err(error) = process.dialed(shard, message) {
            let message = error.into_inner();
            self.later(RETRY_NS, Coming::Retry { node, incarnation, shard, message });
        }
    }

    fn awake(&mut self) -> Vec<(usize, usize)> {
        let (network, now_ns) = (&self.ground.network, self.now_ns);
        let mut awake = Vec::new();
        for (number, process) in self.processes.iter_mut().enumerate() {
            if !process.node.is_paused {
                process.node.wake(network, now_ns);
                awake.extend(process.node.awake().map(|shard| (number, shard)));
            }
        }
        awake
    }

    /// Nothing can happen now: on to the next moment.
    fn jump(&mut self) -> Result<(), String> {
        let happening = self.schedule.happenings.get(self.next).map(|next| next.at_ns);
        let coming = self.coming.first_key_value().map(|((at_ns, _), _)| *at_ns);
        let running = self.processes.iter().filter(|process| !process.node.is_paused);
        let nap = running
            .flat_map(|process| [process.node.wake_at_ns(), process.node.expiry_ns])
            .flatten()
            .min();
        let runs = |under: &&Under| !self.processes[under.from.0].node.is_paused;
        let is_woken = self.under_way.iter().filter(runs).any(|under| under.course.is_woken());
        if std::mem::take(&mut self.is_stirred) || is_woken || self.is_idle() {
            return Ok(());
        }
        let moments = [happening, coming, nap, self.ground.network.alarm_ns()];
        let Some(at_ns) = moments.into_iter().flatten().min() else {
            return Err(format!("everything sleeps for ever: {}", self.left()));
        };
        self.pass(at_ns.saturating_sub(self.now_ns));
        let last_ns = self.schedule.happenings.last().map_or(0, |last| last.at_ns);
        if self.now_ns > last_ns + PATIENCE_NS {
            return Err(format!("it takes longer than any patience: {}", self.left()));
        }
        Ok(())
    }

    fn left(&self) -> String {
        let numbers: Vec<usize> = self.under_way.iter().map(|under| under.number).collect();
        format!("transfers {numbers:?} are under way")
    }

    /// Takes what the nodes ask of the network.
    fn collect(&mut self) {
        let outbox = &self.ground.outbox;
        let asked = std::mem::take(&mut *outbox.lock().unwrap_or_else(PoisonError::into_inner));
        for asked in asked {
            let after_ns = self.rng.u64(5_000..300_000);
            match asked {
                Asked::Dial(dialing) => self.later(after_ns, Coming::Dialed(dialing)),
                Asked::EndLane(asked) => self.ask_end(after_ns, asked),
            }
        }
        self.ended_lanes();
    }

    /// The question may get lost, or arrive twice; who asks waits so long and no longer.
    fn ask_end(&mut self, after_ns: u64, asked: EndLane) {
        self.later(FENCE_MS * 1_000_000, Coming::Fenced(asked.clone(), Fenced::Nobody));
        if self.is_lost() {
            return;
        }
        if self.is_lost() {
            let again_ns = self.rng.u64(5_000..3_000_000);
            self.later(again_ns, Coming::EndLane(asked.clone()));
        }
        self.later(after_ns, Coming::EndLane(asked));
    }

    /// The oracle looks, then callers look for the ends of their transfers.
    fn look(&mut self) -> Result<(), String> {
        for (number, process) in self.processes.iter_mut().enumerate() {
            process.check().map_err(|what| format!("at node {number}, {what}"))?;
        }
        self.callers()?;
        self.closed()?;
        self.unregistered();
        self.taken_back();
        Ok(())
    }

    /// Every process stops; afterwards nothing is left of anything.
    fn stop(&mut self) -> Result<(), String> {
        note!(self, "everybody stops");
        for process in &mut self.processes {
            if process.node.grants() > 0 {
                return Err("a grant that was taken back is still there".into());
            }
            process.node.pause(&self.ground.network, false);
            process.peers.clear();
            process.node.engine.runtime().stop();
        }
        let patience_ns = self.now_ns + PATIENCE_NS / 10;
        while !self.processes.iter().all(|process| process.node.is_over()) {
            self.step()?;
            if self.now_ns > patience_ns {
                return Err("a process does not stop: something is still under way".into());
            }
        }
        self.processes.clear();
        self.coming.clear();
        self.ending.clear();
        self.ground.outbox.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let (ends, operations) = (self.ground.network.ends(), self.ground.network.operations());
        if !ends.is_empty() || operations > 0 {
            return Err(format!("sockets {ends:?} and {operations} operations leak"));
        }
        Ok(())
    }
}

/// Two regions for each process that a seed starts, and some more: the largest take 120 KiB.
const ARENA_BYTES: usize = 64 * 6 * 20_480;

thread_local! {
    /// Used by one world after the other: faulting it in is the dearest part of a seed.
    static ARENA: Arc<Region> =
        Arc::new(Region::allocate(ARENA_BYTES, None).expect("some megabytes"));
}

fn arena() -> Arc<Region> {
    ARENA.with(Arc::clone)
}

/// Pause before a full inbox is tried again.
const RETRY_NS: u64 = 1_000_000;
