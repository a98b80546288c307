//! What moves between queue pairs: packets that leave, arrive in sequence or not at all, take
//! effect and are answered; lost ones are sent again from the first unanswered one on.

use super::queue::{Effect, Qp};
use super::{End, Net, What};
use crate::region::Slice;
use crate::verbs::{
    AsyncEvent, Completed, Operation, QpNumber, QpState, RemoteKey, Status, WorkRequest,
};

/// Packet numbers have 24 bits; half of them are ahead, half behind.
pub(super) const PACKET_NUMBER_MASK: u32 = 0x00ff_ffff;

/// One packet's time on a port.
const DEPART_NS: u64 = 200;

/// The shortest way between two ports, and how much longer it may take.
const WIRE_NS: u64 = 1_000;
const WIRE_JITTER_NS: u64 = 3_000;

/// How long an access to memory is under way in a device, at most.
const EFFECT_JITTER_NS: u64 = 20_000;

/// Accesses that are under way for longer: one in so many, by so much at most.
const EFFECT_SLOW_ONE_IN: u32 = 64;
const EFFECT_SLOW_NS: u64 = 400_000;

/// Packets that overtake others: one in so many.
const OVERTAKE_ONE_IN: u32 = 64;

/// Packets that are long on their way, past every time-out: one in so many, and how long.
const LATE_ONE_IN: u32 = 512;
const LATE_NS: u64 = 2_500_000;

/// Nothing answered for so long: send again. A few round trips; real devices wait 67 ms.
const TIMEOUT_NS: u64 = 200_000;

/// Repetitions before a queue pair gives up; Mooncake's number (`retry_cnt`).
const RETRIES_MAX: u32 = 7;

/// A request's packet.
#[derive(Debug)]
pub(super) struct Packet {
    number: u32,
    addr: u64,
    key: RemoteKey,
    body: Body,
}

#[derive(Debug)]
enum Body {
    Write { bytes: Vec<u8>, immediate: Option<u32> },
    Read { len: usize },
}

/// A responder's packet.
#[derive(Debug)]
pub(super) struct Reply {
    number: u32,
    verdict: Verdict,
}

#[derive(Debug)]
enum Verdict {
    Done,
    Bytes(Vec<u8>),
    Refused,
    NotReady,
}

impl Net {
    /// After a post: starts what can start.
    pub(super) fn pump(&mut self, nic: usize, life: u64) {
        let Some(number) = self.devices[nic].by_life(life) else { return };
        let end = End { nic, qp: number };
        self.devices[nic].flush_if_drained(number);
        self.settle(end);
        self.start(end);
    }

    /// Lets a queue's next packet leave, unless one is about to.
    fn start(&mut self, end: End) {
        let now_ns = self.now_ns;
        let device = &mut self.devices[end.nic];
        let Some(qp) = device.qps.get_mut(&end.qp) else { return };
        if qp.is_departing || qp.departed >= qp.posted || qp.state != QpState::ReadyToSend {
            return;
        }
        qp.is_departing = true;
        let at_ns = now_ns.max(device.busy_ns) + DEPART_NS * device.slowness.max(1);
        device.busy_ns = at_ns;
        let life = qp.life;
        self.at(at_ns, What::Depart { end, life });
    }

