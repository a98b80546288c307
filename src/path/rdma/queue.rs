//! One send queue: lists that share a doorbell, a completion for one work request in several, and
//! the rule by which the others are known to be done.

use std::collections::VecDeque;

use kvrail_reactors::verbs::{Status, WorkRequest};

/// What is posted to one queue pair and not known to have ended.
///
/// The last of a list is always signalled, so everything posted ends by a completion: its own, a
/// later one's success (which covers all before it), or its own flush.
#[derive(Debug)]
pub(crate) struct SendQueue<T> {
    posted: VecDeque<(u64, T)>,
    building: Vec<WorkRequest>,
    /// Work requests since the last signalled one.
    unsignalled: usize,
    signal_every: usize,
}

impl<T> SendQueue<T> {
    pub(crate) fn new(signal_every: usize) -> Self {
        Self { posted: VecDeque::new(), building: Vec::new(), unsignalled: 0, signal_every }
    }

    /// Adds to the list that the next [`SendQueue::take_list`] gives. Ids grow.
    pub(crate) fn push(&mut self, mut request: WorkRequest, what: T) {
        debug_assert!(self.posted.back().is_none_or(|(id, _)| *id < request.id), "ids grow");
        self.unsignalled += 1;
        request.is_signalled = self.unsignalled >= self.signal_every;
        if request.is_signalled {
            self.unsignalled = 0;
        }
        self.posted.push_back((request.id, what));
        self.building.push(request);
    }

    /// The list to be posted now, if any.
    pub(crate) fn take_list(&mut self) -> Option<Vec<WorkRequest>> {
        self.building.last_mut()?.is_signalled = true;
        self.unsignalled = 0;
        Some(std::mem::take(&mut self.building))
    }

    /// A completion: what has ended by it, in its order. None where it isn't about anything that
    /// is posted: a queue pair's number may have had another owner.
    pub(crate) fn completed(&mut self, id: u64, status: Status) -> Vec<(T, Status)> {
        let Ok(position) = self.posted.binary_search_by_key(&id, |(id, _)| *id) else {
            return Vec::new();
        };
        let ended = self.posted.drain(..=position).map(|(_, what)| what);
        let by = |(at, what)| (what, if at < position { Status::Success } else { status });
        ended.enumerate().map(by).collect()
    }

    /// Only for the canary: takes everything out, as if it had ended.
    pub(crate) fn forget(&mut self) -> Vec<T> {
        self.posted.drain(..).map(|(_, what)| what).collect()
    }

    /// Length of the list that is not handed over yet.
    pub(crate) fn building(&self) -> usize {
        self.building.len()
    }

    /// How much is posted.
    pub(crate) fn len(&self) -> usize {
        self.posted.len()
    }

    /// Nothing is posted: no completion will come.
    pub(crate) fn is_empty(&self) -> bool {
        self.posted.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.posted.iter().map(|(_, what)| what)
    }
}

#[cfg(test)]
mod tests {
    use kvrail_reactors::verbs::{Operation, RemoteKey};
    use proptest::prelude::*;

    use super::*;

    fn request(id: u64) -> WorkRequest {
        let (operation, key) = (Operation::Nothing, RemoteKey(0));
        WorkRequest { id, operation, local: None, remote_addr: 0, key, is_signalled: false }
    }

    #[test]
    fn one_in_several_and_the_last_of_a_list_are_signalled() {
        let mut queue = SendQueue::new(3);
        (0..8).for_each(|id| queue.push(request(id), id));
        let list = queue.take_list().unwrap();
        let signalled: Vec<_> = list.iter().filter(|r| r.is_signalled).map(|r| r.id).collect();
        assert_eq!(signalled, [2, 5, 7]);
        assert!(queue.take_list().is_none());
        let ended = queue.completed(5, Status::Success);
        assert_eq!(ended.len(), 6, "those before it ended with it");
        assert!(queue.completed(5, Status::Success).is_empty(), "a stale completion ends nothing");
        let ended = queue.completed(7, Status::RetryExceeded);
        assert_eq!(ended, [(6, Status::Success), (7, Status::RetryExceeded)]);
        assert!(queue.is_empty());
    }

    proptest! {
        /// However a device completes lists (in order; errors complete each), all of it ends once.
        #[test]
        fn everything_posted_ends_once(
            every in 1..10usize,
            lists in prop::collection::vec(1..20usize, 1..20),
            fails_at in 0..200u64,
        ) {
            let mut queue = SendQueue::new(every);
            let (mut id, mut ended, mut device) = (0, Vec::new(), Vec::new());
            for length in lists {
                for _ in 0..length {
                    queue.push(request(id), id);
                    id += 1;
                }
                device.extend(queue.take_list().unwrap());
            }
            for request in device {
                let status = if request.id < fails_at { Status::Success } else { Status::Flushed };
                if request.is_signalled || status != Status::Success {
                    ended.extend(queue.completed(request.id, status));
                }
            }
            prop_assert!(queue.is_empty());
            let expected: Vec<_> = (0..id).map(|id| {
                (id, if id < fails_at { Status::Success } else { Status::Flushed })
            }).collect();
            prop_assert_eq!(ended, expected);
        }
    }
}
