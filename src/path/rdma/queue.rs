//! One send queue: lists that share a doorbell, a completion for one work request in several, and
//! the rule by which the others are known to be done.

use std::collections::VecDeque;

use kvrail_reactors::verbs::{Operation, RemoteKey, Status, WorkRequest};

/// How much the id of a work request is more than that of the one before it on a queue, at least:
/// one between them is free for the write that ends a list.
pub(crate) const ID_STEP: u64 = 2;

/// Which work requests complete by themselves when they succeed. Any that fails does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signals {
    /// One in so many, and the last of each list.
    Every(usize),
    /// None but a write of no bytes behind each list. For soft-RoCE, up to Linux 6.1 at least:
    /// where an answer surprises it, it ends a request as if that had succeeded, with none or
    /// some of its bytes, and only then puts its queue pair in error. So nothing is believed until
    /// something behind it has been answered as well.
    Behind,
}

/// What is posted to one queue pair and not known to have ended.
///
/// The last of a list is always signalled, so everything posted ends by a completion: its own, a
/// later one's success (which covers all before it), or its own flush.
#[derive(Debug)]
pub(crate) struct SendQueue<T> {
    posted: VecDeque<(u64, Option<T>)>,
    building: Vec<WorkRequest>,
    /// Work requests since the last signalled one.
    unsignalled: usize,
    signals: Signals,
}

impl<T> SendQueue<T> {
    pub(crate) fn new(signals: Signals) -> Self {
        Self { posted: VecDeque::new(), building: Vec::new(), unsignalled: 0, signals }
    }

    /// Adds to the list that the next [`SendQueue::take_list`] gives. Ids grow by [`ID_STEP`].
    pub(crate) fn push(&mut self, mut request: WorkRequest, what: T) {
        debug_assert!(self.posted.back().is_none_or(|(id, _)| *id < request.id), "ids grow");
        self.unsignalled += 1;
        request.is_signalled = match self.signals {
            Signals::Every(every) => self.unsignalled >= every,
            Signals::Behind => false,
        };
        if request.is_signalled {
            self.unsignalled = 0;
        }
        self.posted.push_back((request.id, Some(what)));
        self.building.push(request);
    }

    /// The list to be posted now, if any.
    pub(crate) fn take_list(&mut self) -> Option<Vec<WorkRequest>> {
        let last = self.building.last_mut()?;
        if self.signals == Signals::Behind {
            let (id, operation, key) = (last.id + 1, Operation::Write, RemoteKey(0));
            self.building.push(WorkRequest {
                id,
                operation,
                local: None,
                remote_addr: 0,
                key,
                is_signalled: true,
            });
            self.posted.push_back((id, None));
        } else {
            last.is_signalled = true;
        }
        self.unsignalled = 0;
        Some(std::mem::take(&mut self.building))
    }

    /// A completion: what has ended by it, in its order. None where it isn't about anything that
    /// is posted: a queue pair's number may have had another owner.
    pub(crate) fn completed(&mut self, id: u64, status: Status) -> Option<Vec<(T, Status)>> {
        let position = self.posted.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        let before = match self.signals {
            Signals::Behind if !status.is_success() => Status::Flushed,
            _ => Status::Success,
        };
        let ended = self.posted.drain(..=position).enumerate();
        let by = |at| if at < position { before } else { status };
        Some(ended.filter_map(|(at, (_, what))| Some((what?, by(at)))).collect())
    }

    /// Only for the canary: takes everything out, as if it had ended.
    pub(crate) fn forget(&mut self) -> Vec<T> {
        self.posted.drain(..).filter_map(|(_, what)| what).collect()
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
        self.posted.iter().filter_map(|(_, what)| what.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(id: u64) -> WorkRequest {
        let (operation, key) = (Operation::Nothing, RemoteKey(0));
        WorkRequest { id, operation, local: None, remote_addr: 0, key, is_signalled: false }
    }

    #[test]
    fn one_in_several_and_the_last_of_a_list_are_signalled() {
        let mut queue = SendQueue::new(Signals::Every(3));
        (0..8).for_each(|id| queue.push(request(id), id));
        let list = queue.take_list().unwrap();
        let signalled: Vec<_> = list.iter().filter(|r| r.is_signalled).map(|r| r.id).collect();
        assert_eq!(signalled, [2, 5, 7]);
        assert!(queue.take_list().is_none());
        let ended = queue.completed(5, Status::Success).unwrap();
        assert_eq!(ended.len(), 6, "those before it ended with it");
        assert!(queue.completed(5, Status::Success).is_none(), "a stale completion ends nothing");
        let ended = queue.completed(7, Status::RetryExceeded).unwrap();
        assert_eq!(ended, [(6, Status::Success), (7, Status::RetryExceeded)]);
        assert!(queue.is_empty());
    }

    #[test]
    fn where_success_is_doubted_it_is_believed_once_something_behind_it_is_answered() {
        let mut queue = SendQueue::new(Signals::Behind);
        for id in [2, 4, 6] {
            queue.push(request(id), id);
        }
        let list = queue.take_list().unwrap();
        let ids: Vec<_> = list.iter().map(|request| (request.id, request.is_signalled)).collect();
        assert_eq!(ids, [(2, false), (4, false), (6, false), (7, true)]);
        assert!(list[3].local.is_none() && list[3].operation == Operation::Write);
        let all = [2, 4, 6].map(|id| (id, Status::Success));
        assert_eq!(queue.completed(7, Status::Success).unwrap(), all);

        for id in [8, 10, 12] {
            queue.push(request(id), id);
        }
        assert!(queue.take_list().is_some() && queue.take_list().is_none());
        let ended = queue.completed(10, Status::RemoteAccess).unwrap();
        assert_eq!(ended, [(8, Status::Flushed), (10, Status::RemoteAccess)], "8 said nothing");
        assert_eq!(queue.completed(12, Status::Flushed).unwrap(), [(12, Status::Flushed)]);
        assert!(!queue.is_empty(), "the write behind them hasn't ended");
        assert!(queue.completed(13, Status::Flushed).unwrap().is_empty() && queue.is_empty());
    }

    proptest! {
        /// However a device completes lists (in order; errors complete each), all of it ends once.
        #[test]
        fn everything_posted_ends_once(
            every in 1..10usize,
            lists in prop::collection::vec(1..20usize, 1..20),
            fails_at in 0..200u64,
        ) {
            let mut queue = SendQueue::new(Signals::Every(every));
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
                    ended.extend(queue.completed(request.id, status).unwrap());
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
