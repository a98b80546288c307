//! The sender's events of one peer: which may still be sent or be unread over there, so that the
//! receiver is told below which it need remember nothing.

use std::collections::BTreeMap;

use crate::limits::RDMA_EVENTS_MAX;

#[derive(Debug, Default)]
pub(crate) struct Events {
    next: u64,
    open: BTreeMap<u64, Open>,
}

#[derive(Debug, Default)]
struct Open {
    /// Notices that were sent, and that the peer is not known to have read.
    unread: usize,
    /// Its transfer has ended: nothing of it is sent any more.
    is_over: bool,
}

impl Events {
    /// A number for an event, unless the receiver would have to remember too many.
    pub(crate) fn number(&mut self) -> Option<u64> {
        let number = self.next;
        let fits = number - self.floor() < RDMA_EVENTS_MAX as u64;
        fits.then(|| {
            self.next += 1;
            self.open.insert(number, Open::default());
            number
        })
    }

    /// No notice of an event below is sent again, nor unread.
    pub(crate) fn floor(&self) -> u64 {
        self.open.first_key_value().map_or(self.next, |(first, _)| *first)
    }

    /// Whether it is time to ask what the peer has read.
    pub(crate) fn are_many(&self) -> bool {
        self.next - self.floor() >= RDMA_EVENTS_MAX as u64 / 2
    }

    /// A notice of this event goes out.
    pub(crate) fn sent(&mut self, event: u64) {
        self.open.entry(event).or_default().unread += 1;
    }

    /// The peer has read one, or never will.
    pub(crate) fn read(&mut self, event: u64) {
        self.change(event, |open| open.unread -= 1);
    }

    /// Its transfer has ended.
    pub(crate) fn over(&mut self, event: u64) {
        self.change(event, |open| open.is_over = true);
    }

    fn change(&mut self, event: u64, change: impl FnOnce(&mut Open)) {
        let Some(open) = self.open.get_mut(&event) else { return };
        change(open);
        if open.is_over && open.unread == 0 {
            self.open.remove(&event);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_waits_for_the_reader() {
        let mut events = Events::default();
        let [first, second] = [(); 2].map(|()| events.number().unwrap());
        events.sent(first);
        events.sent(second);
        events.over(first);
        events.read(second);
        events.over(second);
        assert_eq!(events.floor(), first, "over, but unread");
        events.read(first);
        assert_eq!(events.floor(), second + 1);
    }

    #[test]
    fn the_receiver_never_remembers_more_than_it_must() {
        let mut events = Events::default();
        for number in 0..RDMA_EVENTS_MAX as u64 {
            assert_eq!(events.number(), Some(number));
        }
        assert!(events.are_many() && events.number().is_none());
        events.over(1);
        assert!(events.number().is_none(), "the first one is open still");
        events.over(0);
        assert!(events.number().is_some());
    }
}
