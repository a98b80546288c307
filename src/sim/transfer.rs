//! One transfer of the world's workload, from its request to the proof that it is over.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use super::process::Block;
use crate::memory::Operation;
use crate::{Failed, Outcome, Transfer};

/// A transfer and what it may do.
pub(super) struct Under {
    pub(super) number: usize,
    pub(super) from: usize,
    pub(super) incarnation: u64,
    pub(super) to: usize,
    pub(super) to_incarnation: u64,
    pub(super) requests: Vec<Asked>,
    pub(super) counts: bool,
    /// It must succeed where nothing is in its way.
    pub(super) is_patient: bool,
    /// When its caller drops it.
    pub(super) drop_at_ns: Option<u64>,
    /// None once the caller has dropped it: its leases tell when it is over.
    future: Option<Transfer>,
    flag: Arc<Flag>,
}

/// One request: the bytes of one block go onto another.
pub(super) struct Asked {
    pub(super) operation: Operation,
    pub(super) near: Block,
    pub(super) far: Block,
    /// Where in both blocks.
    pub(super) near_at: usize,
    pub(super) far_at: usize,
    /// What it brings.
    pub(super) bytes: Vec<u8>,
}

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}

impl Under {
    #[expect(clippy::too_many_arguments, reason = "they are what a transfer is")]
    pub(super) fn new(
        number: usize,
        (from, incarnation): (usize, u64),
        (to, to_incarnation): (usize, u64),
        requests: Vec<Asked>,
        counts: bool,
        is_patient: bool,
        drop_at_ns: Option<u64>,
        future: Transfer,
    ) -> Self {
        let flag = Arc::new(Flag(AtomicBool::new(true)));
        let future = Some(future);
        Self {
            number,
            from,
            incarnation,
            to,
            to_incarnation,
            requests,
            counts,
            is_patient,
            drop_at_ns,
            future,
            flag,
        }
    }

    /// Whom the oracle knows as the writer of a request.
    pub(super) fn writer(&self, request: usize) -> usize {
        self.number * 10 + request
    }

    /// Looks for its end, if its waker was called.
    pub(super) fn poll(&mut self) -> Option<Result<Outcome, Failed>> {
        if !self.flag.0.swap(false, Ordering::AcqRel) {
            return None;
        }
        let waker = Waker::from(self.flag.clone());
        let future = self.future.as_mut()?;
        match Pin::new(future).poll(&mut Context::from_waker(&waker)) {
            Poll::Pending => None,
            Poll::Ready(ended) => {
                self.future = None;
                Some(ended)
            }
        }
    }

    /// Whether its caller was told to look.
    pub(super) fn is_woken(&self) -> bool {
        self.flag.0.load(Ordering::Acquire)
    }

    /// The caller gives up on it.
    pub(super) fn abandon(&mut self) {
        self.drop_at_ns = None;
        self.future = None;
    }

    /// Whether nobody waits for it any more.
    pub(super) fn is_abandoned(&self) -> bool {
        self.future.is_none()
    }
}
