//! Copies that this process makes itself, from its own memory or a neighbour's: on the caller's
//! thread when small, by the local-copy actors of several shards when large.

use std::collections::VecDeque;
use std::sync::Arc;

use kvrail_reactors::Reactor;
use kvrail_reactors::copy::{Copy, CopyDone, CopyWork};
use kvrail_reactors::cuda::{Cuda, Failure, Group, GroupDone, Order};
use kvrail_reactors::doorbell::Doorbell;
use kvrail_reactors::ticket::{Table, Ticket};

use crate::flight::{EVENT, Flight, Portion};
use crate::limits::{COPIES_MAX, GPU_GROUPS_MAX};
use crate::metrics;
use crate::path::gpu::GpuCopies;
use crate::path::host::Proof;
use crate::path::order::AtEvent;
use crate::receipt::Fenced;
use crate::{Error, ErrorKind, Landed, PathKind};

/// A copy with the request it belongs to.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) request: usize,
    pub(crate) work: CopyWork,
    /// Whose word the source is, where it is another process's.
    pub(crate) proof: Option<Proof>,
}

impl Job {
    /// Its grant was taken back, so that it needn't be begun.
    fn is_struck(&self) -> bool {
        matches!(&self.proof, Some(proof @ Proof::Use(_)) if !proof.holds())
    }

    /// Whether both are under one grant of this engine's own, or neither is under any.
    pub(crate) fn is_under_same_grant(&self, other: &Self) -> bool {
        match (&self.proof, &other.proof) {
            (Some(ours @ Proof::Use(_)), Some(theirs @ Proof::Use(_))) => ours.is_of(theirs),
            (Some(Proof::Use(_)), _) | (_, Some(Proof::Use(_))) => false,
            _ => true,
        }
    }

    /// Whether a GPU has to make it.
    pub(crate) fn is_on_gpu(&self) -> bool {
        self.work.is_on_gpu()
    }

    /// The node of the destination, where it has one, and the bytes that go there.
    pub(crate) fn target(&self) -> (Option<u32>, usize) {
        let target = &self.work.target;
        (target.region().node(), target.len())
    }
}

/// Copies of one transfer, for one shard's actor.
pub(crate) struct Copies {
    portion: Portion,
    path: PathKind,
    jobs: Vec<Job>,
    /// In place of jobs, where a GPU makes them.
    gpu: Option<Arc<GpuCopies>>,
}

/// What a shard's local-copy actor is told.
pub(crate) enum Message {
    Copies(Copies),
    /// Nothing to copy.
    AtEvent(AtEvent),
}

impl Message {
    /// Fails all of it: it could not be queued.
    pub(crate) fn fail(self, error: &Error) {
        match self {
            Self::Copies(copies) => copies.fail(error),
            Self::AtEvent(at_event) => at_event.fail(error),
        }
    }
}

impl From<Copies> for Message {
    fn from(copies: Copies) -> Self {
        Self::Copies(copies)
    }
}

impl From<AtEvent> for Message {
    fn from(at_event: AtEvent) -> Self {
        Self::AtEvent(at_event)
    }
}

impl Copies {
    /// Jobs of a flight, in the order of their requests.
    pub(crate) fn new(flight: Arc<Flight>, path: PathKind, jobs: Vec<Job>) -> Self {
        let request = |job: Option<&Job>| job.map_or(EVENT, |job| job.request);
        let requests = request(jobs.first())..=request(jobs.last());
        Self { portion: Portion::new(flight, requests), path, jobs, gpu: None }
    }

    /// Copies of a flight that a GPU makes.
    pub(crate) fn by_gpu(flight: Arc<Flight>, path: PathKind, copies: Arc<GpuCopies>) -> Self {
        let (first, last) = copies.first_and_last();
        let portion = Portion::new(flight, first..=last);
        Self { portion, path, jobs: Vec::new(), gpu: Some(copies) }
    }

