//! One transfer: slices, then the owner's generation where it is to be read again, then a notice
//! for each queue that carried data. Each item is posted, and again elsewhere, until it is done.

use std::collections::BTreeMap;
use std::sync::Arc;

use kvrail_reactors::region::Slice;
use kvrail_reactors::ticket::Ticket;
use kvrail_reactors::verbs::RemoteKey;

use super::ending::{Culprit, Ending, Fenced, SliceEnd};
use super::endpoint::Endpoint;
use super::message::Incarnation;
use crate::receipt::Proof;
use crate::{ErrorKind, Landed};

/// What is asked of an initiator.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    /// The caller's name for it.
    pub(crate) id: u64,
    pub(crate) peer: u64,
    pub(crate) slices: Vec<RdmaSlice>,
    /// The process whose keys these are, where that is known: another that answers under the same
    /// name is asked for nothing.
    pub(crate) target: Option<Incarnation>,
    /// Reads only: their bytes hold one generation, or the transfer ends Stale.
    pub(crate) guard: Option<Guard>,
    /// Counted at the peer when all slices are in place.
    pub(crate) event: Option<Event>,
    pub(crate) deadline_ns: Option<u64>,
}

/// A contiguous piece, read or written at once.
#[derive(Debug, Clone)]
pub(crate) struct RdmaSlice {
    pub(crate) is_write: bool,
    pub(crate) local: Slice,
    pub(crate) addr: u64,
    pub(crate) keys: Keys,
    /// The peer's NICs that are near to that memory, a bit each; none where that is not known.
    pub(crate) near: u64,
}

/// What opens the peer's memory.
#[derive(Debug, Clone)]
pub(crate) enum Keys {
    /// The region's key on each of the peer's NICs, in their order: good for as long as it is
    /// registered.
    Registered(Arc<[RemoteKey]>),
    /// A window to this grant, which the owner binds to each queue pair and can close.
    Grant(u128),
}

/// The owner's generation word, read again behind the data.
#[derive(Debug, Clone)]
pub(crate) struct Guard {
    pub(crate) addr: u64,
    pub(crate) keys: Keys,
    pub(crate) expected: u64,
}

/// A counter of the peer's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Event {
    pub(crate) counter: u64,
    pub(crate) amount: u64,
}

#[derive(Debug)]
pub(crate) struct Transfer {
    pub(crate) order: Order,
    /// The slices first, in their order.
    pub(crate) items: Vec<Item>,
    /// The number of its event, once its notices go out.
    pub(crate) event_number: Option<u64>,
    /// It waits for such a number.
    pub(crate) is_numberless: bool,
    pub(crate) posted_ns: u64,
    /// Why and since when nothing more is to be posted.
    pub(crate) ended_early: Option<(ErrorKind, u64)>,
    /// Endpoints that were given up without being drained, and may still touch our memory.
    pub(crate) mute: usize,
    pub(crate) is_over: bool,
    /// The process that has its data: what one process has, the next one under its name has not.
    pub(crate) target: Option<Incarnation>,
    /// What the first rail that failed under it said.
    pub(crate) culprit: Option<Culprit>,
    fenced: Fenced,
}

#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) what: What,
    pub(crate) stage: Stage,
    /// Times it was posted.
    pub(crate) attempts: u32,
    /// Rails that failed under it.
    pub(crate) losses: u32,
    /// The slices whose notice this is, or the notice of this slice.
    pub(crate) part: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    Slice,
    /// The generation word.
    Word,
    Notice,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// To be posted.
    Waiting,
    /// On this queue of this endpoint.
    Posted(Ticket<Endpoint>, usize),
    /// Its endpoint ended under it: nothing is known until that is fenced. With the verdict that
    /// a completion has given already.
    Held(Option<ErrorKind>),
    Done,
    Failed(ErrorKind),
}

impl Stage {
    pub(crate) fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::Failed(_))
    }
}

impl Transfer {
    pub(crate) fn new(order: Order, now_ns: u64) -> Self {
        let items = order.slices.iter().map(|_| Item::new(What::Slice, None)).collect();
        Self {
            target: order.target,
            order,
            items,
            event_number: None,
            is_numberless: false,
            posted_ns: now_ns,
            ended_early: None,
            mute: 0,
            is_over: false,
            culprit: None,
            fenced: Fenced::Unposted,
        }
    }

    /// Whether an item stores at the peer.
    pub(crate) fn is_write(&self, item: usize) -> bool {
        match self.items[item].what {
            What::Slice => self.order.slices[item].is_write,
            What::Word => false,
            What::Notice => true,
        }
    }

    /// Bytes of the window that an item takes.
    pub(crate) fn bytes(&self, item: usize) -> usize {
        match self.items[item].what {
            What::Slice => self.order.slices[item].local.len(),
            What::Word | What::Notice => 0,
        }
    }

    /// Why nothing more of it should be posted, if so.
    pub(crate) fn early(&self, now_ns: u64) -> Option<ErrorKind> {
        let expired = self.order.deadline_ns.filter(|&deadline_ns| deadline_ns <= now_ns);
        self.ended_early.map(|(kind, _)| kind).or(expired.map(|_| ErrorKind::Expired))
    }

