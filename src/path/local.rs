//! Transfers that stay in this process: copied on the caller's thread when small, by the
//! local-copy actors of several shards when large.

use std::collections::VecDeque;
use std::sync::Arc;

use kvrail_reactors::Reactor;
use kvrail_reactors::copy::{Copy, CopyDone, CopyWork};
use kvrail_reactors::ticket::{Table, Ticket};

use crate::flight::{EVENT, Flight, Portion};
use crate::limits::COPIES_MAX;
use crate::metrics;
use crate::{Error, ErrorKind, Landed, PathKind};

/// A copy with the request it belongs to.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) request: usize,
    pub(crate) work: CopyWork,
}

impl Job {
    /// The node of the destination, where it has one, and the bytes that go there.
    pub(crate) fn target(&self) -> (Option<u32>, usize) {
        let target = &self.work.target;
        (target.region().node(), target.len())
    }
}

/// Copies of one transfer, for one shard's actor.
pub(crate) struct Copies {
    portion: Portion,
    jobs: Vec<Job>,
}

impl Copies {
    /// Jobs of a flight, in the order of their requests.
    pub(crate) fn new(flight: Arc<Flight>, jobs: Vec<Job>) -> Self {
        let request = |job: Option<&Job>| job.map_or(EVENT, |job| job.request);
        let requests = request(jobs.first())..=request(jobs.last());
        Self { portion: Portion::new(flight, requests), jobs }
    }

    /// Does them all here and now.
    pub(crate) fn run(self) {
        let mut carried = metrics::Carried::default();
        for job in &self.jobs {
            carried.add(job.work.source.copy_to(&job.work.target));
        }
        carried.record(PathKind::Local, &[]);
        drop(self.jobs);
        self.portion.back(Vec::new());
    }

    /// Fails them all: they could not be queued.
    pub(crate) fn fail(self, error: &Error) {
        let failures = self.jobs.iter().map(|job| (job.request, error.clone())).collect();
        drop(self.jobs);
        self.portion.back(failures);
    }
}

/// The local-copy actor of one shard.
pub(crate) struct LocalCopy {
    copy: Copy,
    parts: Table<Part>,
    done: Vec<CopyDone>,
}

struct Part {
    portion: Portion,
    /// Requests by number in the order of submission; copies end in that order.
    requests: VecDeque<(usize, usize)>,
    failures: Vec<(usize, Error)>,
    carried: metrics::Carried,
}

impl LocalCopy {
    pub(crate) fn new() -> Self {
        Self { copy: Copy::new(COPIES_MAX), parts: Table::default(), done: Vec::new() }
    }

    pub(crate) fn handle(&mut self, copies: Copies, now_ns: u64) {
        if let Some(kind) = copies.portion.flight().ended_early(now_ns) {
            let error = Error::new(kind, "the transfer ended before it was copied");
            return copies.fail(&error.with_path(PathKind::Local));
        }
        let Copies { portion, jobs } = copies;
        let part = Part {
            portion,
            requests: VecDeque::new(),
            failures: Vec::new(),
            carried: Default::default(),
        };
        let ticket = self.parts.insert(part);
        for job in jobs {
            self.submit(ticket, job);
        }
        self.finish_if_done(ticket);
    }

    pub(crate) fn poll(&mut self) -> usize {
        let mut done = std::mem::take(&mut self.done);
        let polled = self.copy.poll(usize::MAX, &mut done);
        for done in done.drain(..) {
            self.copied(&done);
        }
        self.done = done;
        polled
    }

    pub(crate) fn arm(&mut self) -> bool {
        self.copy.arm()
    }

    fn submit(&mut self, ticket: Ticket<Part>, job: Job) {
        let Some(part) = self.parts.get_mut(ticket) else { return };
        let bytes = job.work.source.len().min(job.work.target.len());
        match self.copy.submit(CopyWork { tag: ticket.to_raw(), ..job.work }) {
            Ok(_) => part.requests.push_back((job.request, bytes)),
            Err(_) => part.failures.push((
                job.request,
                Error::busy(format!("{COPIES_MAX} copies are queued on this shard"))
                    .with_path(PathKind::Local),
            )),
        }
    }

    fn copied(&mut self, done: &CopyDone) {
        let ticket = Ticket::from_raw(done.tag);
        let Some(part) = self.parts.get_mut(ticket) else { return };
        let Some((request, bytes)) = part.requests.pop_front() else { return };
        if done.copied_bytes == bytes {
            part.carried.add(bytes);
        } else {
            let error = Error::new(ErrorKind::Cancelled, "the copy was fenced");
            part.failures.push((request, error.with_landed(Landed::Maybe)));
        }
        self.finish_if_done(ticket);
    }

    fn finish_if_done(&mut self, ticket: Ticket<Part>) {
        if self.parts.get(ticket).is_some_and(|part| part.requests.is_empty())
            && let Some(part) = self.parts.remove(ticket)
        {
            part.carried.record(PathKind::Local, &part.failures);
            part.portion.back(part.failures);
        }
    }
}
