//! One NIC's state: queue pairs by number, registrations, windows, receives and completions.

use std::collections::{BTreeMap, VecDeque};

use super::queue::Qp;
use super::{End, Post};
use crate::region::Slice;
use crate::verbs::{
    AsyncEvent, Completion, QpAddress, QpNumber, QpState, RemoteAccess, RemoteKey, WorkRequest,
};

/// Entries of a send queue; Mooncake's number (`MC_MAX_WR`).
const SEND_QUEUE_ENTRIES: usize = 256;

#[derive(Debug, Default)]
pub(super) struct Device {
    pub(super) qps: BTreeMap<QpNumber, Qp>,
    keys: BTreeMap<RemoteKey, Grant>,
    last_key: u32,
    /// Lives before belong to a process that is gone: the kernel has ended all of theirs.
    pub(super) first_life: u64,
    completions: VecDeque<Completion>,
    events: Vec<AsyncEvent>,
    pub(super) receives: usize,
    pub(super) is_cut: bool,
    pub(super) is_silent: bool,
    /// 0 is as 1.
    pub(super) slowness: u64,
    /// When the last packet has left.
    pub(super) busy_ns: u64,
}

/// What a key opens.
#[derive(Debug)]
struct Grant {
    memory: Slice,
    addr: u64,
    access: RemoteAccess,
    /// A window is open to one queue pair's peer only.
    qp: Option<QpNumber>,
}

impl Device {
    pub(super) fn register(&mut self, memory: Slice, addr: u64, access: RemoteAccess) -> RemoteKey {
        let key = self.new_key();
        self.keys.insert(key, Grant { memory, addr, access, qp: None });
        key
    }

    pub(super) fn deregister(&mut self, key: RemoteKey) {
        self.keys.remove(&key);
    }

    /// Every object is gone. Keys are not given twice, as a process draws its own at random.
    pub(super) fn crash(&mut self, first_life: u64) {
        *self = Self { last_key: self.last_key, first_life, ..Self::default() };
    }

    pub(super) fn new_key(&mut self) -> RemoteKey {
        self.last_key += 1;
        RemoteKey(self.last_key)
    }

    pub(super) fn is_registered(&self, key: RemoteKey) -> bool {
        self.keys.contains_key(&key)
    }

    /// The memory that a peer may write, or else read, through `qp` by `key`.
    pub(super) fn reach(
        &self,
        qp: QpNumber,
        key: RemoteKey,
        (addr, len): (u64, usize),
        is_write: bool,
    ) -> Option<Slice> {
        let grant = self.keys.get(&key)?;
        let is_permitted = if is_write { grant.access.write } else { grant.access.read };
        let is_theirs = grant.qp.is_none_or(|owner| owner == qp);
        let offset = addr.checked_sub(grant.addr)?;
        let part = grant.memory.part(usize::try_from(offset).ok()?, len).ok()?;
        (is_permitted && is_theirs).then_some(part)
    }

    /// Opens a window; `false` where its range is not inside of a registration.
    pub(super) fn bind(
        &mut self,
        qp: QpNumber,
        request: &WorkRequest,
        window: RemoteKey,
        access: RemoteAccess,
    ) -> bool {
        let Some(memory) = request.local.clone() else { return false };
        let is_registered = self.keys.contains_key(&request.key);
        if is_registered {
            let grant = Grant { memory, addr: request.remote_addr, access, qp: Some(qp) };
            self.keys.insert(window, grant);
        }
        is_registered
    }

    pub(super) fn create_qp(&mut self, life: u64, first_packet: u32) -> QpAddress {
        // The lowest free number: numbers of the dead come back as soon as they can.
        let number = (1..).map(QpNumber).find(|number| !self.qps.contains_key(number));
        let number = number.expect("fewer queue pairs than numbers");
        self.qps.insert(number, Qp::new(life, first_packet));
        QpAddress { number, first_packet }
    }

