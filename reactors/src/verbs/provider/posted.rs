//! What is posted to one queue pair, in order: plain data. The memory of each entry is held until
//! it has completed, or one behind it has. What the device never got ends as well, behind all that
//! it got.

use std::collections::VecDeque;

use super::{Completed, Completion, Operation, QpNumber, Status, WorkRequest};
use crate::region::Slice;

/// The entries of a send queue that have not completed.
#[derive(Debug, Default)]
pub(super) struct Posted {
    entries: VecDeque<Entry>,
    /// Never reached the device, and how they end when all entries have.
    refused: VecDeque<Ended>,
    /// Behind a request that was refused, none gets to the device.
    is_broken: bool,
    depth: usize,
}

#[derive(Debug)]
struct Entry {
    id: u64,
    is_marker: bool,
    _memory: Option<Slice>,
}

/// A work request that ends without the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) id: u64,
    pub(super) status: Status,
    pub(super) is_marker: bool,
}

impl Ended {
    pub(super) fn completion(self, qp: QpNumber) -> Completion {
        Completion { qp, id: self.id, what: Completed::Sent(self.status) }
    }
}

impl Posted {
    pub(super) fn new(depth: usize) -> Self {
        Self { depth, ..Self::default() }
    }

    /// Whether there is room for so many more work requests.
    pub(super) fn has_room(&self, requests: usize) -> bool {
        self.entries.len() + self.refused.len() + requests <= self.depth
    }

    /// Whether nothing may go to the device any more.
    pub(super) fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// One more goes to the device.
    pub(super) fn push(&mut self, request: WorkRequest) {
        let is_marker = request.operation == Operation::Nothing;
        self.entries.push_back(Entry { id: request.id, is_marker, _memory: request.local });
    }

    /// This one does not. The first of those is at fault, as a device answers what its keys don't
    /// cover; those behind it are flushed.
    pub(super) fn refuse(&mut self, request: &WorkRequest, fault: Status) {
        let is_marker = request.operation == Operation::Nothing;
        self.fail(request.id, is_marker, fault);
    }

    /// The device didn't take the last `count` entries.
    pub(super) fn take_back(&mut self, count: usize, fault: Status) {
        let taken = self.entries.len().saturating_sub(count);
        for Entry { id, is_marker, .. } in self.entries.split_off(taken) {
            self.fail(id, is_marker, fault);
        }
    }

    fn fail(&mut self, id: u64, is_marker: bool, fault: Status) {
        let status = if self.is_broken { Status::Flushed } else { fault };
        self.is_broken = true;
        self.refused.push_back(Ended { id, status, is_marker });
    }

    /// A work request has completed, and with it those before it: their memory is quiet. Answers
    /// whether it was a marker; none where there is no such entry.
    pub(super) fn retire(&mut self, id: u64) -> Option<bool> {
        let at = self.entries.iter().position(|entry| entry.id == id)?;
        self.entries.drain(..=at).next_back().map(|entry| entry.is_marker)
    }

    /// What was refused and can end now, since all that the device got has.
    pub(super) fn refused(&mut self) -> impl Iterator<Item = Ended> {
        let count = if self.entries.is_empty() { self.refused.len() } else { 0 };
        self.refused.drain(..count)
    }

    /// Whether nothing is left that was refused.
    pub(super) fn is_settled(&self) -> bool {
        self.refused.is_empty()
    }

    /// The queue pair is gone: how all that is left ends.
    pub(super) fn flush(&mut self) -> impl Iterator<Item = Ended> {
        let flushed = self.entries.drain(..).map(|Entry { id, is_marker, .. }| Ended {
            id,
            status: Status::Flushed,
            is_marker,
        });
        flushed.chain(self.refused.drain(..))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::region::Region;
    use crate::verbs::RemoteKey;

    fn request(id: u64, operation: Operation, local: Option<Slice>) -> WorkRequest {
        let (remote_addr, key) = (0, RemoteKey(0));
        WorkRequest { id, operation, local, remote_addr, key, is_signalled: true }
    }

    fn write(id: u64) -> WorkRequest {
        request(id, Operation::Write, None)
    }

    fn ends(ended: impl Iterator<Item = Ended>) -> Vec<(u64, Status)> {
        ended.map(|ended| (ended.id, ended.status)).collect()
    }

    #[test]
    fn memory_is_held_until_its_request_or_one_behind_it_completes() {
        let region = Arc::new(Region::allocate(4096, None).unwrap());
        let mut posted = Posted::new(8);
        for id in 0..4 {
            let slice = Slice::new(region.clone(), 0, 64).unwrap();
            posted.push(request(id, Operation::Write, Some(slice)));
        }
        assert_eq!(Arc::strong_count(&region), 5);
        assert_eq!(posted.retire(2), Some(false));
        assert_eq!(Arc::strong_count(&region), 2);
        assert_eq!(posted.retire(1), None, "it has completed with the one behind it");
        assert_eq!(posted.retire(3), Some(false));
        assert_eq!(Arc::strong_count(&region), 1);
    }

    /// A failure that is told too early looks as if all before it were done.
    #[test]
    fn what_was_refused_ends_behind_what_the_device_got() {
        let mut posted = Posted::new(8);
        posted.push(write(1));
        posted.refuse(&write(2), Status::LocalProtection);
        posted.refuse(&write(3), Status::LocalProtection);
        assert!(posted.is_broken());
        assert_eq!(ends(posted.refused()), []);
        assert_eq!(posted.retire(1), Some(false));
        let all = [(2, Status::LocalProtection), (3, Status::Flushed)];
        assert_eq!(ends(posted.refused()), all);
        assert_eq!(ends(posted.refused()), []);
    }

    #[test]
    fn what_the_device_did_not_take_comes_back() {
        let mut posted = Posted::new(8);
        (1..=4).for_each(|id| posted.push(write(id)));
        posted.push(request(5, Operation::Nothing, None));
        posted.take_back(3, Status::LocalOperation);
        posted.retire(2);
        let back: Vec<_> = posted.refused().collect();
        let ended = |id, status, is_marker| Ended { id, status, is_marker };
        let all = [
            ended(3, Status::LocalOperation, false),
            ended(4, Status::Flushed, false),
            ended(5, Status::Flushed, true),
        ];
        assert_eq!(back, all);
    }

    #[test]
    fn a_device_that_is_gone_flushes_all_in_order() {
        let mut posted = Posted::new(8);
        (1..=3).for_each(|id| posted.push(write(id)));
        posted.refuse(&write(4), Status::LocalProtection);
        let all = [
            (1, Status::Flushed),
            (2, Status::Flushed),
            (3, Status::Flushed),
            (4, Status::LocalProtection),
        ];
        assert_eq!(ends(posted.flush()), all);
        assert_eq!(ends(posted.flush()), []);
    }

    #[test]
    fn room_is_for_what_was_refused_too() {
        let mut posted = Posted::new(2);
        assert!(posted.has_room(2) && !posted.has_room(3));
        posted.push(write(1));
        posted.refuse(&write(2), Status::LocalProtection);
        assert!(posted.has_room(0) && !posted.has_room(1));
        posted.retire(1);
        assert_eq!(posted.refused().count(), 2 - 1);
        assert!(posted.has_room(2));
    }
}