    /// Does them all here and now.
    pub(crate) fn run(self) {
        let mut tally = Tally::new(self.path, &self.jobs);
        let expected: Vec<_> =
            self.jobs.iter().map(|job| (job.request, job.work.bytes())).collect();
        let works = self.jobs.into_iter().map(|job| job.work).collect();
        for ((request, bytes), done) in expected.into_iter().zip(CopyWork::run_all(works)) {
            tally.add(request, bytes, &done);
        }
        self.portion.back(tally.end());
    }

    /// Fails them all: they could not be queued.
    pub(crate) fn fail(self, error: &Error) {
        let mut failures: Vec<_> =
            self.jobs.iter().map(|job| (job.request, error.clone())).collect();
        failures.extend(self.gpu.into_iter().flat_map(|copies| copies.fail(error)));
        drop(self.jobs);
        self.portion.back(failures);
    }
}

/// How the copies of one part ended.
struct Tally {
    path: PathKind,
    /// What to look at behind the last copy: a neighbour may have taken the source back.
    proofs: Vec<(usize, Proof)>,
    requests: Vec<usize>,
    failures: Vec<(usize, Error)>,
    carried: metrics::Carried,
}

impl Tally {
    fn new(path: PathKind, jobs: &[Job]) -> Self {
        let mut proofs: Vec<(usize, Proof)> = Vec::new();
        for (index, job) in jobs.iter().enumerate() {
            if let Some(proof) = &job.proof
                && !proofs.last().is_some_and(|(_, last)| last.is_of(proof))
            {
                proofs.push((index, proof.clone()));
            }
        }
        // Requests are needed again only to say which of them a broken proof fails.
        let requests = Vec::with_capacity(if proofs.is_empty() { 0 } else { jobs.len() });
        let (failures, carried) = (Vec::new(), metrics::Carried::default());
        Self { path, proofs, requests, failures, carried }
    }

    fn add(&mut self, request: usize, bytes: usize, done: &CopyDone) {
        if !self.proofs.is_empty() {
            self.requests.push(request);
        }
        if done.copied_bytes == bytes {
            return self.carried.add(bytes);
        }
        let error = match &done.error {
            Some(error) => Error::lost("the source could not be read to its end")
                .with_source(std::io::Error::from(error.kind())),
            None => Error::new(ErrorKind::Cancelled, "the copy was fenced"),
        };
        self.failures.push((
            request,
            error.with_path(self.path).with_landed(Landed::Maybe).with_fence(Fenced::Copier),
        ));
    }

    /// The shard has no room for a copy.
    fn full(&mut self, request: usize) {
        // These are the last of the part, so they are missed in `requests` by nobody.
        let error = Error::busy(format!("{COPIES_MAX} copies are queued on this shard"));
        self.failures.push((request, error.with_path(self.path)));
    }

    /// What failed, by request number.
    fn end(mut self) -> Vec<(usize, Error)> {
        let ends = self.proofs.iter().skip(1).map(|(start, _)| *start).chain([usize::MAX]);
        for ((start, proof), end) in self.proofs.iter().zip(ends) {
            if proof.holds() {
                continue;
            }
            let error = Error::new(ErrorKind::Stale, "the peer took the memory back meanwhile");
            let error = error.with_path(self.path).with_landed(Landed::Maybe);
            let error = error.with_fence(Fenced::Copier);
            let fails = self.requests.iter().take(end).skip(*start);
            self.failures.extend(fails.map(|request| (*request, error.clone())));
        }
        self.carried.record(self.path, &self.failures);
        self.failures
    }
}

/// The local-copy actor of one shard.
pub(crate) struct LocalCopy {
    copy: Copy,
    cuda: Cuda,
    parts: Table<Part>,
    gpu_parts: Table<GpuPart>,
    /// Those of them that go on behind an event.
    waits: usize,
    done: Vec<CopyDone>,
    groups_done: Vec<GroupDone>,
}

struct Part {
    portion: Portion,
    /// Requests by number in the order of submission; copies end in that order.
    requests: VecDeque<(usize, usize)>,
    tally: Tally,
}