    pub(super) fn depart(&mut self, end: End, life: u64) -> &'static str {
        let Some(qp) = self.alive(end, life) else { return "a dead queue stands" };
        qp.is_departing = false;
        if qp.state != QpState::ReadyToSend || qp.departed >= qp.posted {
            return "a queue stands";
        }
        let (at, is_first) = (qp.departed, qp.departed == qp.accepted);
        qp.departed += 1;
        let Some((packet, peer)) = packet(qp, at).zip(qp.peer) else { return "nobody is there" };
        self.send(end, peer, |to, from| What::Arrive { to, from, packet });
        if is_first {
            self.start_clock(end);
        }
        self.start(end);
        "a packet left"
    }

    /// Puts something on the wire, or loses it.
    fn send(&mut self, from: End, to: End, what: impl FnOnce(End, End) -> What) {
        let is_cut = self.devices[from.nic].is_cut || self.devices[to.nic].is_cut;
        let is_lost = self.loss_one_in > 0 && self.rng.u32(..self.loss_one_in) == 0;
        let slowness = [from.nic, to.nic].map(|nic| self.devices[nic].slowness.max(1));
        let way_ns = (WIRE_NS + self.rng.u64(..WIRE_JITTER_NS)) * slowness[0].max(slowness[1]);
        let overtakes = self.rng.u32(..OVERTAKE_ONE_IN) == 0;
        let mut at_ns = self.now_ns + way_ns;
        let is_late = self.rng.u32(..LATE_ONE_IN) == 0;
        if is_late {
            at_ns += self.rng.u64(..LATE_NS);
        } else if let Some(qp) = self.devices[from.nic].qps.get_mut(&from.qp)
            && !overtakes
        {
            at_ns = at_ns.max(qp.arrival_ns);
            qp.arrival_ns = at_ns;
        }
        if !is_cut && !is_lost {
            self.at(at_ns, what(to, from));
        }
    }

    pub(super) fn arrive(&mut self, to: End, from: End, packet: Packet) -> &'static str {
        let device = &mut self.devices[to.nic];
        let Some(qp) = device.qps.get_mut(&to.qp) else { return "a packet found no queue pair" };
        let is_open = matches!(qp.state, QpState::ReadyToReceive | QpState::ReadyToSend);
        if device.is_cut || !is_open || qp.peer != Some(from) {
            return "a packet was dropped";
        }
        let ahead = packet.number.wrapping_sub(qp.expected_packet) & PACKET_NUMBER_MASK;
        if ahead == 0 {
            self.execute(to, from, packet)
        } else if ahead > PACKET_NUMBER_MASK / 2 {
            self.repeat(to, from, packet)
        } else {
            "a packet came too early"
        }
    }

    /// A packet in sequence.
    fn execute(&mut self, to: End, from: End, packet: Packet) -> &'static str {
        let Packet { number, addr, key, body } = packet;
        let (len, is_write) = match &body {
            Body::Write { bytes, .. } => (bytes.len(), true),
            Body::Read { len } => (*len, false),
        };
        let device = &mut self.devices[to.nic];
        let is_counted = matches!(body, Body::Write { immediate: Some(_), .. });
        let memory = device.reach(to.qp, key, (addr, len), is_write);
        let Some(qp) = device.qps.get_mut(&to.qp) else { return "a packet found no queue pair" };
        let Some(memory) = memory else {
            self.refuse(to, number);
            return "a packet was refused";
        };
        if is_counted && device.receives == 0 {
            self.reply(to, from, Reply { number, verdict: Verdict::NotReady });
            return "a packet found no receive";
        }
        device.receives -= usize::from(is_counted);
        qp.expected_packet = (number + 1) & PACKET_NUMBER_MASK;
        let effect = match body {
            Body::Write { bytes, immediate } => {
                Effect::Store { memory, key, bytes, immediate, packet: number }
            }
            Body::Read { .. } => Effect::Load { memory, key, packet: number },
        };
        self.begin(to, effect);
        "a packet was taken"
    }

    /// Both queue pairs go to error: ours now, the peer's when it hears.
    fn refuse(&mut self, end: End, packet: u32) {
        let device = &mut self.devices[end.nic];
        let Some(qp) = device.qps.get(&end.qp) else { return };
        let (Some(peer), false) = (qp.peer, qp.state == QpState::Error) else { return };
        device.report(AsyncEvent::AccessViolated(end.qp));
        device.set_error(end.qp);
        self.begin(end, Effect::Refuse { peer, packet });
    }

    /// A packet that was executed already: reads are done again, writes are only answered again.
    fn repeat(&mut self, to: End, from: End, packet: Packet) -> &'static str {
        let Packet { number, addr, key, body } = packet;
        match body {
            Body::Write { .. } if self.devices[to.nic].qps[&to.qp].under_way == 0 => {
                self.reply(to, from, Reply { number, verdict: Verdict::Done });
                "a write was answered again"
            }
            Body::Write { .. } => "a write is under way still",
            Body::Read { len } => {
                let memory = self.devices[to.nic].reach(to.qp, key, (addr, len), false);
                match memory {
                    Some(memory) => self.begin(to, Effect::Load { memory, key, packet: number }),
                    None => self.refuse(to, number),
                }
                "a read was done again"
            }
        }
    }

    fn reply(&mut self, from: End, to: End, reply: Reply) {
        self.send(from, to, |to, from| What::Answer { to, from, reply });
    }

    /// An access to memory is under way from here until its [`Net::effect`].
    fn begin(&mut self, end: End, effect: Effect) {
        let is_slow = self.rng.u32(..EFFECT_SLOW_ONE_IN) == 0;
        let delay_ns = self.rng.u64(..if is_slow { EFFECT_SLOW_NS } else { EFFECT_JITTER_NS });
        let now_ns = self.now_ns;
        let Some(qp) = self.devices[end.nic].qps.get_mut(&end.qp) else { return };
        qp.under_way += 1;
        qp.effect_ns = qp.effect_ns.max(now_ns + delay_ns);
        let (at_ns, life) = (qp.effect_ns, qp.life);
        self.at(at_ns, What::Effect { end, life, effect });
    }

    pub(super) fn effect(&mut self, end: End, life: u64, effect: Effect) -> &'static str {
        if life < self.devices[end.nic].first_life {
            return "an access of the dead was dropped";
        }
        let is_alive = self.alive(end, life).is_some();
        let what = match effect {
            // What is deregistered is out of reach, also of an access on its way.
            Effect::Store { key, packet, .. } | Effect::Load { key, packet, .. }
                if !self.devices[end.nic].is_registered(key) =>
            {
                if is_alive {
                    self.refuse(end, packet);
                }
                "an access came too late"
            }
            Effect::Store { memory, bytes, immediate, packet, .. } => {
                store(&memory, &bytes);
                if is_alive {
                    self.stored(end, packet, immediate);
                }
                "bytes were stored"
            }
            Effect::Refuse { peer, packet } => {
                self.reply(end, peer, Reply { number: packet, verdict: Verdict::Refused });
                "a refusal left"
            }
            Effect::Load { memory, packet, .. } => {
                let bytes = load(&memory);
                if is_alive {
                    self.answer(end, Reply { number: packet, verdict: Verdict::Bytes(bytes) });
                }
                "bytes were read"
            }
            Effect::Settle { memory, settled } => {
                memory.iter().for_each(|(memory, bytes)| store(memory, bytes));
                if is_alive {
                    self.settled(end, settled);
                }
                "an answer counts"
            }
            Effect::Fail { at, status } => {
                if is_alive {
                    self.fail(end, at, status);
                }
                "a refusal counts"
            }
        };
        if let Some(qp) = self.alive(end, life) {
            qp.under_way -= 1;
            self.devices[end.nic].flush_if_drained(end.qp);
            self.settle(end);
        }
        what
    }

    fn stored(&mut self, end: End, packet: u32, immediate: Option<u32>) {
        if let Some(immediate) = immediate {
            let received = vec![(0, Completed::Received(immediate))];
            self.devices[end.nic].complete(end.qp, received);
        }
        self.answer(end, Reply { number: packet, verdict: Verdict::Done });
    }

    /// A queue pair in error says nothing.
    fn answer(&mut self, end: End, reply: Reply) {
        let qp = self.devices[end.nic].qps.get(&end.qp);
        let peer = qp.filter(|qp| qp.state != QpState::Error).and_then(|qp| qp.peer);
        if let Some(peer) = peer {
            self.reply(end, peer, reply);
        }
    }

    pub(super) fn answered(&mut self, to: End, from: End, reply: Reply) -> &'static str {
        let device = &mut self.devices[to.nic];
        let Some(qp) = device.qps.get_mut(&to.qp) else { return "an answer found no queue pair" };
        if device.is_cut || qp.state != QpState::ReadyToSend || qp.peer != Some(from) {
            return "an answer was dropped";
        }
        let Some(at) = qp.awaited(reply.number) else { return "an answer is an old one" };
        // An answer stands for the writes before it, but a read needs its own.
        let skipped = qp.accepted..at;
        if skipped.clone().any(|earlier| qp.is_read(earlier)) {
            return "an answer is missing";
        }
        let effect = match reply.verdict {
            Verdict::Done if qp.is_read(at) => return "an answer makes no sense",
            Verdict::Done => Effect::Settle { memory: None, settled: at + 1 },
            Verdict::Bytes(bytes) => match read_target(qp, at) {
                Some(memory) => Effect::Settle { memory: Some((memory, bytes)), settled: at + 1 },
                None => return "an answer makes no sense",
            },
            Verdict::Refused => Effect::Fail { at, status: Status::RemoteAccess },
            Verdict::NotReady => return self.not_ready(to, at),
        };
        qp.accepted = at + 1;
        qp.retries = 0;
        self.start_clock(to);
        self.begin(to, effect);
        "an answer came"
    }

    fn not_ready(&mut self, end: End, at: u64) -> &'static str {
        let Some(qp) = self.devices[end.nic].qps.get_mut(&end.qp) else { return "gone" };
        // The time-out sends it again, as the receiver's own timer would.
        qp.accepted = at;
        "the receiver is not ready"
    }

    fn settled(&mut self, end: End, settled: u64) {
        if let Some(qp) = self.devices[end.nic].qps.get_mut(&end.qp) {
            qp.settled = qp.settled.max(settled);
        }
    }

    /// Completes what is done at the head of a queue, local matters among it.
    fn settle(&mut self, end: End) {
        let device = &mut self.devices[end.nic];
        while let Some(request) = device.qps.get(&end.qp).and_then(Qp::settled_head) {
            let status = device.local(end.qp, &request);
            let Some(qp) = device.qps.get_mut(&end.qp) else { return };
            let completion = qp.pop(status);
            device.complete(end.qp, completion.into_iter().collect());
            if status != Status::Success {
                device.set_error(end.qp);
            }
        }
    }

    /// A packet failed for good: those before it are done, it says why, the rest is flushed.
    fn fail(&mut self, end: End, at: u64, status: Status) {
        let device = &mut self.devices[end.nic];
        let Some(qp) = device.qps.get_mut(&end.qp) else { return };
        if qp.state != QpState::ReadyToSend {
            return;
        }
        let mut ended = Vec::new();
        while qp.queue.front().is_some_and(|wr| wr.first + wr.packets <= at) {
            ended.extend(qp.pop(Status::Success));
        }
        ended.extend(qp.pop(status));
        device.complete(end.qp, ended);
        device.set_error(end.qp);
    }

    fn start_clock(&mut self, end: End) {
        let at_ns = self.now_ns + TIMEOUT_NS * self.devices[end.nic].slowness.max(1);
        let Some(qp) = self.devices[end.nic].qps.get_mut(&end.qp) else { return };
        qp.epoch += 1;
        if qp.accepted < qp.departed {
            let (life, epoch) = (qp.life, qp.epoch);
            self.at(at_ns, What::TimeOut { end, life, epoch });
        }
    }

    pub(super) fn timed_out(&mut self, end: End, life: u64, epoch: u64) -> &'static str {
        let Some(qp) = self.alive(end, life) else { return "a clock of the dead" };
        if qp.epoch != epoch || qp.state != QpState::ReadyToSend {
            return "a clock that nobody minds";
        }
        qp.retries += 1;
        if qp.retries > RETRIES_MAX {
            let at = qp.accepted;
            self.begin(end, Effect::Fail { at, status: Status::RetryExceeded });
            return "a queue pair gave up";
        }
        qp.departed = qp.accepted;
        self.start(end);
        "packets are sent again"
    }

    fn alive(&mut self, end: End, life: u64) -> Option<&mut Qp> {
        self.devices[end.nic].qps.get_mut(&end.qp).filter(|qp| qp.life == life)
    }
}

