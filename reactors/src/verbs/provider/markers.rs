//! Markers that were flushed, and wait until the device says that their queue pair takes no more of
//! the receives that it shares: until then words may come behind the flush (ibv_get_async_event(3)
//! on IBV_EVENT_QP_LAST_WQE_REACHED). Plain data.

use super::{Completion, QpNumber};

/// What waits for a device's last word of queue pairs in error.
#[derive(Debug)]
pub(super) struct Markers {
    /// Whether the device gives that word at all. Soft-RoCE doesn't.
    is_told: bool,
    /// Queue pairs of whom it was given before their markers were flushed.
    early: Vec<QpNumber>,
    waiting: Vec<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    marker: Completion,
    /// Whether somebody looked before.
    was_seen: bool,
}

impl Markers {
    pub(super) fn new(is_told: bool) -> Self {
        Self { is_told, early: Vec::new(), waiting: Vec::new() }
    }

    /// A marker was flushed; comes back where nothing is to be waited for.
    pub(super) fn flushed(&mut self, marker: Completion) -> Option<Completion> {
        let early = self.early.iter().position(|qp| *qp == marker.qp);
        if let Some(at) = early {
            self.early.swap_remove(at);
        }
        if !self.is_told || early.is_some() {
            return Some(marker);
        }
        self.waiting.push(Waiting { marker, was_seen: false });
        None
    }

    /// A queue pair in error takes no more receives; its marker, if that waits.
    pub(super) fn last_receive(&mut self, qp: QpNumber) -> Option<Completion> {
        let Some(at) = self.waiting.iter().position(|waiting| waiting.marker.qp == qp) else {
            if !self.early.contains(&qp) {
                self.early.push(qp);
            }
            return None;
        };
        Some(self.waiting.swap_remove(at).marker)
    }

    /// Markers that waited already when this was last asked.
    pub(super) fn expire(&mut self) -> Vec<Completion> {
        let expired =
            self.waiting.extract_if(.., |waiting| std::mem::replace(&mut waiting.was_seen, true));
        expired.map(|waiting| waiting.marker).collect()
    }

    /// A queue pair is gone; its marker, if that waits.
    pub(super) fn gone(&mut self, qp: QpNumber) -> Option<Completion> {
        self.early.retain(|early| *early != qp);
        let at = self.waiting.iter().position(|waiting| waiting.marker.qp == qp)?;
        Some(self.waiting.swap_remove(at).marker)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verbs::{Completed, Status};

    fn marker(qp: u32) -> Completion {
        let what = Completed::Sent(Status::Flushed);
        Completion { qp: QpNumber(qp), id: 1, what }
    }

    #[test]
    fn a_marker_waits_for_the_last_receive_of_its_own_pair() {
        let mut markers = Markers::new(true);
        assert_eq!(markers.flushed(marker(1)), None);
        assert_eq!(markers.flushed(marker(2)), None);
        assert_eq!(markers.last_receive(QpNumber(2)), Some(marker(2)));
        assert_eq!(markers.last_receive(QpNumber(1)), Some(marker(1)));
    }

    #[test]
    fn a_word_that_came_first_counts_once() {
        let mut markers = Markers::new(true);
        assert_eq!(markers.last_receive(QpNumber(1)), None);
        assert_eq!(markers.flushed(marker(1)), Some(marker(1)));
        assert_eq!(markers.flushed(marker(1)), None, "another pair of this number");
    }

    #[test]
    fn the_word_for_a_pair_that_is_gone_is_not_for_the_next_of_its_number() {
        let mut markers = Markers::new(true);
        markers.last_receive(QpNumber(1));
        assert_eq!(markers.gone(QpNumber(1)), None);
        assert_eq!(markers.flushed(marker(1)), None);
        assert_eq!(markers.gone(QpNumber(1)), Some(marker(1)));
        assert_eq!(markers.last_receive(QpNumber(1)), None);
    }

    #[test]
    fn a_device_that_says_nothing_makes_nobody_wait() {
        assert_eq!(Markers::new(false).flushed(marker(1)), Some(marker(1)));
    }

    #[test]
    fn waiting_ends_with_the_second_look() {
        let mut markers = Markers::new(true);
        markers.flushed(marker(1));
        assert_eq!(markers.expire(), []);
        markers.flushed(marker(2));
        assert_eq!(markers.expire(), [marker(1)]);
        assert_eq!(markers.expire(), [marker(2)]);
        assert_eq!(markers.expire(), []);
    }
}
