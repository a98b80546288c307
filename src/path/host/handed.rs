//! Foreign memory of GPUs that went to a peer by a handle, and came from one: its owner may free it
//! once the peer has closed it, so the owner's region has a visitor until then.

use std::collections::HashMap;

use tokio::sync::mpsc;

use super::message::Vram;
use crate::limits::REGIONS_MAX;
use crate::memory::{Region, Visit};
use crate::{Error, Result};

/// Memory of ours that a peer has open, by the calls in which it got the handles.
#[derive(Default)]
pub(super) struct Lent(HashMap<u64, Visit>);

impl Lent {
    /// # Errors
    /// Closed: the region is about to go. Busy: the peer has too many open.
    pub(super) fn lend(&mut self, call: u64, region: &Region) -> Result<()> {
        if self.0.len() >= REGIONS_MAX {
            return Err(Error::busy(format!("{REGIONS_MAX} handles are with the peer already")));
        }
        self.0.insert(call, region.visit()?);
        Ok(())
    }

    /// The peer has closed it.
    pub(super) fn let_go(&mut self, call: u64) {
        self.0.remove(&call);
    }
}

/// Says which memory of a peer's is closed here.
pub(super) struct Borrowed {
    told: mpsc::UnboundedSender<u64>,
    closed: mpsc::UnboundedReceiver<u64>,
}

/// Held by memory that is open; says so when that is over.
pub(super) struct Borrower {
    call: u64,
    told: mpsc::UnboundedSender<u64>,
}

impl Borrowed {
    pub(super) fn new() -> Self {
        // As many as there are regions that the peer has shown, whose number is bounded.
        let (told, closed) = mpsc::unbounded_channel();
        Self { told, closed }
    }

    /// For what comes by this call, if that is a handle.
    pub(super) fn borrower(&self, call: u64, gpu: Option<&Vram>) -> Option<Borrower> {
        let is_handle = matches!(gpu, Some(Vram::Handle { .. }));
        is_handle.then(|| Borrower { call, told: self.told.clone() })
    }

    /// The next one that is closed, by its call.
    pub(super) async fn closed(&mut self) -> u64 {
        // This side holds a sender itself, so there always is a next.
        self.closed.recv().await.unwrap_or(0)
    }

    /// Waits until all is closed.
    pub(super) async fn all_closed(self) {
        let Self { told, mut closed } = self;
        drop(told);
        while closed.recv().await.is_some() {}
    }
}

impl Drop for Borrower {
    fn drop(&mut self) {
        // Nobody listens once the session is over.
        let _ = self.told.send(self.call);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::tests::region;

    #[tokio::test]
    async fn a_region_is_quiet_once_every_call_has_let_go_of_it() {
        let (region, mut lent) = (region(4096), Lent::default());
        lent.lend(1, &region).unwrap();
        lent.lend(2, &region).unwrap();
        let is_quiet = || {
            std::future::poll_fn(|context| {
                let quiet = std::pin::pin!(region.quiet()).poll(context).is_ready();
                std::task::Poll::Ready(quiet)
            })
        };
        lent.let_go(1);
        lent.let_go(7);
        assert!(!is_quiet().await);
        lent.let_go(2);
        assert!(is_quiet().await);
        region.close();
        assert!(lent.lend(3, &region).is_err());
    }

    #[tokio::test]
    async fn what_is_closed_is_told_by_its_call() {
        let mut borrowed = Borrowed::new();
        let (handle, uuid) = (String::new(), String::new());
        let by_handle = Some(Vram::Handle { handle, offset: 0, uuid });
        let (first, second) = [4, 5].map(|call| borrowed.borrower(call, by_handle.as_ref())).into();
        assert!(borrowed.borrower(6, None).is_none());
        drop(second);
        assert_eq!(borrowed.closed().await, 5);
        drop(first);
        borrowed.all_closed().await;
    }
}
