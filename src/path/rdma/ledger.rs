//! The receiver's ledger of notices: a counter advances once, when a notice has arrived over every
//! rail that carried the data, however often one is sent again. Bounded, since the sender says
//! below which event nothing will be sent again.

use std::collections::{BTreeMap, HashMap};

use super::message::InitiatorId;
use super::notice::Notice;
use crate::canary::{Canary, is_on};
use crate::limits::{RDMA_EVENTS_MAX, RDMA_INITIATORS_MAX};

/// A counter that advances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counted {
    pub(crate) counter: u64,
    pub(crate) amount: u64,
    /// Which event of its sender's it is.
    pub(crate) event: u64,
}

/// A notice that no sender of ours would send: its endpoint ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Nonsense;

#[derive(Debug, Default)]
pub(crate) struct Ledger {
    books: HashMap<InitiatorId, Book>,
    /// Counts arrivals, for the age of books.
    arrivals: u64,
}

/// One sender's events.
#[derive(Debug, Default)]
struct Book {
    /// Nothing below is sent again.
    floor: u64,
    events: BTreeMap<u64, Parts>,
    used: u64,
}

/// What has arrived of one event, a bit a part.
#[derive(Debug, PartialEq, Eq)]
struct Parts {
    expected: u64,
    arrived: u64,
}

impl Ledger {
    /// A notice has arrived: what advances by it, if it is the last one missing.
    pub(crate) fn arrived(
        &mut self,
        from: InitiatorId,
        notice: &Notice,
    ) -> Result<Option<Counted>, Nonsense> {
        self.arrivals += 1;
        let book = self.books.entry(from).or_default();
        book.used = self.arrivals;
        book.arrived(notice)
    }

    /// The parts of a sender's open events that have arrived, a bit each.
    pub(crate) fn arrived_of(&self, from: InitiatorId) -> Vec<(u64, u64)> {
        let events = self.books.get(&from).into_iter().flat_map(|book| &book.events);
        events.map(|(event, parts)| (*event, parts.arrived)).collect()
    }

    /// Makes room for one more sender, where `is_open` says who still has endpoints here.
    pub(crate) fn make_room(&mut self, is_open: impl Fn(InitiatorId) -> bool) {
        if self.books.len() < RDMA_INITIATORS_MAX {
            return;
        }
        let closed = self.books.iter().filter(|(id, _)| !is_open(**id));
        if let Some(oldest) = closed.min_by_key(|(_, book)| book.used).map(|(id, _)| *id) {
            self.books.remove(&oldest);
        }
    }
}

impl Book {
    fn arrived(&mut self, notice: &Notice) -> Result<Option<Counted>, Nonsense> {
        self.retire(notice.floor);
        if notice.event < self.floor {
            return Ok(None);
        }
        let expected = match notice.parts {
            1..=63 => (1 << notice.parts) - 1,
            64 => u64::MAX,
            _ => return Err(Nonsense),
        };
        let is_new = !self.events.contains_key(&notice.event);
        if notice.part >= notice.parts || is_new && self.events.len() >= RDMA_EVENTS_MAX {
            return Err(Nonsense);
        }
        let parts = self.events.entry(notice.event).or_insert(Parts { expected, arrived: 0 });
        if parts.expected != expected {
            return Err(Nonsense);
        }
        let before = parts.arrived;
        parts.arrived |= 1 << notice.part;
        let completes = (before != expected && parts.arrived == expected)
            || is_on(Canary::CountedTwice) && before == expected;
        let Notice { counter, amount, event, .. } = *notice;
        Ok(completes.then_some(Counted { counter, amount, event }))
    }

    fn retire(&mut self, floor: u64) {
        if floor > self.floor {
            self.floor = floor;
            self.events = self.events.split_off(&floor);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FROM: InitiatorId = InitiatorId(7);

    fn notice(event: u64, part: u32, parts: u32, floor: u64) -> Notice {
        Notice { event, part, parts, attempt: 0, floor, counter: 3, amount: 5 }
    }

    #[test]
    fn a_counter_advances_once_when_all_rails_have_spoken() {
        let mut ledger = Ledger::default();
        let counted = |event| Ok(Some(Counted { counter: 3, amount: 5, event }));
        assert_eq!(ledger.arrived(FROM, &notice(0, 1, 3, 0)), Ok(None));
        assert_eq!(ledger.arrived(FROM, &notice(0, 1, 3, 0)), Ok(None), "sent again");
        assert_eq!(ledger.arrived(FROM, &notice(0, 0, 3, 0)), Ok(None));
        assert_eq!(ledger.arrived(InitiatorId(8), &notice(0, 2, 3, 0)), Ok(None), "another's");
        assert_eq!(ledger.arrived(FROM, &notice(0, 2, 3, 0)), counted(0));
        assert_eq!(ledger.arrived(FROM, &notice(0, 2, 3, 0)), Ok(None));
        assert_eq!(ledger.arrived(FROM, &notice(1, 0, 1, 1)), counted(1));
        assert_eq!(ledger.arrived(FROM, &notice(0, 2, 3, 0)), Ok(None), "below the floor");
    }

    #[test]
    fn a_hostile_sender_fills_no_memory() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.arrived(FROM, &notice(0, 0, 0, 0)), Err(Nonsense));
        assert_eq!(ledger.arrived(FROM, &notice(0, 0, 65, 0)), Err(Nonsense));
        assert_eq!(ledger.arrived(FROM, &notice(0, 2, 2, 0)), Err(Nonsense));
        for event in 0..RDMA_EVENTS_MAX as u64 {
            assert_eq!(ledger.arrived(FROM, &notice(event, 0, 2, 0)), Ok(None));
        }
        assert_eq!(ledger.arrived(FROM, &notice(u64::MAX, 0, 2, 0)), Err(Nonsense));
        assert_eq!(ledger.arrived(FROM, &notice(0, 0, 3, 0)), Err(Nonsense), "parts don't change");
        for sender in 0..2 * RDMA_INITIATORS_MAX as u64 {
            ledger.make_room(|id| id == FROM);
            assert_eq!(ledger.arrived(InitiatorId(100 + sender), &notice(0, 0, 2, 0)), Ok(None));
        }
        assert!(ledger.books.len() <= RDMA_INITIATORS_MAX && ledger.books.contains_key(&FROM));
    }
}
