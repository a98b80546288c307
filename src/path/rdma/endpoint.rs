//! One endpoint at its initiator: queue pairs to one NIC of a peer, used from one handshake to one
//! end. It never reconnects, and its queue pairs are destroyed only when they are drained.

use std::collections::{BTreeMap, VecDeque};

use kvrail_reactors::region::Slice;
use kvrail_reactors::ticket::Ticket;
use kvrail_reactors::verbs::{QpAddress, RemoteAccess, RemoteKey, Status, WorkRequest};

use super::ending::Fenced;
use super::message::{EndpointName, Incarnation, Mailbox, Strike};
use super::notice::{CONSUMED_BYTES, NOTICE_BYTES};
use super::queue::{SendQueue, Signals};
use super::rail::Ends;
use super::transfer::Transfer;
use crate::limits::{RDMA_WINDOWS_MAX, TICK_NS};

#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) name: EndpointName,
    pub(crate) ends: Ends,
    pub(crate) peer: u64,
    pub(crate) state: State,
    pub(crate) queues: Vec<Queue>,
    pub(crate) mailbox: Option<Mailbox>,
    /// The process that has accepted it.
    pub(crate) target: Option<Incarnation>,
    /// Since when it is in its state.
    pub(crate) since_ns: u64,
    /// When the peer was last asked for what the state waits for.
    pub(crate) asked_ns: u64,
    /// When something last completed, or was posted to an idle endpoint.
    pub(crate) progress_ns: u64,
    pub(crate) bytes: usize,
    /// What is proven about the target, once it is asked to fence.
    pub(crate) remote: Option<Fenced>,
    /// What the target has counted of our events when it had fenced, by event: a bit a part.
    pub(crate) arrived: BTreeMap<u64, u64>,
    /// The first status that was no success, and no consequence of one.
    pub(crate) culprit: Option<Status>,
    /// It ended since its rail does not work.
    pub(crate) has_failed: bool,
    /// Items that it ended under.
    pub(crate) held: Vec<(Ticket<Transfer>, usize)>,
    /// Transfers that it may touch the memory of, though they were told to go on without it.
    pub(crate) haunted: Vec<Ticket<Transfer>>,
    pub(crate) windows: BTreeMap<u128, Keyhole>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Its queue pairs are being made.
    Creating,
    /// The peer was asked.
    Opening,
    /// Its queue pairs are being connected.
    Connecting,
    /// It carries work.
    Ready,
    /// It drains, and the target is asked to fence.
    Ending,
    /// It did not drain in time: its NIC is silent. It is kept until it speaks.
    Mute,
}

/// A window to a grant, as far as this side knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Keyhole {
    /// First then, and last.
    Asked {
        since_ns: u64,
        at_ns: u64,
    },
    Open(Vec<RemoteKey>, RemoteAccess),
    /// The owner has none for us.
    Struck(Strike),
}

/// One queue pair.
#[derive(Debug)]
pub(crate) struct Queue {
    pub(crate) own: QpAddress,
    pub(crate) send: SendQueue<Posted>,
    /// Memory for the words that are read and the notices that are sent.
    scratch: Slice,
    /// Notices sent, and those of them that the peer is known to have read.
    pub(crate) notices: u64,
    pub(crate) consumed: u64,
    /// The events of those that it may not have read, the first first.
    pub(crate) unread: VecDeque<u64>,
    pub(crate) asks_consumed: bool,
    /// Not to be asked again before, and how long it rests next: a reader that is stopped is not
    /// asked without end.
    pub(crate) asks_after_ns: u64,
    asks_pause_ns: u64,
    pub(crate) reads_word: bool,
}

/// What a posted work request is for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Posted {
    Item {
        transfer: Ticket<Transfer>,
        item: usize,
        /// Bytes of it, and of all that was under way on the endpoint with it.
        bytes: usize,
        ahead: usize,
        posted_ns: u64,
    },
    /// How many notices the peer has read.
    Consumed,
}

/// The first pause after a question that brought nothing new: some round trips.
const ASKS_PAUSE_NS: u64 = 20_000;

/// Bytes of scratch memory for one queue with so many slots in its mailbox.
pub(crate) const fn scratch_bytes(slots: usize) -> usize {
    2 * CONSUMED_BYTES + slots * NOTICE_BYTES
}

