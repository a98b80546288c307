//! One process: its NICs, its two machines, and the shell that carries out what they ask, as a
//! shard will with real devices.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kvrail_reactors::Reactor;
use kvrail_reactors::region::Slice;
use kvrail_reactors::sim::fabric::{Nic, Post};
use kvrail_reactors::verbs::{AsyncEvent, Completed, QpAddress, QpNumber, RemoteAccess, RemoteKey};

use super::memory::{MEMORY_BYTES, Memory};
use super::schedule::Schedule;
use crate::limits::TICK_NS;
use crate::path::rdma::{
    Action, EndpointName, Ends, Granted, Incarnation, Initiator, InitiatorId, Mailbox, Message,
    Strike, Target, queue_bytes, scratch_bytes,
};

/// Memory of a process: blocks, and pieces for endpoints.
pub(super) const PROCESS_BYTES: usize = MEMORY_BYTES.next_multiple_of(64) + PIECES * PIECE_BYTES;
const PIECES: usize = 48;
const PIECE_BYTES: usize = 2 * 1_024 + 128;

/// Receives that are posted: few, so that notices find none now and then.
const RECEIVES: usize = 4;

/// Peers are named by node and the how many-th time they are reached; so many nodes there are not.
pub(super) const NODES_MAX: u64 = 16;

const PEERS_MAY: RemoteAccess = RemoteAccess { read: true, write: true };

pub(super) struct Process {
    pub(super) number: usize,
    pub(super) incarnation: u64,
    /// By what name its peers know or knew it.
    pub(super) ids: Vec<InitiatorId>,
    pub(super) initiator: Initiator,
    pub(super) target: Target,
    pub(super) nics: Vec<Nic>,
    /// The blocks' keys, by rail.
    pub(super) keys: Arc<[RemoteKey]>,
    pub(super) memory: Memory,
    all: Slice,
    pieces: BTreeSet<usize>,
    used: BTreeMap<(u8, QpNumber), Piece>,
    notices: usize,
    pub(super) is_paused: bool,
    /// Messages that it reads when it goes on.
    pub(super) mail: Vec<(usize, Message)>,
    pub(super) tick_ns: u64,
    /// Its name for each peer, none once it has let go of it.
    pub(super) links: BTreeMap<usize, u64>,
    /// Grants that live: the block, and whether it may be written.
    pub(super) grants: BTreeMap<u128, (usize, bool)>,
}

/// Memory of an endpoint: given back with the last of its queue pairs.
struct Piece {
    number: usize,
    name: EndpointName,
    mailbox: Option<RemoteKey>,
}

/// What a process asks of the world.
pub(super) enum Asked {
    Tell(u64, Message),
    Done(Action),
}

impl Process {
    pub(super) fn start(
        number: usize,
        incarnation: u64,
        nics: Vec<Nic>,
        all: Slice,
        schedule: &Schedule,
    ) -> Self {
        let blocks = all.part(0, MEMORY_BYTES).expect("blocks come first");
        let memory = Memory::new(number, blocks, incarnation);
        let initiator = Initiator::new(schedule.limits.clone());
        let mut process = Self {
            number,
            incarnation,
            ids: Vec::new(),
            initiator,
            target: Target::new(Incarnation(incarnation), nics.len()),
            nics,
            keys: Arc::new([]),
            memory,
            all,
            pieces: (0..PIECES).collect(),
            used: BTreeMap::new(),
            notices: schedule.limits.notices,
            is_paused: false,
            mail: Vec::new(),
            tick_ns: 0,
            links: BTreeMap::new(),
            grants: BTreeMap::new(),
        };
        process.register();
        process.nics.iter().for_each(|nic| nic.post_receives(RECEIVES));
        process
    }

    /// Where its memory begins for peers.
    pub(super) fn base(&self) -> u64 {
        (self.number as u64 + 1) << 32
    }

    /// Registers its blocks on every NIC.
    pub(super) fn register(&mut self) {
        let (base, slice) = (self.base(), &self.memory.slice);
        let keys = self.nics.iter().map(|nic| nic.register(slice.clone(), base, PEERS_MAY));
        self.keys = keys.collect();
    }

    pub(super) fn deregister(&mut self) {
        let keys = self.nics.iter().zip(self.keys.iter());
        keys.for_each(|(nic, key)| nic.deregister(*key));
    }

