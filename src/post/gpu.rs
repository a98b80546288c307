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
use crate::path::host::Neighbour;
use crate::path::local::{Copies, Job};
use crate::plan::PlannedSlice;

/// All copies of a plan, if GPUs make all of them, as they were found at its last posting.
#[derive(Debug)]
pub(crate) struct Kept {
    copies: Vec<Arc<GpuCopies>>,
    from: From,
}

/// What must be as it was for the copies to be the same.
#[derive(Debug)]
enum From {
    /// These regions of this engine's own are at the far ends.
    Local(Vec<Region>),
    /// The session with this peer.
    Host(Weak<Neighbour>),
}

impl Kept {
    pub(super) fn local(copies: &[Arc<GpuCopies>], far: Vec<Region>) -> Option<Self> {
        Self::new(copies, From::Local(far))
    }

    pub(super) fn host(copies: &[Arc<GpuCopies>], neighbour: &Arc<Neighbour>) -> Option<Self> {
        Self::new(copies, From::Host(Arc::downgrade(neighbour)))
    }

    fn new(copies: &[Arc<GpuCopies>], from: From) -> Option<Self> {
        let may_repeat = !copies.is_empty() && copies.iter().all(|copies| copies.may_repeat());
        may_repeat.then(|| Self { copies: copies.to_vec(), from })
    }

    /// The copies, and the visits that a flight of them makes; none where something has changed.
    pub(super) fn visiting(&self) -> Option<(Vec<Arc<GpuCopies>>, Vec<Visit>)> {
        let From::Local(far) = &self.from else { return None };
        let visits = far.iter().map(Region::visit).collect::<Result<_, _>>().ok()?;
        Some((self.copies.clone(), visits))
    }

    /// The copies; none where something has changed.
    pub(super) fn at(&self, neighbour: &Arc<Neighbour>) -> Option<Vec<Arc<GpuCopies>>> {
        let From::Host(known) = &self.from else { return None };
        let is_same = std::ptr::eq(known.as_ptr(), Arc::as_ptr(neighbour));
        let is_fresh = is_same && self.copies.iter().all(|copies| copies.is_fresh());
        is_fresh.then(|| self.copies.clone())
    }
}

/// Takes out what GPUs have to copy; `slices` and `jobs` go in pairs and keep what is left.
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
        match groups.iter_mut().find(|(known, _)| *known == device) {
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
        for group in groups {
            let shard = &self.copies()[group.device() as usize % self.copies().len()];
            if let Err(error) = shard.send(Copies::by_gpu(flight.clone(), path, group)) {
                let what = not_taken(&error).with_path(path);
                error.into_inner().fail(&what);
            }
        }
    }
}
