//! Simulated verbs: NICs, queue pairs and a lossy wire between them, moved by a virtual clock and
//! a seed. As on real devices, a local flush recalls nothing that has left, a reset discards
//! completions while stores still land, and only a queue pair that is in error and drained is done
//! with memory.

mod device;
mod queue;
mod wire;

use std::cell::RefCell;
use std::collections::BinaryHeap;
use std::rc::Rc;

use self::device::Device;
use self::queue::Effect;
use self::wire::{Packet, Reply};
use crate::Reactor;
use crate::region::Slice;
pub use crate::verbs::Post;
use crate::verbs::{AsyncEvent, Completion, QpAddress, QpNumber, QpState, RemoteAccess, RemoteKey};

/// All NICs of a world. Clones are the same fabric.
#[derive(Debug, Clone)]
pub struct Fabric {
    net: Rc<RefCell<Net>>,
}

/// One NIC, as its driver sees it: queue pairs, keys and a completion queue. Clones are the same.
#[derive(Debug, Clone)]
pub struct Nic {
    net: Rc<RefCell<Net>>,
    index: usize,
}

/// What one call of [`Fabric::step`] did, for a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moved {
    /// What happened.
    pub what: &'static str,
    /// At which NIC.
    pub nic: usize,
    /// To which queue pair.
    pub qp: QpNumber,
}

#[derive(Debug)]
struct Net {
    now_ns: u64,
    rng: fastrand::Rng,
    events: BinaryHeap<Event>,
    sequence: u64,
    devices: Vec<Device>,
    next_life: u64,
    /// One packet in so many is lost; 0: none is.
    loss_one_in: u32,
}

/// Something that will happen; the earliest is the greatest.
#[derive(Debug)]
struct Event {
    at_ns: u64,
    sequence: u64,
    what: What,
}

/// A queue pair of a NIC. Numbers are what packets carry; a life is what the device itself knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct End {
    nic: usize,
    qp: QpNumber,
}

#[derive(Debug)]
enum What {
    /// The next packet of a queue leaves.
    Depart { end: End, life: u64 },
    /// A request's packet reaches a port.
    Arrive { to: End, from: End, packet: Packet },
    /// An answer reaches a port.
    Answer { to: End, from: End, reply: Reply },
    /// A device's write or read of memory takes effect.
    Effect { end: End, life: u64, effect: Effect },
    /// Nothing was answered for too long.
    TimeOut { end: End, life: u64, epoch: u64 },
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Event {}

impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Event {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.at_ns, other.sequence).cmp(&(self.at_ns, self.sequence))
    }
}

impl Fabric {
    /// A fabric without NICs, at time 0.
    pub fn new(seed: u64) -> Self {
        let net = Net {
            now_ns: 0,
            rng: fastrand::Rng::with_seed(seed),
            events: BinaryHeap::new(),
            sequence: 0,
            devices: Vec::new(),
            next_life: 1,
            loss_one_in: 0,
        };
        Self { net: Rc::new(RefCell::new(net)) }
    }

    /// Another NIC.
    pub fn nic(&self) -> Nic {
        let mut net = self.net.borrow_mut();
        net.devices.push(Device::default());
        Nic { net: self.net.clone(), index: net.devices.len() - 1 }
    }

    /// When something moves next.
    pub fn next_ns(&self) -> Option<u64> {
        self.net.borrow().events.peek().map(|event| event.at_ns)
    }

    /// It is so late now, at least.
    pub fn pass(&self, now_ns: u64) {
        let mut net = self.net.borrow_mut();
        net.now_ns = net.now_ns.max(now_ns);
    }

    /// Lets the earliest thing happen, if it is due by `until_ns`.
    pub fn step(&self, until_ns: u64) -> Option<Moved> {
        let mut net = self.net.borrow_mut();
        if net.events.peek().is_none_or(|event| event.at_ns > until_ns) {
            return None;
        }
        let event = net.events.pop()?;
        net.now_ns = net.now_ns.max(event.at_ns);
        Some(net.happen(event.what))
    }

    /// From now on one packet in so many is lost; 0: none is.
    pub fn set_loss(&self, one_in: u32) {
        self.net.borrow_mut().loss_one_in = one_in;
    }
}

impl Net {
    fn happen(&mut self, what: What) -> Moved {
        let (what, end) = match what {
            What::Depart { end, life } => (self.depart(end, life), end),
            What::Arrive { to, from, packet } => (self.arrive(to, from, packet), to),
            What::Answer { to, from, reply } => (self.answered(to, from, reply), to),
            What::Effect { end, life, effect } => (self.effect(end, life, effect), end),
            What::TimeOut { end, life, epoch } => (self.timed_out(end, life, epoch), end),
        };
        Moved { what, nic: end.nic, qp: end.qp }
    }

