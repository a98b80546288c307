//! Copies of a transfer that one GPU makes: what is launched, and what its end means for the
//! requests.

use std::sync::Arc;

use kvrail_reactors::cuda::{Failure, Pages};

use super::host::Proof;
use super::local::Job;
use crate::memory::gpu_error;
use crate::receipt::Fenced;
use crate::{Error, ErrorKind, Landed, PathKind, metrics};

/// Copies of one GPU, to be launched once or again and again.
#[derive(Debug)]
pub(crate) struct GpuCopies {
    /// What is launched, or why it can't be.
    pub(crate) pages: Result<Arc<Pages>, Failure>,
    device: u32,
    /// Whose copies these are, in their order.
    requests: Vec<usize>,
    /// From which copy on each proof is to hold, or none is needed.
    proofs: Vec<(usize, Option<Proof>)>,
}

impl GpuCopies {
    /// Jobs of this GPU, in the order of their requests. There is at least one.
    pub(crate) fn new(device: u32, jobs: Vec<Job>) -> Self {
        let mut proofs: Vec<(usize, Option<Proof>)> = Vec::new();
        for (index, job) in jobs.iter().enumerate() {
            let is_same = |(_, last): &(usize, Option<Proof>)| match (last, &job.proof) {
                (Some(last), Some(proof)) => last.is_of(proof),
                (last, proof) => last.is_none() && proof.is_none(),
            };
            if !proofs.last().is_some_and(is_same) {
                proofs.push((index, job.proof.clone()));
            }
        }
        let pages = Pages::of(jobs.iter().map(|job| &job.work)).map(Arc::new);
        let requests = jobs.into_iter().map(|job| job.request).collect();
        Self { pages, device, requests, proofs }
    }

    pub(crate) fn device(&self) -> u32 {
        self.device
    }

    /// How many copies it is.
    pub(crate) fn len(&self) -> usize {
        self.requests.len()
    }

    pub(crate) fn first_and_last(&self) -> (usize, usize) {
        let end = |request: Option<&usize>| request.copied().unwrap_or_default();
        (end(self.requests.first()), end(self.requests.last()))
    }

    /// Whether nothing that it reads was taken back.
    pub(crate) fn is_fresh(&self) -> bool {
        self.proofs().all(Proof::holds)
    }

    /// Whether the grant of this engine's own that it is made under was taken back: nothing of it
    /// may be begun then. All of it is under one, if any is.
    pub(crate) fn is_struck(&self) -> bool {
        self.proofs().any(|proof| matches!(proof, Proof::Use(_)) && !proof.holds())
    }

    fn proofs(&self) -> impl Iterator<Item = &Proof> {
        self.proofs.iter().filter_map(|(_, proof)| proof.as_ref())
    }

    /// Whether no grant is used by it: those are used anew each time. Nor is memory held between
    /// postings that its owner waits for.
    pub(crate) fn may_repeat(&self) -> bool {
        let is_lasting = self.pages.as_ref().is_ok_and(|pages| !pages.is_borrowed());
        is_lasting && !self.proofs().any(|proof| matches!(proof, Proof::Use(_)))
    }

    /// Fails them all: nothing was launched.
    pub(crate) fn fail(&self, error: &Error) -> Vec<(usize, Error)> {
        self.requests.iter().map(|request| (*request, error.clone())).collect()
    }

    /// What failed, now that the GPU is done: all, or what was taken back meanwhile.
    pub(crate) fn end(&self, path: PathKind, failure: Option<&Failure>) -> Vec<(usize, Error)> {
        let ended = |error: Error| {
            error.with_path(path).with_landed(Landed::Maybe).with_fence(Fenced::Copier)
        };
        let mut carried = metrics::Carried::default();
        let failures = match failure {
            Some(failure) => self.fail(&ended(gpu_error(failure))),
            None => {
                let bytes = self.pages.as_ref().map_or(0, |pages| pages.bytes());
                carried.add_all(self.requests.len(), bytes);
                self.stale(&ended)
            }
        };
        carried.record(path, &failures);
        failures
    }

    fn stale(&self, ended: &impl Fn(Error) -> Error) -> Vec<(usize, Error)> {
        let mut failures = Vec::new();
        let ends = self.proofs.iter().skip(1).map(|(start, _)| *start).chain([usize::MAX]);
        for ((start, proof), end) in self.proofs.iter().zip(ends) {
            if proof.as_ref().is_some_and(|proof| !proof.holds()) {
                let error = Error::new(ErrorKind::Stale, "the peer took the memory back meanwhile");
                let error = ended(error);
                let requests = self.requests.iter().take(end).skip(*start);
                failures.extend(requests.map(|request| (*request, error.clone())));
            }
        }
        failures
    }
}
