//! The RDMA path's machine with a NIC under it, or with none: orders in, lists of work requests
//! out, completions back.

use std::sync::Arc;

use kvrail_reactors::Reactor;
use kvrail_reactors::region::{Region, Slice};
use kvrail_reactors::sim::fabric::{Fabric, Nic};
use kvrail_reactors::verbs::{
    Completed, Completion, Post, QpAddress, QpNumber, RemoteAccess, RemoteKey, Status,
};

use crate::limits::{RDMA_NOTICES_MAX, RDMA_QUEUES};
use crate::path::rdma::{
    Action, Ends, Incarnation, Initiator, InitiatorId, Keys, Message, Order, RdmaLimits, RdmaSlice,
    scratch_bytes,
};

const PEER: u64 = 1;
/// Where the peer's memory begins, which has one slice.
pub const ADDR: u64 = 1 << 32;
/// Bytes of a slice: a page, so that carrying them costs little beside posting them.
pub const SLICE_BYTES: usize = 4096;

/// What takes lists.
pub trait Ports {
    /// Makes a queue pair here and one at the peer, connected.
    fn pair(&mut self) -> [QpAddress; 2];

    /// Takes a list.
    fn post(&mut self, post: Post);

    /// What has ended, once something has.
    fn ended(&mut self, done: &mut Vec<Completion>);
}

/// Nothing that carries: what asks to be told of its end has ended.
#[derive(Default)]
pub struct NoNic {
    pairs: u32,
    done: Vec<Completion>,
}

/// Two NICs of the simulator, and memory of the peer's.
pub struct SimulatedNic {
    fabric: Fabric,
    near: Nic,
    far: Nic,
}

/// A shard's initiator that reaches one peer by one rail.
pub struct Posting<P> {
    machine: Initiator,
    ports: P,
    peers: Vec<QpAddress>,
    order: Order,
    is_over: bool,
    done: Vec<Completion>,
}

impl Ports for NoNic {
    fn pair(&mut self) -> [QpAddress; 2] {
        self.pairs += 1;
        [QpAddress { number: QpNumber(self.pairs), first_packet: 0 }; 2]
    }

    fn post(&mut self, post: Post) {
        let signalled = post.requests.iter().filter(|request| request.is_signalled);
        let what = Completed::Sent(Status::Success);
        self.done.extend(signalled.map(|request| Completion { qp: post.qp, id: request.id, what }));
    }

    fn ended(&mut self, done: &mut Vec<Completion>) {
        done.append(&mut self.done);
    }
}

impl Default for SimulatedNic {
    fn default() -> Self {
        let fabric = Fabric::new(1);
        let [near, far] = [fabric.nic(), fabric.nic()];
        far.register(memory(SLICE_BYTES), ADDR, RemoteAccess { read: true, write: true });
        Self { fabric, near, far }
    }
}

impl Ports for SimulatedNic {
    fn pair(&mut self) -> [QpAddress; 2] {
        let [near, far] = [self.near.create_qp(), self.far.create_qp()];
        self.near.connect(near.number, self.far.address(), far);
        self.far.connect(far.number, self.near.address(), near);
        [near, far]
    }

    fn post(&mut self, post: Post) {
        self.near.submit(post).expect("the machine knows how much fits");
    }

    fn ended(&mut self, done: &mut Vec<Completion>) {
        // To the last time-out that has become pointless, or they would pile up.
        while self.fabric.step(u64::MAX).is_some() {}
        self.near.poll(usize::MAX, done);
    }
}

impl<P: Ports> Posting<P> {
    /// Orders of so many writes, over these ports.
    pub fn new(ports: P, writes: usize) -> Self {
        let mut machine = Initiator::new(RdmaLimits::default());
        machine.add_peer(PEER, InitiatorId(1), &[Ends { nic: 0, theirs: 0, node: None }], true);
        let local = memory(SLICE_BYTES);
        // The first key that a NIC gives.
        let keys = Keys::Registered(Arc::new([RemoteKey(1)]));
        let slice = RdmaSlice { is_write: true, local, addr: ADDR, keys, near: 0 };
        let order = Order {
            id: 0,
            peer: PEER,
            slices: vec![slice; writes],
            target: None,
            guard: None,
            event: None,
            deadline_ns: None,
        };
        let (peers, done) = Default::default();
        Self { machine, ports, peers, order, is_over: false, done }
    }

    /// Carries one order to its end.
    pub fn round(&mut self) {
        self.order.id += 1;
        self.is_over = false;
        self.machine.carry(self.order.clone(), self.now_ns()).expect("the peer is known");
        self.act();
        while !self.is_over {
            self.ports.ended(&mut self.done);
            assert!(!self.done.is_empty(), "the order is under way, and nothing ends");
            for Completion { qp, id, what } in std::mem::take(&mut self.done) {
                let Completed::Sent(status) = what else { continue };
                self.machine.completed(0, (qp, id, status), self.now_ns());
            }
            self.act();
        }
    }

    /// A microsecond for each order.
    fn now_ns(&self) -> u64 {
        self.order.id * 1_000
    }

    fn act(&mut self) {
        loop {
            let actions = self.machine.take_actions();
            if actions.is_empty() {
                return;
            }
            actions.into_iter().for_each(|action| self.carry_out(action));
        }
    }

    fn carry_out(&mut self, action: Action) {
        let now_ns = self.now_ns();
        match action {
            Action::Post { qp, requests, .. } => self.ports.post(Post { qp, requests }),
            Action::Ended { ending, .. } => {
                assert_eq!(ending.kind, None, "{ending:?}");
                self.is_over = true;
            }
            Action::Create { name, ends, queues, .. } => {
                let pairs: Vec<_> = (0..queues).map(|_| self.ports.pair()).collect();
                self.peers = pairs.iter().map(|[_, far]| *far).collect();
                let near = pairs.iter().map(|[near, _]| *near).collect();
                let scratch = memory(RDMA_QUEUES * scratch_bytes(RDMA_NOTICES_MAX));
                self.machine.created(name, ends.nic, Some((near, scratch)), now_ns);
            }
            Action::Tell { message: Message::Open { name, .. }, .. } => {
                let (target, queues) = (Incarnation(1), self.peers.clone());
                let opened = Message::Opened { name, target, queues, mailbox: None };
                self.machine.told(opened, now_ns);
            }
            Action::Connect { name, .. } => self.machine.connected(name, true, now_ns),
            _ => {}
        }
    }
}

fn memory(bytes: usize) -> Slice {
    let region = Region::allocate(bytes, None).expect("memory");
    Slice::new(Arc::new(region), 0, bytes).expect("all of it")
}