    fn at(&mut self, at_ns: u64, what: What) {
        self.sequence += 1;
        self.events.push(Event { at_ns, sequence: self.sequence, what });
    }
}

impl Nic {
    /// Its number in the fabric: its address.
    pub fn address(&self) -> usize {
        self.index
    }

    /// Registers memory under the address `addr`; what peers may do there follows from `access`.
    pub fn register(&self, memory: Slice, addr: u64, access: RemoteAccess) -> RemoteKey {
        self.device(|device| device.register(memory, addr, access))
    }

    /// Takes a registration back: nothing is read or stored through it from here on.
    pub fn deregister(&self, key: RemoteKey) {
        self.device(|device| device.deregister(key));
    }

    /// A key for a window that [`Operation::Bind`](crate::verbs::Operation) opens.
    pub fn window(&self) -> RemoteKey {
        self.device(Device::new_key)
    }

    /// Makes a queue pair, and draws the number of its first packet.
    pub fn create_qp(&self) -> QpAddress {
        let mut net = self.net.borrow_mut();
        let life = net.next_life;
        net.next_life += 1;
        let first_packet = net.rng.u32(..=wire::PACKET_NUMBER_MASK);
        net.devices[self.index].create_qp(life, first_packet)
    }

    /// Connects a new queue pair to a peer's; `false` where it is not new.
    pub fn connect(&self, qp: QpNumber, nic: usize, peer: QpAddress) -> bool {
        self.device(|device| device.connect(qp, End { nic, qp: peer.number }, peer.first_packet))
    }

    /// To error: it sends and executes nothing more, and flushes what is posted once its stores
    /// that were under way have landed.
    pub fn set_error(&self, qp: QpNumber) {
        self.device(|device| device.set_error(qp));
    }

    /// To reset: all of its completions are lost, and nothing says when its stores have landed.
    pub fn reset(&self, qp: QpNumber) {
        let mut net = self.net.borrow_mut();
        let life = net.next_life;
        net.next_life += 1;
        net.devices[self.index].reset(qp, life);
    }

    /// Ends it. What it had under way may still land, and its completions may still come.
    pub fn destroy(&self, qp: QpNumber) {
        self.device(|device| device.destroy(qp));
    }

    /// Where it is in its life; none where there is no such queue pair.
    pub fn state(&self, qp: QpNumber) -> Option<QpState> {
        self.device(|device| device.state(qp))
    }

    /// Adds receives to the shared queue, each for one write with an immediate.
    pub fn post_receives(&self, count: usize) {
        self.device(|device| device.receives += count);
    }

    /// Takes what the device has reported.
    pub fn events(&self) -> Vec<AsyncEvent> {
        self.device(Device::take_events)
    }

    /// Queue pairs, registrations and windows that exist.
    pub fn objects(&self) -> usize {
        self.device(|device| device.objects())
    }

    /// Fault: cuts the wire at this port, or mends it.
    pub fn set_link(&self, is_up: bool) {
        self.device(|device| device.set_link(is_up));
    }

    /// Fault: completions and events stay in the device until this ends.
    pub fn set_silent(&self, is_silent: bool) {
        self.device(|device| device.is_silent = is_silent);
    }

    /// Fault: everything at this port takes so many times as long; 1 is normal.
    pub fn set_slowness(&self, factor: u64) {
        self.device(|device| device.slowness = factor.max(1));
    }

    /// Fault of soft-RoCE: where an answer surprises it, a read ends as if it had succeeded, and
    /// then its queue pair is in error.
    pub fn surprise(&self) {
        self.device(Device::surprise);
    }

    /// Its process is gone: every object with it. Packets that have left still arrive.
    pub fn crash(&self) {
        let mut net = self.net.borrow_mut();
        let first_life = net.next_life;
        net.devices[self.index].crash(first_life);
    }

    fn device<R>(&self, act: impl FnOnce(&mut Device) -> R) -> R {
        act(&mut self.net.borrow_mut().devices[self.index])
    }
}

impl Reactor for Nic {
    type Work = Post;
    type Done = Completion;

    /// A post's name is its queue pair's life: fencing it ends all that is posted there.
    fn submit(&mut self, post: Post) -> Result<u64, Post> {
        let mut net = self.net.borrow_mut();
        let life = net.devices[self.index].post(post)?;
        net.pump(self.index, life);
        Ok(life)
    }

    fn poll(&mut self, budget: usize, done: &mut Vec<Completion>) -> usize {
        self.device(|device| device.poll(budget, done))
    }

    fn arm(&mut self) -> bool {
        self.device(|device| device.is_idle())
    }

    fn fence(&mut self, name: u64) {
        self.device(|device| {
            if let Some(qp) = device.by_life(name) {
                device.set_error(qp);
            }
        });
    }
}

#[cfg(test)]
mod tests;
