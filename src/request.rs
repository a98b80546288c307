//! What a user asks for: batches of reads and writes, contiguous, paged or strided. Checked when
//! they are planned, trusted afterwards.

use std::time::Duration;

use kvrail_reactors::cuda::Event as CudaEvent;

use crate::memory::{ExclusiveLease, Lease, Reference, SharedLease};
use crate::path::order::Events;
use crate::path::tcp::Event;
use crate::peer::Peer;

/// Equal pages on both sides, paired in order: the KV cache's block lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pages {
    /// Bytes of each page.
    pub page_bytes: usize,
    /// Where each page starts in the lease, in bytes.
    pub local: Vec<u64>,
    /// Each page's address at the peer; as many as in `local`.
    pub remote: Vec<u64>,
}

/// Equal rows at a fixed distance on each side: for unequal tensor parallelism, where a head's
/// share of a token is a row on one side and a part of a longer row on the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Strided {
    /// How many rows.
    pub rows: usize,
    /// Bytes of each row.
    pub row_bytes: usize,
    /// Bytes from one row's start to the next in the lease, where the first starts at 0.
    pub local_stride: u64,
    /// Address of the first row at the peer.
    pub remote: u64,
    /// Bytes from one row's start to the next at the peer.
    pub remote_stride: u64,
}

/// Where the bytes of one request are, on both sides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Shape {
    /// The whole lease, to or from this address.
    Whole(u64),
    Pages(Pages),
    Strided(Strided),
}

/// One request of a batch.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) lease: Lease,
    pub(crate) shape: Shape,
    /// The grant that it is asked for under, if any.
    pub(crate) under: Option<Reference>,
}

/// Reads and writes between this engine's memory and one peer's, carried together.
///
/// Writes read from a [`SharedLease`], reads write into an [`ExclusiveLease`]; both come back
/// with the [`Outcome`](crate::Outcome). Requests have no order among each other.
#[derive(Debug)]
pub struct Batch {
    pub(crate) peer: Peer,
    pub(crate) requests: Vec<Asked>,
    pub(crate) event: Event,
    pub(crate) deadline: Option<Duration>,
    pub(crate) events: Events,
}

impl Batch {
    /// An empty batch for `peer`.
    pub fn new(peer: &Peer) -> Self {
        let (requests, event, deadline, events) = Default::default();
        Self { peer: peer.clone(), requests, event, deadline, events }
    }

    /// Writes the whole lease to address `remote` at the peer.
    pub fn write(&mut self, source: &SharedLease, remote: u64) -> &mut Self {
        self.push(Lease::Shared(source.clone()), Shape::Whole(remote))
    }

    /// Fills the whole lease from address `remote` at the peer.
    pub fn read(&mut self, target: ExclusiveLease, remote: u64) -> &mut Self {
        self.push(Lease::Exclusive(target), Shape::Whole(remote))
    }

    /// Writes pages of the lease to pages of the peer, as one request.
    pub fn write_pages(&mut self, source: &SharedLease, pages: Pages) -> &mut Self {
        self.push(Lease::Shared(source.clone()), Shape::Pages(pages))
    }

    /// Fills pages of the lease from pages of the peer, as one request.
    pub fn read_pages(&mut self, target: ExclusiveLease, pages: Pages) -> &mut Self {
        self.push(Lease::Exclusive(target), Shape::Pages(pages))
    }

    /// Writes rows of the lease to rows of the peer, as one request.
    pub fn write_strided(&mut self, source: &SharedLease, rows: Strided) -> &mut Self {
        self.push(Lease::Shared(source.clone()), Shape::Strided(rows))
    }

    /// Fills rows of the lease from rows of the peer, as one request.
    pub fn read_strided(&mut self, target: ExclusiveLease, rows: Strided) -> &mut Self {
        self.push(Lease::Exclusive(target), Shape::Strided(rows))
    }

    /// Writes the whole lease to where the peer granted it, from `offset` of that on. Ends as Stale
    /// where the peer has taken the memory back meanwhile; some bytes may have been written before.
    pub fn write_to(&mut self, source: &SharedLease, to: &Reference, offset: u64) -> &mut Self {
        let lease = Lease::Shared(source.clone());
        self.push_under(to, lease, Shape::Whole(to.addr.saturating_add(offset)))
    }

