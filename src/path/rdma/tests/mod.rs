//! The two machines by themselves: what each says and does, step by step, without a device.

mod failing;
mod fences;
mod hostile;
mod posting;
mod rails;
mod windows;

use std::sync::Arc;

use kvrail_reactors::region::{Region, Slice};
use kvrail_reactors::verbs::{Operation, QpAddress, QpNumber, RemoteKey, Status, WorkRequest};

use super::endpoint::scratch_bytes;
use super::*;

const PEER: u64 = 7;
const ME: InitiatorId = InitiatorId(99);
const PROCESS: Incarnation = Incarnation(5);
const QUEUES: usize = 2;
const SLICE_BYTES: usize = 64;

/// Few notices, so that mailboxes fill up.
fn limits() -> RdmaLimits {
    RdmaLimits { queues: QUEUES, notices: 4, ..RdmaLimits::default() }
}

fn memory(bytes: usize) -> Slice {
    Slice::new(Arc::new(Region::allocate(bytes, None).unwrap()), 0, bytes).unwrap()
}

fn address(number: u32) -> QpAddress {
    QpAddress { number: QpNumber(number), first_packet: 0 }
}

fn keys(rails: usize) -> Keys {
    Keys::Registered((0..rails).map(|rail| RemoteKey(rail as u32 + 1)).collect())
}

fn slice(is_write: bool, keys: Keys) -> RdmaSlice {
    RdmaSlice { is_write, local: memory(SLICE_BYTES), addr: 0x1_0000, keys, near: 0 }
}

fn order(id: u64, slices: Vec<RdmaSlice>) -> Order {
    Order { id, peer: PEER, slices, target: None, guard: None, event: None, deadline_ns: None }
}

fn writes(id: u64, count: usize) -> Order {
    order(id, (0..count).map(|_| slice(true, keys(2))).collect())
}

fn reads(id: u64, count: usize) -> Order {
    order(id, (0..count).map(|_| slice(false, keys(2))).collect())
}

fn noticed(order: Order) -> Order {
    Order { event: Some(Event { counter: 3, amount: 1 }), ..order }
}

/// An initiator, with what it has asked for.
struct Ours {
    machine: Initiator,
    now_ns: u64,
    qps: u32,
    /// Who answers in the peer's name; nobody where there is none.
    process: Option<Incarnation>,
    opened: Vec<EndpointName>,
    /// Which NIC of the peer's each was asked of.
    asked: Vec<(EndpointName, u8)>,
    told: Vec<Message>,
    posted: Vec<(u8, QpNumber, WorkRequest)>,
    errors: Vec<QpNumber>,
    destroyed: Vec<QpNumber>,
    ended: Vec<(u64, Ending)>,
    released: Vec<u64>,
}

impl Ours {
    fn new(limits: RdmaLimits, rails: usize) -> Self {
        let ends = |nic| Ends { nic, theirs: nic, node: None };
        Self::over(limits, &(0..rails as u8).map(ends).collect::<Vec<_>>(), true)
    }

    fn over(limits: RdmaLimits, rails: &[Ends], fences: bool) -> Self {
        let mut machine = Initiator::new(limits);
        machine.add_peer(PEER, ME, rails, fences);
        Self {
            machine,
            now_ns: 0,
            qps: 0,
            process: Some(PROCESS),
            opened: Vec::new(),
            asked: Vec::new(),
            told: Vec::new(),
            posted: Vec::new(),
            errors: Vec::new(),
            destroyed: Vec::new(),
            ended: Vec::new(),
            released: Vec::new(),
        }
    }

    fn carry(&mut self, order: Order) {
        assert_eq!(self.machine.carry(order, self.now_ns), Ok(()));
        self.act();
    }

