//! Copies that GPUs make: for each GPU one part, whole, to one shard, so that a batch's pages are
//! one launch.

use std::borrow::Cow;
use std::sync::Arc;

use super::not_taken;
use crate::PathKind;
use crate::engine::Inner;
use crate::flight::Flight;
use crate::path::local::{Copies, Job};
use crate::plan::PlannedSlice;

/// The jobs of one GPU.
pub(super) struct OnGpu {
    device: u32,
    jobs: Vec<Job>,
}

/// Takes out what GPUs have to copy; `slices` and `jobs` go in pairs and keep what is left.
pub(super) fn split_off(slices: &mut Cow<'_, [PlannedSlice]>, jobs: &mut Vec<Job>) -> Vec<OnGpu> {
    let mut groups: Vec<OnGpu> = Vec::new();
    if !jobs.iter().any(Job::is_on_gpu) {
        return groups;
    }
    let room = jobs.len();
    let (mut kept, mut kept_slices) = (Vec::new(), Vec::new());
    for (slice, job) in slices.iter().zip(std::mem::take(jobs)) {
        let Some(device) = job.work.reach_gpu() else {
            kept.push(job);
            kept_slices.push(*slice);
            continue;
        };
        match groups.iter_mut().find(|group| group.device == device) {
            Some(group) => group.jobs.push(job),
            None => {
                let mut jobs = Vec::with_capacity(room);
                jobs.push(job);
                groups.push(OnGpu { device, jobs });
            }
        }
    }
    (*slices, *jobs) = (Cow::Owned(kept_slices), kept);
    groups
}

impl Inner {
    /// Hands each GPU's part to its shard: always the same, whose stream then is never idle
    /// between the parts of several callers.
    pub(super) fn post_to_gpus(&self, flight: &Arc<Flight>, path: PathKind, groups: Vec<OnGpu>) {
        for OnGpu { device, jobs } in groups {
            let shard = &self.copies()[device as usize % self.copies().len()];
            let copies = Copies::new(flight.clone(), path, jobs);
            if let Err(error) = shard.send(copies) {
                let what = not_taken(&error).with_path(path);
                error.into_inner().fail(&what);
            }
        }
    }
}
