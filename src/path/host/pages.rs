//! Copies of a lane that GPUs make: what one turn has taken from the ring goes as one group, so
//! that pages share a launch.

use std::collections::VecDeque;
use std::sync::Arc;

use kvrail_reactors::Reactor;
use kvrail_reactors::copy::CopyWork;
use kvrail_reactors::cuda::driver::FailureKind;
use kvrail_reactors::cuda::{Cuda, Failure, Group, GroupDone, PageList, Places};
use kvrail_reactors::doorbell::Doorbell;
use kvrail_reactors::region::Region;

use super::entry::Verdict;
use super::server::Flying;
use crate::limits::{HOST_LIST_COPIES, HOST_PAGES_MAX};

/// So many copies are begun before the turn's others are read: some 10 us of a GPU's work, and
/// more than a launch costs.
const LAUNCHED_COPIES: usize = 256;

/// The copies of a lane that are on GPUs.
pub(super) struct LanePages {
    cuda: Cuda,
    /// Taken in this turn, by their GPUs.
    gathered: Vec<(u32, Gathered)>,
    /// Under way, by their tags.
    groups: VecDeque<(u64, Vec<Flying>)>,
    /// Those that no GPU could be asked for.
    refused: Vec<(Failure, Vec<Flying>)>,
    next_tag: u64,
    /// Copies gathered and under way.
    count: usize,
    done: Vec<GroupDone>,
}

#[derive(Default)]
struct Gathered {
    list: PageList,
    flying: Vec<Flying>,
    copies: usize,
}

impl LanePages {
    pub(super) fn new(doorbell: Arc<Doorbell>, blocks: u32) -> Self {
        // As many groups as there may be copies.
        let cuda = Cuda::new(HOST_PAGES_MAX + HOST_LIST_COPIES, doorbell).with_blocks(blocks);
        let (gathered, groups, refused, done) = Default::default();
        Self { cuda, gathered, groups, refused, next_tag: 0, count: 0, done }
    }

    /// Copies that are not over.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Takes a copy for this GPU; it starts with the turn's others.
    pub(super) fn add(&mut self, device: u32, work: &CopyWork, flying: Flying) {
        let len = work.source.len().min(work.target.len());
        let whole = Places { words: &[0], unit_bytes: 1, starts: [0, 0] };
        self.add_list(device, work, whole, len, flying);
    }

    /// Takes copies of `len` bytes each, by their places in the two ends of `work`.
    pub(super) fn add_list(
        &mut self,
        device: u32,
        work: &CopyWork,
        places: Places<'_>,
        len: usize,
        flying: Flying,
    ) {
        self.count += flying.count();
        let at = self.gathered.iter().position(|(known, _)| *known == device);
        let at = at.unwrap_or_else(|| {
            self.gathered.push((device, Gathered::default()));
            self.gathered.len() - 1
        });
        let gathered = &mut self.gathered[at].1;
        if let Err(failure) = gathered.list.between(work) {
            return self.refused.push((failure, vec![flying]));
        }
        gathered.copies += flying.count();
        gathered.flying.push(flying);
        let are_inside = gathered.list.push_all(places, len);
        debug_assert!(are_inside, "the ends of the work are those of its copies");
        if gathered.copies >= LAUNCHED_COPIES {
            self.start();
            self.cuda.poll(usize::MAX, &mut self.done);
        }
    }

    /// Starts what was gathered.
    fn start(&mut self) {
        for (_, Gathered { list, flying, .. }) in std::mem::take(&mut self.gathered) {
            let tag = self.next_tag;
            self.next_tag += 1;
            let full = |_| Failure::refused("copy", "too much is under way");
            let group = list.finish().map(|pages| Group { tag, pages: Arc::new(pages) });
            match group.and_then(|group| self.cuda.submit(group).map_err(full)) {
                Ok(_) => self.groups.push_back((tag, flying)),
                Err(failure) => self.refused.push((failure, flying)),
            }
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
        let moved = done.len() + self.cuda.poll(usize::MAX, &mut done);
        for group in done.drain(..) {
            let Some(at) = self.groups.iter().position(|(tag, _)| *tag == group.tag) else {
                continue;
            };
            let flying = self.groups.remove(at).map(|(_, flying)| flying).unwrap_or_default();
            self.count -= flying.iter().map(Flying::count).sum::<usize>();
            tell(&flying, group.error.as_ref(), &mut ended);
        }
        self.done = done;
        let mut refused = 0;
        for (failure, flying) in self.refused.drain(..) {
            refused += 1;
            self.count -= flying.iter().map(Flying::count).sum::<usize>();
            tell(&flying, Some(&failure), &mut ended);
        }
        moved + refused
    }

    /// Before the shard parks: `false` where something is to be done.
    pub(super) fn arm(&mut self) -> bool {
        self.count == 0 || (self.refused.is_empty() && self.cuda.arm())
    }

    /// Nothing is stored into `region` any more when this returns.
    pub(super) fn settle(&mut self, region: &Arc<Region>) {
        self.start();
        for flying in self.groups.iter_mut().flat_map(|(_, flying)| flying) {
            flying.take_back(region);
        }
        self.cuda.settle(region);
    }
}

/// Says how copies of one group have ended.
fn tell(flying: &[Flying], failure: Option<&Failure>, ended: &mut impl FnMut(&Flying, Verdict)) {
    for flying in flying {
        let verdict = match failure {
            _ if flying.is_struck() => Verdict::Stale,
            None => Verdict::Ok,
            // All else of the group is in place.
            Some(failure) if failure.kind == FailureKind::Fenced => match flying.is_taken() {
                true => Verdict::Ended,
                false => Verdict::Ok,
            },
            Some(_) => Verdict::Gpu,
        };
        ended(flying, verdict);
    }
    if let Some(error) = failure.filter(|failure| failure.kind != FailureKind::Fenced) {
        tracing::warn!(%error, copies = flying.len(), "a GPU did not copy for a peer");
    }
}