    /// Carries out what it asks; endpoints open at once.
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
        match action {
            Action::Create { name, ends: Ends { nic, .. }, queues, .. } => {
                let owns = (0..queues).map(|_| self.next_qp()).collect();
                let made = (owns, memory(queues * scratch_bytes(4)));
                self.machine.created(name, nic, Some(made), self.now_ns);
            }
            Action::Connect { name, .. } => self.machine.connected(name, true, self.now_ns),
            Action::Tell { message: Message::Open { name, theirs, queues }, .. } => {
                self.opened.push(name);
                self.asked.push((name, theirs));
                let Some(target) = self.process else { return };
                let mailbox = Some(Mailbox { addr: 0x9000, key: RemoteKey(9), slots: 4 });
                let message = Message::Opened { name, target, queues, mailbox };
                self.machine.told(message, self.now_ns);
            }
            Action::Tell { message, .. } => self.told.push(message),
            Action::Post { nic, qp, requests } => {
                self.posted.extend(requests.into_iter().map(|request| (nic, qp, request)));
            }
            Action::Error { qp, .. } => self.errors.push(qp),
            Action::Destroy { qp, .. } => self.destroyed.push(qp),
            Action::Ended { order, ending } => self.ended.push((order, ending)),
            Action::Released { order } => self.released.push(order),
            other => panic!("an initiator asks for {other:?}"),
        }
    }

    fn next_qp(&mut self) -> QpAddress {
        self.qps += 1;
        address(self.qps)
    }

    fn tell(&mut self, message: Message) {
        self.machine.told(message, self.now_ns);
        self.act();
    }

    fn fenced(&mut self, name: EndpointName, arrived: &[(u64, u64)]) {
        let arrived = arrived.to_vec();
        self.tell(Message::Fenced { name, target: PROCESS, arrived });
    }

    /// Everything posted on a rail ends so; returns it.
    fn complete(&mut self, rail: u8, status: Status) -> Vec<WorkRequest> {
        let posted = std::mem::take(&mut self.posted);
        let (here, elsewhere) = posted.into_iter().partition(|(at, ..)| *at == rail);
        self.posted = elsewhere;
        let here: Vec<(u8, QpNumber, WorkRequest)> = here;
        for (_, qp, request) in &here {
            if request.is_signalled || status != Status::Success {
                self.machine.completed(rail, (*qp, request.id, status), self.now_ns);
            }
        }
        self.act();
        here.into_iter().map(|(_, _, request)| request).collect()
    }

    fn after(&mut self, ns: u64) {
        self.now_ns += ns;
        self.machine.tick(self.now_ns);
        self.act();
    }

    fn posted_on(&self, rail: u8) -> usize {
        self.posted.iter().filter(|(at, ..)| *at == rail).count()
    }

    fn ending(&self, order: u64) -> &Ending {
        let ended = self.ended.iter().find(|(id, _)| *id == order);
        &ended.unwrap_or_else(|| panic!("order {order} has not ended")).1
    }
}

/// A target, with what it has asked for.
struct Theirs {
    machine: Target,
    told: Vec<Message>,
    posted: Vec<(u8, QpNumber, WorkRequest)>,
    done: Vec<Action>,
    mailboxes: Vec<Slice>,
    qps: u32,
    /// Whether endpoints are made at once.
    makes: bool,
}

impl Theirs {
    fn new() -> Self {
        Self {
            machine: Target::new(PROCESS, 2),
            told: Vec::new(),
            posted: Vec::new(),
            done: Vec::new(),
            mailboxes: Vec::new(),
            qps: 0,
            makes: true,
        }
    }

    fn tell(&mut self, message: Message) {
        self.machine.told(PEER, message);
        self.act();
    }

    fn open(&mut self, name: EndpointName) {
        self.tell(Message::Open { name, theirs: name.rail, queues: vec![address(1); QUEUES] });
    }

    fn act(&mut self) {
        loop {
            let actions = self.machine.take_actions();
            if actions.is_empty() {
                return;
            }
            for action in actions {
                match action {
                    Action::Accept { name, queues, .. } if self.makes => {
                        self.make(name, queues.len());
                    }
                    Action::Tell { message, .. } => self.told.push(message),
                    Action::Post { nic, qp, requests } => {
                        self.posted.extend(requests.into_iter().map(|r| (nic, qp, r)));
                    }
                    other => self.done.push(other),
                }
            }
        }
    }

    fn make(&mut self, name: EndpointName, queues: usize) {
        let made = (0..queues).map(|_| {
            self.qps += 1;
            address(self.qps)
        });
        let mailbox = Mailbox { addr: 0x9000, key: RemoteKey(9), slots: 4 };
        let bytes = memory(queues * queue_bytes(4));
        self.mailboxes.push(bytes.clone());
        let made = (made.collect(), bytes, mailbox);
        self.machine.accepted(name, Some(made));
    }

    /// Everything posted ends so; markers are posted in error, where all is flushed.
    fn complete(&mut self, status: Status) {
        for (rail, qp, request) in std::mem::take(&mut self.posted) {
            let is_marker = request.operation == Operation::Nothing;
            let status = if is_marker { Status::Flushed } else { status };
            self.machine.completed(rail, (qp, request.id, status));
        }
        self.act();
    }

    fn take_told(&mut self) -> Vec<Message> {
        std::mem::take(&mut self.told)
    }

    fn take_done(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.done)
    }
}

fn name(rail: u8, generation: u64) -> EndpointName {
    EndpointName { initiator: ME, rail, generation }
}