    /// Fills the whole lease from what the peer granted, from `offset` of that on. Ends as Stale
    /// where the peer has taken the memory back meanwhile: then what the lease holds is undefined.
    pub fn read_from(
        &mut self,
        target: ExclusiveLease,
        from: &Reference,
        offset: u64,
    ) -> &mut Self {
        let lease = Lease::Exclusive(target);
        self.push_under(from, lease, Shape::Whole(from.addr.saturating_add(offset)))
    }

    /// Like [`Batch::write_pages`], to pages inside of what the peer granted.
    pub fn write_pages_to(
        &mut self,
        source: &SharedLease,
        to: &Reference,
        pages: Pages,
    ) -> &mut Self {
        self.push_under(to, Lease::Shared(source.clone()), Shape::Pages(pages))
    }

    /// Like [`Batch::read_pages`], from pages inside of what the peer granted.
    pub fn read_pages_from(
        &mut self,
        target: ExclusiveLease,
        from: &Reference,
        pages: Pages,
    ) -> &mut Self {
        self.push_under(from, Lease::Exclusive(target), Shape::Pages(pages))
    }

    /// Like [`Batch::write_strided`], to rows inside of what the peer granted.
    pub fn write_strided_to(
        &mut self,
        source: &SharedLease,
        to: &Reference,
        rows: Strided,
    ) -> &mut Self {
        self.push_under(to, Lease::Shared(source.clone()), Shape::Strided(rows))
    }

    /// Like [`Batch::read_strided`], from rows inside of what the peer granted.
    pub fn read_strided_from(
        &mut self,
        target: ExclusiveLease,
        from: &Reference,
        rows: Strided,
    ) -> &mut Self {
        self.push_under(from, Lease::Exclusive(target), Shape::Strided(rows))
    }

    /// Delivers `message` to the peer after all data of this batch is in place; not at all where
    /// a request fails. Mooncake peers take text only.
    pub fn notify(&mut self, message: impl Into<Vec<u8>>) -> &mut Self {
        self.event.message = Some((String::new(), message.into()));
        self
    }

    /// Advances the peer's counter `id` by `amount` after all data of this batch is in place;
    /// not at all where a request fails. Between kvrail peers only.
    pub fn count(&mut self, id: u64, amount: u64) -> &mut Self {
        self.event.count = Some((id, amount));
        self
    }

    /// Ends the batch as Expired when it isn't done in time.
    pub fn deadline(&mut self, after: Duration) -> &mut Self {
        self.deadline = Some(after);
        self
    }

    /// Begins nothing of the batch before this event has completed, as it was recorded last before
    /// the batch is posted; at once where it never was. So a layer's pages leave when its kernel
    /// ends.
    ///
    /// Where GPUs of this process make all the copies (inside one engine, and reads of what a peer
    /// of this host has on a GPU) the copying stream waits: the host takes no part. Otherwise (a
    /// write to a peer of this host, which the peer copies; TCP; RDMA; host memory in the batch) a
    /// shard polls for the event and sends what is behind it then, some microseconds later. Batches
    /// behind events of one GPU begin in the order of their posting; no others wait for them.
    ///
    /// Cancelled or expired behind the event, what waits on the host ends at once; what a stream
    /// has already ends behind the event and the copies. [`crate::Engine::stop`] waits for the
    /// event.
    pub fn wait_event(&mut self, event: CudaEvent) -> &mut Self {
        self.events.after = Some(event);
        self
    }

    /// Records this event once, so that it completes when all of the batch's memory is quiet on
    /// this side, whether the batch succeeds, fails or is cancelled: that it completed says nothing
    /// of what landed, which the outcome does.
    ///
    /// A stream that is to wait for it may do so once [`crate::Transfer::recorded`] says that it is
    /// recorded. Where one GPU of this process makes all the copies, and the event is that GPU's,
    /// it is recorded behind them as soon as they are launched; otherwise when the batch is over.
    /// Which GPU that is: the one that holds the copies' targets, else their sources. An event that
    /// can't be recorded fails the batch, and none of its requests.
    pub fn record_event(&mut self, event: CudaEvent) -> &mut Self {
        self.events.before = Some(event);
        self
    }

    /// How many requests it holds.
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// Whether it holds no request.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    fn push(&mut self, lease: Lease, shape: Shape) -> &mut Self {
        self.requests.push(Asked { lease, shape, under: None });
        self
    }

    fn push_under(&mut self, under: &Reference, lease: Lease, shape: Shape) -> &mut Self {
        self.requests.push(Asked { lease, shape, under: Some(*under) });
        self
    }
}
