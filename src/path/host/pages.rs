//! Copies of a lane that GPUs make: what one turn has taken from the ring goes as one group, so
//! that pages share a launch.

use std::collections::VecDeque;
use std::sync::Arc;

use kvrail_reactors::Reactor;
use kvrail_reactors::copy::CopyWork;
use kvrail_reactors::cuda::{Cuda, Group, GroupDone};
use kvrail_reactors::doorbell::Doorbell;
use kvrail_reactors::region::Region;

use super::entry::Verdict;
use super::server::Flying;
use crate::limits::GPU_GROUPS_MAX;

/// The copies of a lane that are on GPUs.
pub(super) struct Pages {
    cuda: Cuda,
    /// Taken in this turn, all for one GPU.
    gathered: Gathered,
    /// Under way, by their tags.
    groups: VecDeque<(u64, Vec<Flying>)>,
    next_tag: u64,
    /// Copies gathered and under way.
    count: usize,
    done: Vec<GroupDone>,
}

#[derive(Default)]
struct Gathered {
    device: u32,
    works: Vec<CopyWork>,
    flying: Vec<Flying>,
}

impl Pages {
    pub(super) fn new(doorbell: Arc<Doorbell>, blocks: u32) -> Self {
        let cuda = Cuda::new(GPU_GROUPS_MAX, doorbell).with_blocks(blocks);
        let (gathered, groups, done) = Default::default();
        Self { cuda, gathered, groups, next_tag: 0, count: 0, done }
    }

    /// Copies that are not over.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Takes a copy for this GPU; it starts with the turn's others.
    pub(super) fn add(&mut self, device: u32, work: CopyWork, flying: Flying) {
        if device != self.gathered.device {
            self.start();
            self.gathered.device = device;
        }
        self.gathered.works.push(work);
        self.gathered.flying.push(flying);
        self.count += 1;
    }

    /// Starts what was gathered.
    fn start(&mut self) {
        if self.gathered.works.is_empty() {
            return;
        }
        let Gathered { works, flying, .. } = std::mem::take(&mut self.gathered);
        let tag = self.next_tag;
        // No more groups than copies, and of those the lane takes fewer than there is room for.
        if self.cuda.submit(Group { tag, works }).is_ok() {
            self.next_tag += 1;
            self.groups.push_back((tag, flying));
        }
    }

    /// Starts what this turn has brought, and says how copies have ended; returns how much there
    /// was to do.
    pub(super) fn poll(&mut self, mut ended: impl FnMut(&Flying, Verdict)) -> usize {
        if self.count == 0 {
            return 0;
        }
        self.start();
        let mut done = std::mem::take(&mut self.done);
        let moved = self.cuda.poll(usize::MAX, &mut done);
        for group in done.drain(..) {
            let Some(at) = self.groups.iter().position(|(tag, _)| *tag == group.tag) else {
                continue;
            };
            let flying = self.groups.remove(at).map(|(_, flying)| flying).unwrap_or_default();
            self.count -= flying.len();
            for flying in &flying {
                let verdict = match &group.error {
                    _ if flying.is_struck() => Verdict::Stale,
                    None => Verdict::Ok,
                    Some(_) => Verdict::Unreadable,
                };
                ended(flying, verdict);
            }
            if let Some(error) = &group.error {
                tracing::warn!(%error, copies = flying.len(), "a GPU did not copy for a peer");
            }
        }
        self.done = done;
        moved
    }

    /// Before the shard parks: `false` where something is to be done.
    pub(super) fn arm(&mut self) -> bool {
        self.count == 0 || self.cuda.arm()
    }

    /// Nothing is stored into `region` any more when this returns.
    pub(super) fn settle(&mut self, region: &Arc<Region>) {
        self.start();
        self.cuda.settle(region);
    }
}