impl super::device::Device {
    /// Does what a work request asks of its own device.
    fn local(&mut self, qp: QpNumber, request: &WorkRequest) -> Status {
        match request.operation {
            Operation::Bind { window, access } if !self.bind(qp, request, window, access) => {
                return Status::LocalProtection;
            }
            Operation::Invalidate(window) => self.deregister(window),
            _ => {}
        }
        Status::Success
    }
}

fn packet(qp: &Qp, at: u64) -> Option<Packet> {
    let wr = qp.wr_at(at)?;
    let (offset, len) = wr.span(at);
    let local = wr.request.local.as_ref()?.part(offset, len).ok()?;
    let body = match wr.request.operation {
        Operation::Read => Body::Read { len },
        Operation::WriteWithImmediate(word) => {
            Body::Write { bytes: load(&local), immediate: wr.is_last(at).then_some(word) }
        }
        _ => Body::Write { bytes: load(&local), immediate: None },
    };
    let addr = wr.request.remote_addr + offset as u64;
    Some(Packet { number: qp.number(at), addr, key: wr.request.key, body })
}

/// Where the bytes of a read's packet go.
fn read_target(qp: &Qp, at: u64) -> Option<Slice> {
    let wr = qp.wr_at(at).filter(|wr| wr.request.operation == Operation::Read)?;
    let (offset, len) = wr.span(at);
    wr.request.local.as_ref()?.part(offset, len).ok()
}

fn store(memory: &Slice, bytes: &[u8]) {
    // Both were cut to the same length.
    let _ = memory.write(0, bytes);
}

fn load(memory: &Slice) -> Vec<u8> {
    let mut bytes = vec![0; memory.len()];
    let _ = memory.read(0, &mut bytes);
    bytes
}
