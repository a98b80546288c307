//! Posting: a plan's slices become parts for shards, and its event follows them.

pub(crate) mod gpu;
pub(crate) mod host;
#[cfg(feature = "rdma")]
mod rdma;

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use kvrail_reactors::copy::CopyWork;
use kvrail_reactors::cuda;
use kvrail_reactors::region::Slice;

use self::gpu::Kept;
use crate::engine::{Inner, not_taken};
use crate::flight::{Announce, EVENT, Flight, Portion};
use crate::limits::{COPY_GROUP_BYTES, COPY_INLINE_MAX_BYTES, TCP_GROUP_BYTES};
use crate::memory::{Operation, Visit};
use crate::path::gpu::GpuCopies;
use crate::path::host::Proof;
use crate::path::local::{Copies, Job};
use crate::path::tcp::{Action, Event, Message, Request, Status};
use crate::peer::RouteKind;
use crate::plan::{PlannedSlice, share_out};
use crate::prepared::Plan;
use crate::receipt::Fenced;
use crate::{Error, ErrorKind, Landed, PathKind, Result, route};

impl Inner {
    /// Sends a plan on its way; it has taken off. What asked for it did so at `started`.
    ///
    /// # Errors
    /// Refused: a local address is nobody's; it never left.
    pub(crate) fn post(
        self: &Arc<Self>,
        plan: &Arc<Plan>,
        started: quanta::Instant,
    ) -> Result<Arc<Flight>> {
        self.check_events(plan.events).inspect_err(|_| plan.landed())?;
        match plan.peer.inner.link.route.kind {
            RouteKind::Local => self.post_local(plan, started),
            RouteKind::Tcp(_) => Ok(match plan.peer.inner.link.neighbour() {
                Some(neighbour) => self.post_host(plan, &neighbour, started),
                None => match plan.link().reach() {
                    Some(reach) => self.post_rdma(plan, &reach, started),
                    None => self.post_tcp(plan, started),
                },
            }),
        }
    }

    fn flight(
        self: &Arc<Self>,
        plan: &Arc<Plan>,
        parts: usize,
        announce: Option<Announce>,
        visits: Vec<Visit>,
        started: quanta::Instant,
    ) -> Arc<Flight> {
        let now_ns = self.now_ns();
        let deadline_ns = plan.deadline.map(|after| {
            now_ns.saturating_add(u64::try_from(after.as_nanos()).unwrap_or(u64::MAX))
        });
        // A batch without data has one part, which is back at once.
        let flight =
            Flight::new(plan.clone(), parts.max(1), announce, deadline_ns, visits, started);
        if let Some(event) = plan.events.before {
            flight.record_by(self.record(event));
        }
        if parts == 0 {
            Portion::new(flight.clone(), EVENT..=EVENT).back(Vec::new());
        }
        flight
    }

    fn post_tcp(self: &Arc<Self>, plan: &Arc<Plan>, started: quanta::Instant) -> Arc<Flight> {
        let announce = plan.event.clone().map(|event| self.announce_tcp(event));
        if plan.events.after.is_some() {
            let flight = self.flight(plan, 1, announce, Vec::new(), started);
            self.behind(Portion::gate(&flight), |engine, gate| {
                engine.carry_rest(gate.flight(), &gate.flight().plan.slices);
                gate.back(Vec::new());
            });
            return flight;
        }
        let groups = share_out(&plan.slices, self.shards().len(), TCP_GROUP_BYTES);
        let flight = self.flight(plan, groups.len(), announce, Vec::new(), started);
        let first = self.next_shard();
        for (position, group) in groups.into_iter().enumerate() {
            let requests =
                plan.slices[group].iter().map(|slice| tcp_request(plan, slice)).collect();
            self.carry(flight.clone(), first + position, requests);
        }
        flight
    }