    pub(super) fn connect(&mut self, qp: QpNumber, peer: End, first_packet: u32) -> bool {
        self.qps.get_mut(&qp).is_some_and(|qp| qp.connect(peer, first_packet))
    }

    pub(super) fn set_error(&mut self, number: QpNumber) {
        let Some(qp) = self.qps.get_mut(&number) else { return };
        if qp.state != QpState::Reset {
            qp.state = QpState::Error;
            self.flush_if_drained(number);
        }
    }

    /// Reads that have just begun end as if they had succeeded, and their queue pairs in error.
    pub(super) fn surprise(&mut self) {
        let reads = |qp: &Qp| qp.settled_head().is_none() && qp.is_reading();
        let reading = self.qps.iter().filter(|(_, qp)| reads(qp));
        for number in reading.map(|(number, _)| *number).collect::<Vec<_>>() {
            let Some(qp) = self.qps.get_mut(&number) else { continue };
            let ended = qp.pop(crate::verbs::Status::Success);
            self.complete(number, ended.into_iter().collect());
            self.set_error(number);
        }
    }

    /// A queue pair in error flushes what is posted, once none of its stores is under way.
    pub(super) fn flush_if_drained(&mut self, number: QpNumber) {
        let Some(qp) = self.qps.get_mut(&number) else { return };
        if qp.state == QpState::Error && qp.under_way == 0 {
            let flushed = qp.flush();
            self.complete(number, flushed);
        }
    }

    pub(super) fn reset(&mut self, number: QpNumber, life: u64) {
        let Some(qp) = self.qps.get_mut(&number) else { return };
        *qp = Qp::new(life, qp.first_packet);
        self.completions.retain(|completion| completion.qp != number);
    }

    pub(super) fn destroy(&mut self, number: QpNumber) {
        self.qps.remove(&number);
        self.keys.retain(|_, grant| grant.qp != Some(number));
    }

    pub(super) fn state(&self, number: QpNumber) -> Option<QpState> {
        self.qps.get(&number).map(|qp| qp.state)
    }

    pub(super) fn by_life(&self, life: u64) -> Option<QpNumber> {
        self.qps.iter().find(|(_, qp)| qp.life == life).map(|(number, _)| *number)
    }

    /// Queues a list; all of it or nothing. Returns the queue pair's life.
    pub(super) fn post(&mut self, post: Post) -> Result<u64, Post> {
        let Some(qp) = self.qps.get_mut(&post.qp) else { return Err(post) };
        let takes = matches!(qp.state, QpState::ReadyToSend | QpState::Error);
        if !takes || qp.queue.len() + post.requests.len() > SEND_QUEUE_ENTRIES {
            return Err(post);
        }
        let life = qp.life;
        post.requests.into_iter().for_each(|request| qp.push(request));
        Ok(life)
    }

    pub(super) fn complete(&mut self, qp: QpNumber, ended: Vec<(u64, crate::verbs::Completed)>) {
        let ended = ended.into_iter();
        self.completions.extend(ended.map(|(id, what)| Completion { qp, id, what }));
    }

    pub(super) fn poll(&mut self, budget: usize, done: &mut Vec<Completion>) -> usize {
        let count = if self.is_silent { 0 } else { budget.min(self.completions.len()) };
        done.extend(self.completions.drain(..count));
        count
    }

    pub(super) fn is_idle(&self) -> bool {
        self.is_silent || (self.completions.is_empty() && self.events.is_empty())
    }

    pub(super) fn take_events(&mut self) -> Vec<AsyncEvent> {
        if self.is_silent { Vec::new() } else { std::mem::take(&mut self.events) }
    }

    pub(super) fn report(&mut self, event: AsyncEvent) {
        self.events.push(event);
    }

    pub(super) fn objects(&self) -> usize {
        self.qps.len() + self.keys.len()
    }

    pub(super) fn set_link(&mut self, is_up: bool) {
        if self.is_cut == is_up {
            self.is_cut = !is_up;
            self.report(if is_up { AsyncEvent::PortUp } else { AsyncEvent::PortDown });
        }
    }
}
