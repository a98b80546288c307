//! How work requests and queue pairs end: what the shard is told of each, and in which order.

use std::mem;

use super::super::{Completed, Completion, QpNumber, Status};
use super::Nic;

impl Nic {
    /// Moves what is ready to `done`, until that holds `most`.
    pub(super) fn hand_out(&mut self, most: usize, done: &mut Vec<Completion>) {
        let count = self.ready.len().min(most - done.len());
        done.extend(self.ready.drain(..count));
    }

    /// Takes at most so much from the device; what the shard is to know goes to `done`.
    pub(super) fn look(&mut self, budget: usize, done: &mut impl Extend<Completion>) -> usize {
        let mut found = mem::take(&mut self.found);
        let taken = self.completions.poll(budget, &mut found);
        self.counters.completions += taken.sent as u64;
        self.counters.receives += taken.received as u64;
        self.receives.took(taken.received);
        done.extend(found.drain(..).filter(|completion| self.retire(completion)));
        self.found = found;
        taken.all()
    }

    /// Lets go of the memory of what has completed; answers whether the shard is told. A flushed
    /// marker is held back and its queue pair destroyed: a flush of our own sends says nothing of
    /// what the device was storing for the peer (soft-RoCE: 1 of 80 tries), the end of the queue
    /// pair does.
    fn retire(&mut self, completion: &Completion) -> bool {
        let Completed::Sent(status) = completion.what else { return true };
        let Some(pair) = self.pairs.get_mut(&completion.qp) else { return false };
        let Some(is_marker) = pair.posted.retire(completion.id) else { return false };
        let ends_pair = is_marker && status == Status::Flushed;
        if ends_pair {
            self.ending.extend(self.markers.flushed(*completion));
        }
        !ends_pair
    }

    /// Ends what never got to the device, where all that did has ended: whoever learns of a failure
    /// takes all before it for done.
    pub(super) fn end_refused(&mut self) {
        let Self { broken, pairs, markers, ending, ready, .. } = self;
        broken.retain(|qp| {
            let Some(pair) = pairs.get_mut(qp) else { return false };
            for ended in pair.posted.refused() {
                let completion = ended.completion(*qp);
                if ended.is_marker && ended.status == Status::Flushed {
                    ending.extend(markers.flushed(completion));
                } else {
                    ready.push_back(completion);
                }
            }
            !pair.posted.is_settled()
        });
    }

    /// Destroys the queue pairs whose markers have nothing more to wait for, and hands these out.
    pub(super) fn end_pairs(&mut self) {
        while let Some(marker) = self.ending.pop() {
            if let Some(left) = self.remove(marker.qp) {
                let same = self.ending.extract_if(.., |other| other.qp == marker.qp);
                self.ready.push_back(marker);
                self.ready.extend(same);
                self.ready.extend(left);
            }
        }
    }

    /// Destroys a queue pair, behind which nothing of it touches memory. What had completed is
    /// taken before that, since devices forget it with its queue pair, and words that came
    /// meanwhile behind it. Returns how the rest ends; none where there is no such queue pair, or
    /// it does not end. Its windows go first: soft-RoCE would wait for them, a minute long.
    pub(super) fn remove(&mut self, qp: QpNumber) -> Option<Vec<Completion>> {
        self.drain();
        self.windows.retain(|_, window| window.opened_on != Some(qp));
        let mut posted = self.pairs.remove(&qp)?.end()?;
        self.drain();
        let waiting = std::iter::from_fn(|| self.markers.gone(qp));
        Some(waiting.chain(posted.flush().map(|ended| ended.completion(qp))).collect())
    }

    /// The device is gone for good, or one of our own queues is: so are the queue pairs.
    pub(super) fn lose(&mut self) {
        self.drain();
        self.end_pairs();
        self.is_lost = true;
        let numbers: Vec<_> = self.pairs.keys().copied().collect();
        for qp in numbers {
            let left = self.remove(qp);
            self.ready.extend(left.into_iter().flatten());
        }
    }

    /// Takes all that has completed, for the next polls to hand out.
    fn drain(&mut self) {
        if !self.is_lost {
            let mut ready = mem::take(&mut self.ready);
            self.look(self.depths.completions as usize, &mut ready);
            self.ready = ready;
        }
    }
}