    /// Records an event of the caller's on its GPU, now that all memory is quiet.
    fn record(self: &Arc<Self>, event: cuda::Event) -> Announce {
        let engine = Arc::downgrade(self);
        Box::new(move |portion: Portion| match engine.upgrade() {
            Some(engine) => engine.at_event(portion, event, None),
            None => portion.fail_all(&Error::closed("the engine was dropped")),
        })
    }

    /// Gives slices of a flight to shards in turn, as more parts of it, to go by TCP.
    fn carry_rest(&self, flight: &Arc<Flight>, slices: &[PlannedSlice]) {
        let groups = match slices.is_empty() {
            true => return,
            false => share_out(slices, self.shards().len(), TCP_GROUP_BYTES),
        };
        flight.more_parts(groups.len());
        let first = self.next_shard();
        for (position, group) in groups.into_iter().enumerate() {
            let request = |slice| tcp_request(&flight.plan, slice);
            self.carry(
                flight.clone(),
                first + position,
                slices[group].iter().map(request).collect(),
            );
        }
    }

    /// Gives requests of a flight, in their order, to a shard; one that does not take them fails
    /// them.
    fn carry(&self, flight: Arc<Flight>, shard: usize, requests: Vec<Request>) {
        let index = |request: Option<&Request>| request.map_or(EVENT, |request| request.index);
        let span = index(requests.first())..=index(requests.last());
        self.carry_portion(Portion::new(flight, span), shard, requests);
    }

    fn carry_portion(&self, portion: Portion, shard: usize, requests: Vec<Request>) {
        let shards = self.shards();
        let route = portion.flight().plan.peer.inner.link.route.clone();
        let message = Message::Carry { portion, route, requests };
        if let Err(error) = shards[shard % shards.len()].send(message) {
            let what = not_taken(&error).with_path(PathKind::Tcp);
            if let Message::Carry { portion, requests, .. } = error.into_inner() {
                let failures = requests.iter().map(|r| (r.index, what.clone())).collect();
                drop(requests);
                portion.back(failures);
            }
        }
    }

    /// Between kvrail peers the event follows on a data connection; a Mooncake peer is notified
    /// through its control daemon.
    fn announce_tcp(self: &Arc<Self>, event: Event) -> Announce {
        let engine = Arc::downgrade(self);
        Box::new(move |portion: Portion| {
            let Some(engine) = engine.upgrade() else {
                let error = Error::new(ErrorKind::Closed, "the engine was dropped");
                return portion.back(vec![(EVENT, error)]);
            };
            match &portion.flight().plan.peer.inner.link.route.kind {
                RouteKind::Tcp(tcp) if !tcp.takes_events() => {
                    engine.notify_peer(portion, event);
                }
                _ => {
                    let action = Action::Event(event.encode().into());
                    let request = Request {
                        part: 0,
                        index: EVENT,
                        action,
                        addr: 0,
                        key: None,
                        attempts: 0,
                        landed: Landed::No,
                        fenced: Fenced::Unposted,
                        name: None,
                    };
                    engine.carry_portion(portion, engine.next_shard(), vec![request]);
                }
            }
        })
    }

    fn notify_peer(&self, portion: Portion, event: Event) {
        let control = self.control().clone();
        let text = event.message.map(|(_, message)| message).unwrap_or_default();
        self.control().detach(async move {
            let text = String::from_utf8_lossy(&text);
            let sent = control.notify(portion.flight().plan.peer.name(), &text).await;
            portion.back(sent.err().map(|error| (EVENT, error)).into_iter().collect());
        });
    }