/// A part that a GPU has.
enum GpuPart {
    Copies(GpuCopying),
    AtEvent(AtEvent),
}

/// A part that a GPU copies.
struct GpuCopying {
    portion: Portion,
    path: PathKind,
    copies: Arc<GpuCopies>,
}

impl GpuPart {
    fn end(self, failure: Option<&Failure>) {
        match self {
            Self::Copies(copying) => copying.end(failure),
            Self::AtEvent(at_event) => at_event.end(failure),
        }
    }

    fn fail(self, error: &Error) {
        match self {
            Self::Copies(GpuCopying { portion, path, copies }) => {
                portion.back(copies.fail(&error.clone().with_path(path)));
            }
            Self::AtEvent(at_event) => at_event.fail(error),
        }
    }
}

impl GpuCopying {
    fn end(self, failure: Option<&Failure>) {
        // Whatever it is, it is ended behind the GPU.
        let failures = self.copies.end(self.path, failure);
        self.portion.back(failures);
    }
}

impl LocalCopy {
    pub(crate) fn new(doorbell: Arc<Doorbell>, blocks: u32) -> Self {
        let cuda = Cuda::new(GPU_GROUPS_MAX, doorbell).with_blocks(blocks);
        let (parts, gpu_parts, waits, done, groups_done) = Default::default();
        Self { copy: Copy::new(COPIES_MAX), cuda, parts, gpu_parts, waits, done, groups_done }
    }

    pub(crate) fn handle(&mut self, message: Message, now_ns: u64) {
        match message {
            Message::Copies(copies) => self.handle_copies(copies, now_ns),
            Message::AtEvent(at_event) => self.put_at_event(at_event, now_ns),
        }
    }

    fn handle_copies(&mut self, copies: Copies, now_ns: u64) {
        if let Some(kind) = copies.portion.flight().ended_early(now_ns) {
            let error = Error::new(kind, "the transfer ended before it was copied");
            let path = copies.path;
            return copies.fail(&error.with_path(path));
        }
        let Copies { portion, path, jobs, gpu } = copies;
        if let Some(copies) = gpu {
            return self.launch(GpuCopying { portion, path, copies });
        }
        if jobs.iter().all(Job::is_struck) {
            let error =
                Error::new(ErrorKind::Stale, "the memory was taken back before it was copied");
            return Copies { portion, path, jobs, gpu }.fail(&error.with_path(path));
        }
        let tally = Tally::new(path, &jobs);
        let part = Part { portion, requests: VecDeque::new(), tally };
        let ticket = self.parts.insert(part);
        for job in jobs {
            self.submit(ticket, job);
        }
        self.finish_if_done(ticket);
    }

    pub(crate) fn poll(&mut self, now_ns: u64) -> usize {
        self.end_early(now_ns);
        let mut done = std::mem::take(&mut self.done);
        let polled = self.copy.poll(usize::MAX, &mut done);
        for done in done.drain(..) {
            self.copied(&done);
        }
        self.done = done;
        polled + self.poll_gpus()
    }

    fn poll_gpus(&mut self) -> usize {
        let mut done = std::mem::take(&mut self.groups_done);
        let polled = self.cuda.poll(usize::MAX, &mut done);
        for done in done.drain(..) {
            self.group_copied(&done);
        }
        self.groups_done = done;
        polled
    }

    pub(crate) fn arm(&mut self) -> bool {
        self.copy.arm() && self.cuda.arm()
    }

    /// Whether a GPU has something to do, which must be looked at now and then: one that is lost
    /// rings nobody.
    pub(crate) fn awaits_gpus(&self) -> bool {
        !self.cuda.is_idle()
    }

    pub(crate) fn is_idle(&mut self) -> bool {
        self.copy.arm() && self.cuda.is_idle()
    }

