//! From a batch to its outcome: planned once, posted, awaited.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::engine::Inner;
use crate::flight::{Flight, Landing, Over};
use crate::memory::Lease;
use crate::prepared::{Plan, Prepared};
use crate::receipt::Receipt;
use crate::request::Batch;
use crate::{Error, PathKind, Result, metrics};

/// How a batch ended.
#[derive(Debug)]
pub struct Outcome {
    statuses: Vec<Result<()>>,
    leases: Vec<Lease>,
    receipt: Receipt,
}

impl Outcome {
    /// Each request's end, in the order of the requests.
    pub fn statuses(&self) -> &[Result<()>] {
        &self.statuses
    }

    /// Whose memory is quiet, by whose word, and what landed.
    pub fn receipt(&self) -> &Receipt {
        &self.receipt
    }

    /// The leases, in the order of the requests; none of a prepared batch, which keeps its own.
    pub fn into_leases(self) -> Vec<Lease> {
        self.leases
    }
}

/// A batch of which a request or the event failed; its outcome holds the leases and every
/// request's status.
#[derive(Debug)]
pub struct Failed {
    error: Error,
    /// Boxed, to keep results small.
    outcome: Box<Outcome>,
}

impl Failed {
    /// The first thing that failed.
    pub fn error(&self) -> &Error {
        &self.error
    }

    /// Whose memory is quiet, by whose word, and what landed.
    pub fn receipt(&self) -> &Receipt {
        self.outcome.receipt()
    }

    /// Statuses, leases and receipt.
    pub fn into_outcome(self) -> Outcome {
        *self.outcome
    }
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for Failed {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}

impl From<Failed> for Error {
    fn from(failed: Failed) -> Self {
        failed.error
    }
}

/// A batch under way. Dropping it is safe: leases come back when nothing touches their memory.
#[must_use = "a transfer that is dropped at once is abandoned"]
pub struct Transfer {
    state: State,
    /// It was polled before.
    is_seen: bool,
    /// How long its first poll looks for its end.
    spin: Duration,
    path: PathKind,
    returns_leases: bool,
}

enum State {
    Flying(Arc<Flight>),
    /// It never took off.
    Refused(Error, Vec<Lease>, usize),
    Done,
}

impl Transfer {
    /// Plans a batch and posts it.
    pub(crate) fn start(engine: &Arc<Inner>, batch: Batch) -> Self {
        let started = quanta::Instant::now();
        let (path, requests) = (batch.peer.path(), batch.len());
        let state = match Plan::new(batch, engine.name()) {
            Err((error, leases)) => State::Refused(error, leases, requests),
            Ok(plan) => {
                let plan = Arc::new(plan);
                match plan.take_off().and_then(|()| engine.post(&plan, started)) {
                    Ok(flight) => State::Flying(flight),
                    Err(error) => State::Refused(error, plan.take_leases(), requests),
                }
            }
        };
        Self { state, is_seen: false, spin: engine.caller_spin(), path, returns_leases: true }
    }

    /// Posts a prepared batch.
    pub(crate) fn repeat(engine: &Arc<Inner>, prepared: &Prepared) -> Self {
        let started = quanta::Instant::now();
        let path = prepared.plan.peer.path();
        let posted = prepared.plan.take_off().and_then(|()| engine.post(&prepared.plan, started));
        let state = match posted {
            Ok(flight) => State::Flying(flight),
            Err(error) => State::Refused(error, Vec::new(), prepared.plan.requests()),
        };
        Self { state, is_seen: false, spin: engine.caller_spin(), path, returns_leases: false }
    }
}

impl Transfer {
    /// Ends the transfer: nothing more of it is posted, and what was posted is fenced. Resolves
    /// when our memory is quiet and the peer's too, or nobody can say so; the outcome's receipt
    /// tells which. What had landed before is there; a transfer that was over already is the
    /// success that it was.
    pub fn cancel(self) -> impl Future<Output = Outcome> + Send {
        if let State::Flying(flight) = &self.state {
            flight.abandon();
        }
        async {
            match self.await {
                Ok(outcome) => outcome,
                Err(failed) => failed.into_outcome(),
            }
        }
    }

    /// Resolves once the event of [`Batch::record_event`] is recorded, from when on streams may
    /// wait for it; at once where there is none, and at the transfer's end at the latest.
    pub fn recorded(&self) -> impl Future<Output = ()> + Send + 'static {
        let flight = match &self.state {
            State::Flying(flight) => Some(flight.clone()),
            State::Refused(..) | State::Done => None,
        };
        std::future::poll_fn(move |context| match &flight {
            Some(flight) => flight.poll_recorded(context),
            None => Poll::Ready(()),
        })
    }

    /// What the path has cost, for [`crate::Engine::explain`].
    fn note(&self, plan: &Plan, landing: &Landing) {
        if let (None, Some(over)) = (&landing.first_error, landing.over) {
            plan.link().observed.note(self.path, plan.bytes(), over.lasted);
        }
    }
}

impl Future for Transfer {
    type Output = Result<Outcome, Failed>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { state, is_seen, spin, .. } = &mut *self;
        if let State::Flying(flight) = state
            && !std::mem::replace(is_seen, true)
        {
            flight.watch(*spin);
        }
        let (landing, leases) = match std::mem::replace(&mut self.state, State::Done) {
            State::Done => panic!("a transfer was polled after its end"),
            State::Refused(error, leases, requests) => {
                let statuses = vec![Err(error.clone()); requests];
                (Landing { statuses, first_error: Some(error), over: None }, leases)
            }
            State::Flying(flight) => match flight.poll(context) {
                Poll::Pending => {
                    self.state = State::Flying(flight);
                    return Poll::Pending;
                }
                Poll::Ready(landing) => {
                    self.note(&flight.plan, &landing);
                    let leases = match self.returns_leases {
                        true => flight.plan.leases_after(&landing.statuses),
                        false => {
                            flight.plan.ended(&landing.statuses);
                            Vec::new()
                        }
                    };
                    (landing, leases)
                }
            },
        };
        let Landing { statuses, first_error: error, over } = landing;
        let (receipt, lasted) = match over {
            Some(Over { receipt, lasted }) => (receipt, lasted),
            None => (Receipt::UNPOSTED, Duration::ZERO),
        };
        metrics::batch_ended(self.path, lasted);
        let outcome = Outcome { statuses, leases, receipt };
        Poll::Ready(match error {
            None => Ok(outcome),
            Some(error) => Err(Failed { error, outcome: Box::new(outcome) }),
        })
    }
}

impl std::fmt::Debug for Transfer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = match &self.state {
            State::Flying(_) => "under way",
            State::Refused(..) => "refused",
            State::Done => "over",
        };
        write!(f, "Transfer({}, {state})", self.path.label())
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        if let State::Flying(flight) = &self.state {
            flight.abandon();
            if self.returns_leases {
                flight.plan.abandon();
            }
        }
    }
}