impl Endpoint {
    pub(crate) fn new(name: EndpointName, ends: Ends, peer: u64, now_ns: u64) -> Self {
        Self {
            name,
            ends,
            peer,
            state: State::Creating,
            queues: Vec::new(),
            mailbox: None,
            target: None,
            since_ns: now_ns,
            asked_ns: now_ns,
            progress_ns: now_ns,
            bytes: 0,
            remote: None,
            arrived: BTreeMap::new(),
            culprit: None,
            has_failed: false,
            held: Vec::new(),
            haunted: Vec::new(),
            windows: BTreeMap::new(),
        }
    }

    pub(crate) fn becomes(&mut self, state: State, now_ns: u64) {
        self.state = state;
        self.since_ns = now_ns;
        self.asked_ns = now_ns;
        self.progress_ns = now_ns;
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.state == State::Ready
    }

    /// Nothing is posted that has not ended.
    pub(crate) fn is_drained(&self) -> bool {
        self.queues.iter().all(|queue| queue.send.is_empty())
    }

    /// The queue with the most room, if any has room for one more.
    pub(crate) fn roomiest(&self, window_requests: usize) -> Option<usize> {
        let queues = self.queues.iter().enumerate();
        let (index, queue) = queues.min_by_key(|(_, queue)| queue.send.len())?;
        (queue.send.len() < window_requests).then_some(index)
    }

    /// Whether `bytes` more fit; anything does into an empty window.
    pub(crate) fn has_room(&self, bytes: usize, window_bytes: usize) -> bool {
        self.bytes == 0 || self.bytes + bytes <= window_bytes
    }

    /// Whether one more window may be known; forgets one, in need: who asks again for one that is
    /// open is told so.
    pub(crate) fn has_room_for_window(&mut self) -> bool {
        if self.windows.len() >= RDMA_WINDOWS_MAX {
            let is_known = |keyhole: &Keyhole| !matches!(keyhole, Keyhole::Asked { .. });
            let known = self.windows.iter().find(|(_, keyhole)| is_known(keyhole));
            let Some(&grant) = known.map(|(grant, _)| grant) else { return false };
            self.windows.remove(&grant);
        }
        true
    }

    /// Adds to a queue's list.
    pub(crate) fn push(&mut self, queue: usize, request: WorkRequest, posted: Posted, now_ns: u64) {
        if self.is_drained() {
            self.progress_ns = now_ns;
        }
        if let Posted::Item { bytes, .. } = posted {
            self.bytes += bytes;
        }
        self.queues[queue].send.push(request, posted);
    }
}

impl Queue {
    pub(crate) fn new(own: QpAddress, scratch: Slice, signals: Signals) -> Self {
        Self {
            own,
            send: SendQueue::new(signals),
            scratch,
            notices: 0,
            consumed: 0,
            unread: VecDeque::new(),
            asks_consumed: false,
            asks_after_ns: 0,
            asks_pause_ns: ASKS_PAUSE_NS,
            reads_word: false,
        }
    }

    /// The peer has read so many notices: the events of those it has read since.
    pub(crate) fn has_consumed(&mut self, count: u64, now_ns: u64) -> impl Iterator<Item = u64> {
        self.asks_consumed = false;
        let is_news = count > self.consumed;
        self.asks_pause_ns =
            if is_news { ASKS_PAUSE_NS } else { (2 * self.asks_pause_ns).min(TICK_NS) };
        self.asks_after_ns = if is_news { now_ns } else { now_ns + self.asks_pause_ns };
        let count = count.clamp(self.consumed, self.notices);
        let read = ((count - self.consumed) as usize).min(self.unread.len());
        self.consumed = count;
        self.unread.drain(..read)
    }

    pub(crate) fn consumed_word(&self) -> Option<Slice> {
        self.scratch.part(0, CONSUMED_BYTES).ok()
    }

    pub(crate) fn guard_word(&self) -> Option<Slice> {
        self.scratch.part(CONSUMED_BYTES, CONSUMED_BYTES).ok()
    }

    /// Memory for the next notice of `slots`; none while the peer may have left so many unread.
    pub(crate) fn notice_slot(&self, slots: u32) -> Option<Slice> {
        let slots = u64::from(slots);
        let is_free = self.notices - self.consumed < slots;
        let slot = is_free.then(|| (self.notices % slots) as usize)?;
        self.scratch.part(2 * CONSUMED_BYTES + slot * NOTICE_BYTES, NOTICE_BYTES).ok()
    }
}
