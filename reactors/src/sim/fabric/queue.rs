//! One queue pair: its send queue, cut into packets, and the sequence numbers of both directions.

use std::collections::VecDeque;

use super::End;
use super::wire::PACKET_NUMBER_MASK;
use crate::region::Slice;
use crate::verbs::{Completed, Operation, QpState, RemoteKey, Status, WorkRequest};

/// Payload of one packet: small, so that a slice is several and lands in pieces.
pub(super) const PACKET_BYTES: usize = 128;

#[derive(Debug)]
pub(super) struct Qp {
    pub(super) life: u64,
    pub(super) state: QpState,
    pub(super) peer: Option<End>,
    pub(super) queue: VecDeque<Wr>,
    /// Number of the first packet we send.
    pub(super) first_packet: u32,
    /// Number of the packet that the peer sends next.
    pub(super) expected_packet: u32,
    /// Packets that the posted work has, that have left, that the peer has answered, and whose
    /// answers have taken effect; all counted from the connection's start.
    pub(super) posted: u64,
    pub(super) departed: u64,
    pub(super) accepted: u64,
    pub(super) settled: u64,
    pub(super) is_departing: bool,
    pub(super) retries: u32,
    /// The time-out that is running.
    pub(super) epoch: u64,
    /// Accesses to our memory that the device has begun.
    pub(super) under_way: usize,
    /// When the last of them ends; they end in their order.
    pub(super) effect_ns: u64,
    /// When its last packet reaches the peer; packets overtake each other rarely.
    pub(super) arrival_ns: u64,
}

/// A work request in a send queue.
#[derive(Debug)]
pub(super) struct Wr {
    pub(super) request: WorkRequest,
    /// Its first packet, and how many it has: none where it is a local matter.
    pub(super) first: u64,
    pub(super) packets: u64,
}

/// An access of the device to memory here, decided on but not done yet.
#[derive(Debug)]
pub(super) enum Effect {
    /// A peer's bytes are stored; then it is told, and so are we where they have an immediate.
    Store { memory: Slice, key: RemoteKey, bytes: Vec<u8>, immediate: Option<u32>, packet: u32 },
    /// Our bytes are read for a peer.
    Load { memory: Slice, key: RemoteKey, packet: u32 },
    /// What a peer asked for is not permitted, and it is told so behind what it did before.
    Refuse { peer: End, packet: u32 },
    /// The peer's answer counts up to here; with the bytes that it brought.
    Settle { memory: Option<(Slice, Vec<u8>)>, settled: u64 },
    /// The peer refused this packet.
    Fail { at: u64, status: Status },
}

impl Qp {
    pub(super) fn new(life: u64, first_packet: u32) -> Self {
        Self {
            life,
            state: QpState::Reset,
            peer: None,
            queue: VecDeque::new(),
            first_packet,
            expected_packet: 0,
            posted: 0,
            departed: 0,
            accepted: 0,
            settled: 0,
            is_departing: false,
            retries: 0,
            epoch: 0,
            under_way: 0,
            effect_ns: 0,
            arrival_ns: 0,
        }
    }

    pub(super) fn connect(&mut self, peer: End, first_packet: u32) -> bool {
        let is_new = self.state == QpState::Reset;
        if is_new {
            self.state = QpState::ReadyToSend;
            self.peer = Some(peer);
            self.expected_packet = first_packet;
        }
        is_new
    }

    pub(super) fn push(&mut self, request: WorkRequest) {
        use Operation::{Read, Write, WriteWithImmediate};
        let is_remote = matches!(request.operation, Read | Write | WriteWithImmediate(_));
        let bytes = request.local.as_ref().map_or(0, Slice::len);
        let packets = if is_remote { bytes.div_ceil(PACKET_BYTES).max(1) as u64 } else { 0 };
        self.queue.push_back(Wr { request, first: self.posted, packets });
        self.posted += packets;
    }

    /// The work request that packet `at` belongs to.
    pub(super) fn wr_at(&self, at: u64) -> Option<&Wr> {
        self.queue.iter().find(|wr| (wr.first..wr.first + wr.packets).contains(&at))
    }

    /// What is in flight of the packet numbered so: its place in the count, where it is one that
    /// has left and whose answer is still wanted.
    pub(super) fn awaited(&self, packet: u32) -> Option<u64> {
        let ahead = u64::from(packet.wrapping_sub(self.number(self.accepted)) & PACKET_NUMBER_MASK);
        let at = self.accepted + ahead;
        (at < self.departed).then_some(at)
    }

    pub(super) fn number(&self, at: u64) -> u32 {
        (self.first_packet.wrapping_add(at as u32)) & PACKET_NUMBER_MASK
    }

    pub(super) fn is_read(&self, at: u64) -> bool {
        self.wr_at(at).is_some_and(|wr| wr.request.operation == Operation::Read)
    }

    /// Whether the first work request is a read that goes on.
    pub(super) fn is_reading(&self) -> bool {
        let head = self.queue.front().filter(|_| self.state == QpState::ReadyToSend);
        head.is_some_and(|wr| wr.request.operation == Operation::Read)
    }

    /// The first work request, if it can end now: a window closes once no store is under way.
    pub(super) fn settled_head(&self) -> Option<WorkRequest> {
        let wr = self.queue.front().filter(|_| self.state == QpState::ReadyToSend)?;
        let waits = matches!(wr.request.operation, Operation::Invalidate(_)) && self.under_way > 0;
        let is_settled = self.settled >= wr.first + wr.packets && !waits;
        is_settled.then(|| wr.request.clone())
    }

    /// Ends everything that is posted; an error completes whether it was to be signalled or not.
    pub(super) fn flush(&mut self) -> Vec<(u64, Completed)> {
        let flushed = self.queue.drain(..);
        flushed.map(|wr| (wr.request.id, Completed::Sent(Status::Flushed))).collect()
    }

    /// Takes the first work request out, ended so; returns its completion, if it has one.
    pub(super) fn pop(&mut self, status: Status) -> Option<(u64, Completed)> {
        let wr = self.queue.pop_front()?;
        let is_seen = wr.request.is_signalled || status != Status::Success;
        is_seen.then_some((wr.request.id, Completed::Sent(status)))
    }
}

impl Wr {
    /// Its first byte and the number of bytes in packet `at`.
    pub(super) fn span(&self, at: u64) -> (usize, usize) {
        let bytes = self.request.local.as_ref().map_or(0, Slice::len);
        let offset = (at - self.first) as usize * PACKET_BYTES;
        (offset, PACKET_BYTES.min(bytes - offset))
    }

    pub(super) fn is_last(&self, at: u64) -> bool {
        at + 1 == self.first + self.packets
    }
}