    /// Items that follow from those that are done: to be posted too. `number` is asked once, for
    /// the event's number; it has none as long as too many events are open.
    pub(crate) fn unfold(&mut self, number: impl FnOnce() -> Option<u64>) -> Vec<usize> {
        let first = self.items.len();
        let has = |what| self.items.iter().any(|item| item.what == what);
        let failed = |item: &Item| matches!(item.stage, Stage::Failed(_) | Stage::Held(Some(_)));
        if self.ended_early.is_some() || self.items.iter().any(failed) {
            return Vec::new();
        }
        let is_done = self.items.iter().all(|item| item.stage == Stage::Done);
        if self.order.guard.is_some() && !has(What::Word) {
            if is_done {
                self.items.push(Item::new(What::Word, None));
            }
        } else if self.order.event.is_some() && !has(What::Notice) {
            // A notice behind a write comes behind its bytes. A read may be done again after it.
            let on_the_way = |item: usize| match self.items[item].stage {
                Stage::Posted(..) => self.is_write(item),
                stage => stage == Stage::Done,
            };
            if let Some(number) = (0..first).all(on_the_way).then(number).flatten() {
                self.event_number = Some(number);
                self.add_notices();
            }
        }
        (first..self.items.len()).collect()
    }

    /// One notice for each queue that still carries data; one at least.
    fn add_notices(&mut self) {
        let mut queues = Vec::new();
        for item in &mut self.items {
            let Stage::Posted(endpoint, queue) = item.stage else { continue };
            let at = (endpoint, queue);
            let known = queues.iter().position(|known| *known == at);
            item.part = Some(known.unwrap_or(queues.len()) as u32);
            if known.is_none() {
                queues.push(at);
            }
        }
        let parts = queues.len().max(1) as u32;
        self.items.extend((0..parts).map(|part| Item::new(What::Notice, Some(part))));
    }

    pub(crate) fn parts(&self) -> u32 {
        self.items.iter().filter(|item| item.what == What::Notice).count() as u32
    }

    /// Where a notice may go: `Err` as long as its data is neither done nor all on one queue;
    /// `Ok(None)` is anywhere.
    pub(crate) fn notice_at(&self, notice: usize) -> Result<Option<(Ticket<Endpoint>, usize)>, ()> {
        let part = self.items[notice].part;
        let data = self.items.iter().filter(|item| item.what == What::Slice && item.part == part);
        let mut at = None;
        for item in data.filter(|item| item.stage != Stage::Done) {
            match item.stage {
                Stage::Posted(endpoint, queue) if at.is_none_or(|at| at == (endpoint, queue)) => {
                    at = Some((endpoint, queue));
                }
                _ => return Err(()),
            }
        }
        Ok(at)
    }

    /// Whether the target has counted the part that an item is of, which comes behind its bytes.
    pub(crate) fn has_arrived(&self, item: usize, arrived: &BTreeMap<u64, u64>) -> bool {
        let part = self.items[item].part.filter(|part| *part < u64::BITS);
        let parts = self.event_number.and_then(|number| arrived.get(&number));
        part.zip(parts).is_some_and(|(part, parts)| parts >> part & 1 == 1)
    }

    /// Something about the remote side was found out, or could not be.
    pub(crate) fn proven(&mut self, fenced: Fenced) {
        self.fenced = self.fenced.max(fenced);
    }

    /// How it ended, once nothing of it is posted or waits.
    pub(crate) fn ending(&self, now_ns: u64) -> Option<Ending> {
        let complete = self.items.iter().all(|item| item.stage == Stage::Done)
            && (self.order.event.is_none() || self.parts() > 0)
            && (self.order.guard.is_none() || self.items.iter().any(|i| i.what == What::Word));
        let stopped = self.items.iter().all(|item| item.stage.is_final());
        let failed = self.items.iter().find_map(|item| match item.stage {
            Stage::Failed(kind) => Some(kind),
            _ => None,
        });
        let kind = if complete { None } else { failed.or(self.ended_early.map(|(kind, _)| kind)) };
        if !stopped || !complete && kind.is_none() {
            return None;
        }
        let result = |item: &Item| match item.stage {
            Stage::Failed(kind) => {
                let landed = if item.attempts > 0 { Landed::Maybe } else { Landed::No };
                Err(SliceEnd { kind, landed })
            }
            _ => Ok(()),
        };
        let slices = self.items.iter().take(self.order.slices.len()).map(result).collect();
        let since_ns = self.ended_early.map_or(self.posted_ns, |(_, since_ns)| since_ns);
        Some(Ending {
            kind,
            slices,
            local: if self.mute > 0 { Proof::Unproven } else { Proof::Quiet },
            landed: self.landed(),
            fenced: self.fenced,
            culprit: self.culprit,
            event: None,
            took_ns: now_ns.saturating_sub(since_ns),
        })
    }

    fn landed(&self) -> Landed {
        let mut data = self.items.iter().take(self.order.slices.len());
        if data.clone().all(|item| item.stage == Stage::Done) {
            Landed::Yes
        } else if data.any(|item| item.attempts > 0) {
            Landed::Maybe
        } else {
            Landed::No
        }
    }
}

impl Item {
    fn new(what: What, part: Option<u32>) -> Self {
        Self { what, stage: Stage::Waiting, attempts: 0, losses: 0, part }
    }
}