    /// By what name a peer knows it.
    pub(super) fn id_for(&self, peer: u64) -> InitiatorId {
        InitiatorId((peer / NODES_MAX) << 8 | self.number as u64)
    }

    /// The name of a peer, as this process knows it.
    pub(super) fn peer(&mut self, node: usize, rails: usize, fresh: impl FnOnce() -> u64) -> u64 {
        let (number, initiator, ids) = (self.number as u64, &mut self.initiator, &mut self.ids);
        *self.links.entry(node).or_insert_with(|| {
            let fresh = fresh();
            let peer = fresh * NODES_MAX + node as u64;
            let id = InitiatorId(fresh << 8 | number);
            let ends = (0..rails as u8).map(|nic| Ends { nic, theirs: nic, node: None });
            initiator.add_peer(peer, id, &ends.collect::<Vec<_>>(), true);
            ids.push(id);
            peer
        })
    }

    /// Whether a device has something to say.
    pub(super) fn is_woken(&mut self) -> bool {
        !self.is_paused && self.nics.iter_mut().any(|nic| !nic.arm())
    }

    /// Takes what its devices say, at most `budget` completions each.
    pub(super) fn turn(&mut self, budget: usize, now_ns: u64) {
        for rail in 0..self.nics.len() {
            let mut done = Vec::new();
            self.nics[rail].poll(budget, &mut done);
            for completion in done {
                let (qp, id) = (completion.qp, completion.id);
                match completion.what {
                    Completed::Sent(status) => {
                        self.initiator.completed(rail as u8, (qp, id, status), now_ns);
                        self.target.completed(rail as u8, (qp, id, status));
                    }
                    Completed::Received(immediate) => {
                        self.target.received(rail as u8, qp, immediate);
                        self.nics[rail].post_receives(1);
                    }
                }
            }
            for event in self.nics[rail].events() {
                match event {
                    AsyncEvent::PortUp => self.initiator.port(rail as u8, true, now_ns),
                    AsyncEvent::PortDown | AsyncEvent::DeviceFatal => {
                        self.initiator.port(rail as u8, false, now_ns);
                    }
                    AsyncEvent::AccessViolated(qp) | AsyncEvent::PairFailed(qp) => {
                        self.target.violated(rail as u8, qp);
                    }
                    AsyncEvent::GidChanged
                    | AsyncEvent::LastReceive(_)
                    | AsyncEvent::CompletionsFailed(_)
                    | AsyncEvent::ReceivesFailed(_) => {}
                }
            }
        }
    }

    pub(super) fn told(&mut self, peer: u64, message: Message, now_ns: u64) {
        self.initiator.told(message.clone(), now_ns);
        self.target.told(peer, message);
    }

    /// When it has to be woken, where nothing happens.
    pub(super) fn wake_at_ns(&self, now_ns: u64) -> Option<u64> {
        self.initiator.wake_at_ns(now_ns).filter(|_| !self.is_paused)?;
        Some(self.tick_ns.max(now_ns))
    }

    pub(super) fn tick(&mut self, now_ns: u64) {
        self.tick_ns = now_ns + TICK_NS;
        self.initiator.tick(now_ns);
    }

    /// Carries out what the machines ask; what is the world's business comes back.
    pub(super) fn act(&mut self, now_ns: u64, nic_of: impl Fn(u64, u8) -> usize) -> Vec<Asked> {
        let mut asked = Vec::new();
        loop {
            let mut actions = self.initiator.take_actions();
            actions.extend(self.target.take_actions());
            if actions.is_empty() {
                return asked;
            }
            for action in actions {
                self.carry_out(action, now_ns, &nic_of, &mut asked);
            }
        }
    }

