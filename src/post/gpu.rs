//! Copies that GPUs make: for each GPU one part, whole, to one shard, so that a batch's pages are
//! one launch. A prepared batch keeps its launches from one posting to the next.

use std::borrow::Cow;
use std::sync::{Arc, Weak};

use super::not_taken;
use crate::PathKind;
use crate::engine::Inner;
use crate::flight::Flight;
use crate::memory::{Region, Visit};
use crate::path::gpu::GpuCopies;
use crate::path::host::{Asks, Lane, Neighbour};
use crate::path::local::{self, Copies, Job};
use crate::plan::PlannedSlice;

/// What a plan's last posting came to, if GPUs make all of its copies. It is good as long as what
/// it was found from is there.
pub(crate) enum Kept {
    /// Copies by our GPUs, and the regions of this engine's own at the far ends.
    Local(Vec<Arc<GpuCopies>>, Vec<Region>),
    /// Copies by our GPUs, from memory that this peer has shown in this session.
    Pulled(Vec<Arc<GpuCopies>>, Weak<Neighbour>),
    /// Parts that this peer was asked for by a lane.
    Asked(Arc<Lane>, Vec<Arc<Asks>>, Weak<Neighbour>),
}

/// What is posted to a peer once more.
pub(super) enum Again {
    Pull(Vec<Arc<GpuCopies>>),
    Ask(Arc<Lane>, Vec<Arc<Asks>>),
}

impl Kept {
    pub(super) fn local(copies: &[Arc<GpuCopies>], far: Vec<Region>) -> Option<Self> {
        may_repeat(copies).then(|| Self::Local(copies.to_vec(), far))
    }

    pub(super) fn pulled(copies: &[Arc<GpuCopies>], neighbour: &Arc<Neighbour>) -> Option<Self> {
        may_repeat(copies).then(|| Self::Pulled(copies.to_vec(), Arc::downgrade(neighbour)))
    }

    /// The copies, and the visits that a flight of them makes; none where something has changed.
    pub(super) fn visiting(&self) -> Option<(Vec<Arc<GpuCopies>>, Vec<Visit>)> {
        let Self::Local(copies, far) = self else { return None };
        let visits = far.iter().map(Region::visit).collect::<Result<_, _>>().ok()?;
        Some((copies.clone(), visits))
    }

    /// What goes to the peer; none where something has changed.
    pub(super) fn at(&self, neighbour: &Arc<Neighbour>) -> Option<Again> {
        let is_known =
            |known: &Weak<Neighbour>| std::ptr::eq(known.as_ptr(), Arc::as_ptr(neighbour));
        match self {
            Self::Pulled(copies, known) if is_known(known) => {
                let is_fresh = copies.iter().all(|copies| copies.is_fresh());
                is_fresh.then(|| Again::Pull(copies.clone()))
            }
            Self::Asked(lane, parts, known) if is_known(known) => {
                Some(Again::Ask(lane.clone(), parts.clone()))
            }
            _ => None,
        }
    }
}

fn may_repeat(copies: &[Arc<GpuCopies>]) -> bool {
    !copies.is_empty() && copies.iter().all(|copies| copies.may_repeat())
}

/// Takes out what GPUs have to copy; `slices` and `jobs` go in pairs and keep what is left. What is
/// under one grant of our own goes apart: none of it is begun once that is taken back.
pub(super) fn split_off(
    slices: &mut Cow<'_, [PlannedSlice]>,
    jobs: &mut Vec<Job>,
) -> Vec<Arc<GpuCopies>> {
    if !jobs.iter().any(Job::is_on_gpu) {
        return Vec::new();
    }
    let mut groups: Vec<(u32, Vec<Job>)> = Vec::new();
    let room = jobs.len();
    let (mut kept, mut kept_slices) = (Vec::new(), Vec::new());
    for (slice, job) in slices.iter().zip(std::mem::take(jobs)) {
        let Some(device) = job.work.reach_gpu() else {
            kept.push(job);
            kept_slices.push(*slice);
            continue;
        };
        let is_its = |(known, jobs): &&mut (u32, Vec<Job>)| {
            *known == device && jobs.first().is_none_or(|first| first.is_under_same_grant(&job))
        };
        match groups.iter_mut().find(is_its) {
            Some((_, jobs)) => jobs.push(job),
            None => {
                let mut jobs = Vec::with_capacity(room);
                jobs.push(job);
                groups.push((device, jobs));
            }
        }
    }
    (*slices, *jobs) = (Cow::Owned(kept_slices), kept);
    groups.into_iter().map(|(device, jobs)| Arc::new(GpuCopies::new(device, jobs))).collect()
}

impl Inner {
    /// Hands each GPU's part to its shard: always the same, whose stream then is never idle
    /// between the parts of several callers.
    pub(super) fn post_to_gpus(
        &self,
        flight: &Arc<Flight>,
        path: PathKind,
        groups: Vec<Arc<GpuCopies>>,
    ) {
        if !groups.is_empty() {
            flight.comes_by_gpu();
        }
        if let [group] = &groups[..]
            && group.len() == flight.plan.slices.len()
        {
            flight.is_all_of(group.device());
        }
        for group in groups {
            let device = group.device();
            self.post_to_gpu(device, Copies::by_gpu(flight.clone(), path, group).into());
        }
    }

    /// Hands work to the shard that asks this GPU.
    pub(crate) fn post_to_gpu(&self, device: u32, work: local::Message) {
        let shard = &self.copies()[device as usize % self.copies().len()];
        if let Err(error) = shard.send(work) {
            let what = not_taken(&error);
            error.into_inner().fail(&what);
        }
    }
}