    /// The caller copies the first slices itself: a small batch whole, without a hop; of a large
    /// one its share, while the shards' actors copy the rest.
    fn post_local(
        self: &Arc<Self>,
        plan: &Arc<Plan>,
        started: quanta::Instant,
    ) -> Result<Arc<Flight>> {
        if let Some(kept) = plan.kept() {
            match kept.visiting() {
                Some((copies, visits)) => {
                    return Ok(self.post_kept(plan, copies, visits, started));
                }
                None => plan.keep(None),
            }
        }
        let Local { mut slices, mut jobs, visits, denied } =
            self.local_jobs(plan).inspect_err(|_| plan.landed())?;
        let on_gpus = gpu::split_off(&mut slices, &mut jobs);
        if slices.is_empty() && denied.is_empty() {
            plan.keep(Kept::local(&on_gpus, visits.iter().map(Visit::region).collect()));
        }
        let announce = plan.event.clone().map(|event| self.announce_local(event));
        let own = callers_share(&slices);
        let rest = &slices[own..];
        let groups = if rest.is_empty() {
            Vec::new()
        } else {
            share_out(rest, self.copies().len(), COPY_GROUP_BYTES)
        };
        let is_by_gpus = slices.is_empty();
        let parts = LocalParts { on_gpus, jobs, groups, own, denied };
        if is_by_gpus || plan.events.after.is_none() {
            let flight = self.flight(plan, parts.count(), announce, visits, started);
            self.post_local_parts(&flight, parts);
            return Ok(flight);
        }
        let flight = self.flight(plan, 1, announce, visits, started);
        self.behind(Portion::gate(&flight), move |engine, gate| {
            gate.flight().more_parts(parts.count());
            engine.post_local_parts(gate.flight(), parts);
            gate.back(Vec::new());
        });
        Ok(flight)
    }

    fn post_local_parts(&self, flight: &Arc<Flight>, parts: LocalParts) {
        let LocalParts { on_gpus, mut jobs, groups, own, denied } = parts;
        back_at_once(flight, denied);
        self.post_to_gpus(flight, PathKind::Local, on_gpus);
        self.spread_copies(flight, PathKind::Local, jobs.split_off(own), &groups);
        if own > 0 {
            Copies::new(flight.clone(), PathKind::Local, jobs).run();
        }
    }

    /// Posts what a plan kept from its last posting.
    fn post_kept(
        self: &Arc<Self>,
        plan: &Arc<Plan>,
        copies: Vec<Arc<GpuCopies>>,
        visits: Vec<Visit>,
        started: quanta::Instant,
    ) -> Arc<Flight> {
        let announce = plan.event.clone().map(|event| self.announce_local(event));
        let flight = self.flight(plan, copies.len(), announce, visits, started);
        self.post_to_gpus(&flight, PathKind::Local, copies);
        flight
    }

    /// Hands each group to the actor of a shard near its destination; one that does not take it
    /// fails it.
    fn spread_copies(
        &self,
        flight: &Arc<Flight>,
        path: PathKind,
        mut jobs: Vec<Job>,
        groups: &[Range<usize>],
    ) {
        let home = |group: &Range<usize>| route::home(jobs[group.clone()].iter().map(Job::target));
        let homes: Vec<_> = groups.iter().map(home).collect();
        let shards = route::near(self.nodes(), &homes, self.next_shard());
        // From the back, so that each group is split off the end.
        for (group, shard) in groups.iter().zip(shards).rev() {
            let copies = Copies::new(flight.clone(), path, jobs.split_off(group.start));
            if let Err(error) = self.copies()[shard].send(copies.into()) {
                let what = not_taken(&error).with_path(path);
                error.into_inner().fail(&what);
            }
        }
    }