    fn put_at_event(&mut self, at_event: AtEvent, now_ns: u64) {
        if let Some(kind) = at_event.ended_early(now_ns) {
            return at_event.fail(&unbegun(kind));
        }
        self.waits += usize::from(at_event.go_on.is_some());
        let ticket = self.gpu_parts.insert(GpuPart::AtEvent(at_event));
        let Some(GpuPart::AtEvent(at_event)) = self.gpu_parts.get_mut(ticket) else { return };
        let (group, order) = at_event.group(ticket.to_raw());
        self.submit_to_gpu(ticket, group, order);
    }

    fn submit_to_gpu(&mut self, ticket: Ticket<GpuPart>, group: Group, order: Order) {
        if self.cuda.submit_between(group, order).is_err()
            && let Some(part) = self.take_gpu_part(ticket)
        {
            part.fail(&Error::busy(format!("{GPU_GROUPS_MAX} batches wait for this shard's GPUs")));
        }
    }

    fn take_gpu_part(&mut self, ticket: Ticket<GpuPart>) -> Option<GpuPart> {
        let part = self.gpu_parts.remove(ticket)?;
        if let GpuPart::AtEvent(AtEvent { go_on: Some(_), .. }) = part {
            self.waits -= 1;
        }
        Some(part)
    }

    /// What nobody waits for any more is not waited for here, though the GPU's stream does.
    fn end_early(&mut self, now_ns: u64) {
        if self.waits == 0 {
            return;
        }
        let ended = |(ticket, part): (Ticket<GpuPart>, &mut GpuPart)| match part {
            GpuPart::AtEvent(at_event) => Some((ticket, at_event.ended_early(now_ns)?)),
            GpuPart::Copies(_) => None,
        };
        let ended: Vec<_> = self.gpu_parts.iter_mut().filter_map(ended).collect();
        for (ticket, kind) in ended {
            if let Some(part) = self.take_gpu_part(ticket) {
                part.fail(&unbegun(kind));
            }
        }
    }

    fn launch(&mut self, part: GpuCopying) {
        let pages = match part.copies.pages.clone() {
            Ok(pages) => pages,
            Err(failure) => return part.end(Some(&failure)),
        };
        if part.copies.is_struck() {
            let error =
                Error::new(ErrorKind::Stale, "the memory was taken back before it was copied");
            let error = error.with_path(part.path).with_landed(Landed::No);
            let failures = part.copies.fail(&error);
            return part.portion.back(failures);
        }
        let order = part.portion.flight().order();
        let ticket = self.gpu_parts.insert(GpuPart::Copies(part));
        self.submit_to_gpu(ticket, Group { tag: ticket.to_raw(), pages }, order);
    }

    fn group_copied(&mut self, done: &GroupDone) {
        if let Some(part) = self.take_gpu_part(Ticket::from_raw(done.tag)) {
            part.end(done.error.as_ref());
        }
    }

    fn submit(&mut self, ticket: Ticket<Part>, job: Job) {
        let Some(part) = self.parts.get_mut(ticket) else { return };
        let bytes = job.work.bytes();
        match self.copy.submit(CopyWork { tag: ticket.to_raw(), ..job.work }) {
            Ok(_) => part.requests.push_back((job.request, bytes)),
            Err(_) => part.tally.full(job.request),
        }
    }

    fn copied(&mut self, done: &CopyDone) {
        let ticket = Ticket::from_raw(done.tag);
        let Some(part) = self.parts.get_mut(ticket) else { return };
        let Some((request, bytes)) = part.requests.pop_front() else { return };
        part.tally.add(request, bytes, done);
        self.finish_if_done(ticket);
    }

    fn finish_if_done(&mut self, ticket: Ticket<Part>) {
        if self.parts.get(ticket).is_some_and(|part| part.requests.is_empty())
            && let Some(part) = self.parts.remove(ticket)
        {
            part.portion.back(part.tally.end());
        }
    }
}

/// A transfer that ended behind its event.
fn unbegun(kind: ErrorKind) -> Error {
    Error::new(kind, "the transfer ended before the event that it stood behind")
        .with_landed(Landed::No)
}
