//! One transfer of the world's workload, from its request to the proof that it is over.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use super::hearing::Tells;
use super::process::Block;
use super::tenancy::Claim;
use crate::engine::Engine;
use crate::memory::Operation;
use crate::{Batch, Failed, Outcome, Prepared, Transfer};

/// A transfer and what it may do.
pub(super) struct Under {
    pub(super) number: usize,
    /// Node and incarnation of who asked, and of its peer.
    pub(super) from: (usize, u64),
    pub(super) to: (usize, u64),
    pub(super) requests: Vec<Asked>,
    pub(super) tells: Tells,
    /// It must succeed where nothing is in its way.
    pub(super) is_patient: bool,
    /// When its caller has enough of it, and whether that is content with dropping it.
    pub(super) gives_up: Option<(u64, Enough)>,
    pub(super) course: Course,
}

/// How a caller gives a transfer up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Enough {
    Drops,
    Cancels,
}

/// One request: the bytes of one block go onto another.
pub(super) struct Asked {
    pub(super) operation: Operation,
    pub(super) near: Block,
    pub(super) far: Block,
    /// The grant that it goes under, if any.
    pub(super) claim: Option<Claim>,
    /// Where in both blocks.
    pub(super) near_at: usize,
    pub(super) far_at: usize,
    /// What it brings.
    pub(super) bytes: Vec<u8>,
}

/// A transfer's future and its waker.
pub(super) struct Course {
    /// None once the caller has dropped it: its leases tell when it is over.
    future: Option<Future>,
    /// To post it again.
    prepared: Option<Prepared>,
    /// How many times more it is posted.
    again: u32,
    is_cancelled: bool,
    flag: Arc<Flag>,
}

enum Future {
    Awaited(Transfer),
    Cancelled(Pin<Box<dyn std::future::Future<Output = Outcome>>>),
}

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}

impl Asked {
    /// The block that is written to, and where.
    pub(super) fn target(&self) -> (Block, usize) {
        match self.operation {
            Operation::Write => (self.far, self.far_at),
            Operation::Read => (self.near, self.near_at),
        }
    }

    pub(super) fn is_outdated(&self) -> bool {
        self.claim.is_some_and(|claim| claim.is_outdated)
    }
}

impl Under {
    /// Whom the oracle knows as the writer of a request.
    pub(super) fn writer(&self, request: usize) -> usize {
        self.number * 10 + request
    }
}

impl Course {
    /// Of a batch that is transferred once.
    pub(super) fn once(engine: &Engine, batch: Batch) -> Self {
        Self::new(engine.transfer(batch), None, 0)
    }

    /// Of a batch that is prepared, and posted again so many times while that goes well.
    pub(super) fn repeated(engine: &Engine, batch: Batch, again: u32) -> Self {
        let prepared = engine.prepare(batch).expect("a world asks for what is right");
        Self::new(engine.post(&prepared), Some(prepared), again)
    }

    fn new(transfer: Transfer, prepared: Option<Prepared>, again: u32) -> Self {
        let flag = Arc::new(Flag(AtomicBool::new(true)));
        Self { future: Some(Future::Awaited(transfer)), prepared, again, is_cancelled: false, flag }
    }

    /// Posts it once more, if it is to be.
    pub(super) fn repeat(&mut self, engine: &Engine) -> bool {
        let Some(prepared) = self.prepared.as_ref().filter(|_| self.again > 0) else {
            return false;
        };
        self.again -= 1;
        self.future = Some(Future::Awaited(engine.post(prepared)));
        self.flag.0.store(true, Ordering::Release);
        true
    }

    /// Looks for its end, if its waker was called.
    pub(super) fn poll(&mut self) -> Option<Result<Outcome, Failed>> {
        if !self.flag.0.swap(false, Ordering::AcqRel) {
            return None;
        }
        let waker = Waker::from(self.flag.clone());
        let mut context = Context::from_waker(&waker);
        let polled = match self.future.as_mut()? {
            Future::Awaited(transfer) => Pin::new(transfer).poll(&mut context),
            Future::Cancelled(ending) => ending.as_mut().poll(&mut context).map(Ok),
        };
        let Poll::Ready(ended) = polled else { return None };
        self.future = None;
        Some(ended)
    }

    /// Whether its caller was told to look.
    pub(super) fn is_woken(&self) -> bool {
        self.flag.0.load(Ordering::Acquire)
    }

    /// The caller gives up on it.
    pub(super) fn give_up(&mut self, how: Enough) {
        self.again = 0;
        let awaited = match self.future.take() {
            Some(Future::Awaited(transfer)) if how == Enough::Cancels => transfer,
            _ => return self.prepared = None,
        };
        self.is_cancelled = true;
        self.future = Some(Future::Cancelled(Box::pin(awaited.cancel())));
        self.flag.0.store(true, Ordering::Release);
    }

    /// It has ended: a prepared batch gives its leases back.
    pub(super) fn finish(&mut self) {
        self.prepared = None;
    }

    /// Whether its caller has cancelled it.
    pub(super) fn is_cancelled(&self) -> bool {
        self.is_cancelled
    }

    /// Whether nobody waits for it any more.
    pub(super) fn is_abandoned(&self) -> bool {
        self.future.is_none()
    }
}