    fn carry_out(
        &mut self,
        action: Action,
        now_ns: u64,
        nic_of: &impl Fn(u64, u8) -> usize,
        asked: &mut Vec<Asked>,
    ) {
        match action {
            Action::Create { name, ends, queues, .. } => {
                let made = self.create(name, queues);
                self.initiator.created(name, ends.nic, made, now_ns);
            }
            Action::Connect { name, peer, pairs, .. } => {
                let (nic, to) = (&self.nics[usize::from(name.rail)], nic_of(peer, name.rail));
                let is_connected = pairs.iter().all(|(own, peer)| nic.connect(*own, to, *peer));
                self.initiator.connected(name, is_connected, now_ns);
            }
            Action::Accept { name, peer, queues, .. } => {
                let made = self.accept(name, nic_of(peer, name.rail), &queues);
                self.target.accepted(name, made);
            }
            Action::Error { nic, qp } => self.nics[usize::from(nic)].set_error(qp),
            Action::Reset { nic, qp } => self.nics[usize::from(nic)].reset(qp),
            Action::Destroy { nic, qp } => self.destroy(nic, qp),
            Action::Post { nic, qp, requests } => {
                let posted = self.nics[usize::from(nic)].submit(Post { qp, requests });
                // A queue pair that was reset takes nothing, which only the canary does.
                let is_reset = self.nics[usize::from(nic)]
                    .state(qp)
                    .is_none_or(|state| state == kvrail_reactors::verbs::QpState::Reset);
                assert!(posted.is_ok() || is_reset, "a list did not fit");
            }
            Action::Granted { name, grant } => {
                let granted = self.granted(name, grant).ok_or(Strike::Gone);
                self.target.granted(name, grant, granted);
            }
            Action::Tell { peer, message } => asked.push(Asked::Tell(peer, message)),
            other => asked.push(Asked::Done(other)),
        }
    }

    fn create(&mut self, name: EndpointName, queues: usize) -> Option<(Vec<QpAddress>, Slice)> {
        let bytes = queues * scratch_bytes(self.notices);
        let (number, memory) = self.piece(bytes)?;
        let nic = &self.nics[usize::from(name.rail)];
        let made: Vec<_> = (0..queues).map(|_| nic.create_qp()).collect();
        for address in &made {
            let piece = Piece { number, name, mailbox: None };
            self.used.insert((name.rail, address.number), piece);
        }
        Some((made, memory))
    }

    fn accept(
        &mut self,
        name: EndpointName,
        peer: usize,
        queues: &[QpAddress],
    ) -> Option<(Vec<QpAddress>, Slice, Mailbox)> {
        let bytes = queues.len() * queue_bytes(self.notices);
        let (number, memory) = self.piece(bytes)?;
        let addr = 0x1_0000 * (number as u64 + 1);
        let nic = &self.nics[usize::from(name.rail)];
        let key = nic.register(memory.clone(), addr, PEERS_MAY);
        let mut made = Vec::new();
        for theirs in queues {
            let own = nic.create_qp();
            nic.connect(own.number, peer, *theirs);
            let piece = Piece { number, name, mailbox: Some(key) };
            self.used.insert((name.rail, own.number), piece);
            made.push(own);
        }
        let mailbox = Mailbox { addr, key, slots: self.notices as u32 };
        Some((made, memory, mailbox))
    }

    /// Memory for an endpoint; there is none when there are too many.
    fn piece(&mut self, bytes: usize) -> Option<(usize, Slice)> {
        let number = self.pieces.pop_first()?;
        let start = MEMORY_BYTES.next_multiple_of(64) + number * PIECE_BYTES;
        let memory = self.all.part(start, bytes).expect("a piece is long enough");
        let zeros = vec![0; bytes];
        memory.write(0, &zeros).expect("it is as long");
        Some((number, memory))
    }

    fn destroy(&mut self, rail: u8, qp: QpNumber) {
        let nic = &self.nics[usize::from(rail)];
        nic.destroy(qp);
        let Some(piece) = self.used.remove(&(rail, qp)) else { return };
        let is_last = self
            .used
            .values()
            .all(|other| (other.name, other.mailbox) != (piece.name, piece.mailbox));
        if is_last {
            self.pieces.insert(piece.number);
            piece.mailbox.into_iter().for_each(|key| nic.deregister(key));
        }
    }

    fn granted(&self, name: EndpointName, grant: u128) -> Option<Granted> {
        let &(block, write) = self.grants.get(&grant)?;
        let memory = self.memory.part(block);
        let nic = &self.nics[usize::from(name.rail)];
        let queues = self.used.iter().filter(|((rail, _), piece)| {
            *rail == name.rail && piece.name == name && piece.mailbox.is_some()
        });
        Some(Granted {
            addr: self.base() + (memory.addr() - self.memory.slice.addr()),
            memory,
            region: self.keys[usize::from(name.rail)],
            access: RemoteAccess { read: !write, write },
            keys: queues.map(|_| nic.window()).collect(),
        })
    }

    /// Objects of its devices beyond what every process has.
    pub(super) fn objects(&self) -> usize {
        let objects: usize = self.nics.iter().map(Nic::objects).sum();
        objects - self.nics.len()
    }
}