    /// Finds both ends of every slice in this process, and counts the flight in as a visitor of
    /// the regions at the far end, which may not go meanwhile.
    fn local_jobs<'a>(&self, plan: &'a Plan) -> Result<Local<'a>> {
        let regions = self.regions().current();
        let (mut visits, mut denied): (Vec<Visit>, _) = (Vec::new(), Vec::new());
        let mut jobs = Vec::with_capacity(plan.slices.len());
        // The slices of the jobs, once those are not all of the plan's.
        let mut kept: Option<Vec<PlannedSlice>> = None;
        for slice in &plan.slices {
            let (addr, len, operation) = (slice.addr, slice.len as u64, plan.operation(slice));
            let granted = plan.key(slice).map(|key| {
                let found = self.grants().find(key, self.name(), addr, len, operation);
                found.map_err(|denied| plan.denied(slice, denied).with_path(PathKind::Local))
            });
            let (far, proof) = match granted {
                Some(Ok((far, used))) => (far, Some(Proof::Use(used))),
                Some(Err(error)) => {
                    denied.push((slice.request, error));
                    kept.get_or_insert_with(|| plan.slices[..jobs.len()].to_vec());
                    continue;
                }
                None => {
                    let found = regions.find_own(addr, len);
                    let (region, far) = found.map_err(|error| error.with_path(PathKind::Local))?;
                    if visits.last().is_none_or(|visit| !visit.is_of(region)) {
                        visits.push(region.visit()?);
                    }
                    (far, None)
                }
            };
            jobs.push(Job { request: slice.request, work: copy(plan, slice, far), proof });
            kept.iter_mut().for_each(|kept| kept.push(*slice));
        }
        let slices = kept.map_or(Cow::Borrowed(&plan.slices[..]), Cow::Owned);
        Ok(Local { slices, jobs, visits, denied })
    }

    fn announce_local(self: &Arc<Self>, event: Event) -> Announce {
        let arrivals = self.arrivals().clone();
        Box::new(move |portion: Portion| {
            let error = match arrivals.event(event) {
                Status::Ok => None,
                Status::Busy => Some(Error::busy("the queue of notifications is full")),
                _ => Some(Error::refused("nobody has opened this counter")),
            };
            let failed = error.map(|error| (EVENT, error.with_path(PathKind::Local)));
            portion.back(failed.into_iter().collect());
        })
    }
}

/// What is to be copied inside this process, and what may not be.
struct Local<'a> {
    slices: Cow<'a, [PlannedSlice]>,
    /// One for each slice.
    jobs: Vec<Job>,
    visits: Vec<Visit>,
    denied: Vec<(usize, Error)>,
}

/// The same, by who makes the copies.
struct LocalParts {
    on_gpus: Vec<Arc<GpuCopies>>,
    jobs: Vec<Job>,
    /// The jobs behind the caller's own, for shards.
    groups: Vec<Range<usize>>,
    /// How many of the first the caller makes.
    own: usize,
    denied: Vec<(usize, Error)>,
}

impl LocalParts {
    fn count(&self) -> usize {
        let Self { on_gpus, groups, own, denied, .. } = self;
        on_gpus.len() + groups.len() + usize::from(*own > 0) + usize::from(!denied.is_empty())
    }
}

/// The copy of a slice, whose far end is `far`.
fn copy(plan: &Plan, slice: &PlannedSlice, far: Slice) -> CopyWork {
    let near = plan.memory(slice);
    let (source, target) = match plan.operation(slice) {
        Operation::Write => (near, far),
        Operation::Read => (far, near),
    };
    CopyWork { tag: 0, source: source.into(), target }
}

/// A part of a flight that failed before it was anywhere, if there is such a part.
fn back_at_once(flight: &Arc<Flight>, failures: Vec<(usize, Error)>) {
    if let (Some((first, _)), Some((last, _))) = (failures.first(), failures.last()) {
        Portion::new(flight.clone(), *first..=*last).back(failures);
    }
}

/// How many of the first slices the caller copies itself.
fn callers_share(slices: &[PlannedSlice]) -> usize {
    let mut bytes = 0;
    let mut fits = |slice: &PlannedSlice| {
        bytes += slice.len;
        bytes <= COPY_INLINE_MAX_BYTES
    };
    slices.iter().take_while(|slice| fits(slice)).count()
}

fn tcp_request(plan: &Plan, slice: &PlannedSlice) -> Request {
    let memory = plan.memory(slice);
    let action = match plan.operation(slice) {
        Operation::Write => Action::Write(memory),
        Operation::Read => Action::Read(memory),
    };
    Request {
        part: 0,
        index: slice.request,
        action,
        addr: slice.addr,
        key: plan.key(slice),
        attempts: 0,
        landed: Landed::No,
        fenced: Fenced::Unposted,
        name: None,
    }
}
