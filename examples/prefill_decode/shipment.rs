//! Sends a prompt's KV cache away while it is computed: layers are posted from the model's
//! callback, travel on the engine's shards, and are awaited when the prompt is done.

use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use futures_lite::future::block_on;
use kvrail::{Batch, Engine, ErrorKind, Failed, Outcome, Peer, Transfer};

use crate::kv::PagedCache;
use crate::llama::Failure;
use crate::messages::{Dropped, Request, Shipped};
use crate::options::Ship;
use crate::shape::Shape;
use crate::wait::PATIENCE;

pub struct Shipment<'a> {
    engine: &'a Engine,
    peer: &'a Peer,
    request: &'a Request,
    shape: Shape,
    ship: Ship,
    flip_bit: bool,
    /// By piece, how many blocks have left.
    sent: Vec<usize>,
    bytes: usize,
    flights: Vec<Flight>,
}

impl<'a> Shipment<'a> {
    pub fn new(
        (engine, peer): (&'a Engine, &'a Peer),
        request: &'a Request,
        shape: Shape,
        ship: Ship,
        flip_bit: bool,
    ) -> Self {
        let sent = vec![0; ship.pieces(shape.layers)];
        let flights = Vec::new();
        Self { engine, peer, request, shape, ship, flip_bit, sent, bytes: 0, flights }
    }

    /// Posts what is final now that `layer` has K and V of these positions; waits for nothing.
    /// Fails where the peer has taken back what was sent before: the rest need not be computed.
    pub fn layer_done(
        &mut self,
        layer: usize,
        positions: Range<usize>,
        cache: &mut PagedCache,
    ) -> Result<(), Failure> {
        if let Some(failed) = self.flights.iter_mut().position(Flight::has_failed) {
            self.flights.swap_remove(failed).land()?;
        }
        match self.ship {
            Ship::Layer => self.post_ready(layer, positions.end, cache),
            Ship::Block => Ok(()),
        }
    }

    /// Posts what was kept back until the whole prompt is computed.
    pub fn prompt_done(&mut self, cache: &mut PagedCache) -> Result<(), Failure> {
        match self.ship {
            Ship::Layer => Ok(()),
            Ship::Block => self.post_ready(0, self.request.tokens.len(), cache),
        }
    }

    /// Posts a piece of the blocks that `tokens` tokens have filled, each once. The last block
    /// of the prompt is ready with its last token, full or not.
    fn post_ready(
        &mut self,
        piece: usize,
        tokens: usize,
        cache: &mut PagedCache,
    ) -> Result<(), Failure> {
        let is_last = tokens == self.request.tokens.len();
        let full = tokens / self.shape.block_tokens;
        let ready = if is_last { self.request.blocks.len() } else { full };
        let blocks = std::mem::replace(&mut self.sent[piece], ready)..ready;
        if blocks.is_empty() { Ok(()) } else { self.post(piece, blocks, cache) }
    }

    fn post(
        &mut self,
        piece: usize,
        blocks: Range<usize>,
        cache: &mut PagedCache,
    ) -> Result<(), Failure> {
        if std::mem::take(&mut self.flip_bit) {
            cache.flip_bit(piece, blocks.start)?;
        }
        let began = Instant::now();
        let bytes = cache.piece_bytes();
        let mut batch = Batch::new(self.peer);
        for block in blocks.clone() {
            let (to, offset) = (&self.request.blocks[block], (piece * bytes) as u64);
            batch.write_to(&cache.share(piece, block)?, to, offset);
        }
        batch.count(self.request.counters[piece], blocks.len() as u64).deadline(PATIENCE);
        self.bytes += blocks.len() * bytes;
        self.flights.push(Flight::new(began, self.engine.transfer(batch)));
        Ok(())
    }

    /// Waits until everything has arrived. The prompt was computed at `computed`.
    pub fn arrive(&mut self, computed: Instant) -> Result<Shipped, Failure> {
        let spans = self.flights.drain(..).map(Flight::land).collect::<Result<Vec<_>, _>>()?;
        let (transfer, hidden) = measure(&spans, computed);
        let path = self.peer.path().label().to_owned();
        Ok(Shipped { path, why: String::new(), bytes: self.bytes, transfer, hidden })
    }

    /// Ends whatever is under way, and waits for that.
    pub fn abandon(self, why: &Failure) -> Dropped {
        let layers = self.sent.iter().filter(|blocks| **blocks > 0).count();
        let flights = self.flights.into_iter().filter(|flight| flight.landed.is_err());
        for cancelled in flights.map(|flight| flight.transfer.cancel()).collect::<Vec<_>>() {
            block_on(cancelled);
        }
        Dropped { why: why.to_string(), layers }
    }
}

/// Whether the peer has taken back the memory that it had granted.
pub fn is_aborted(failure: &Failure) -> bool {
    let failed = failure.downcast_ref::<Failed>();
    failed.is_some_and(|failed| failed.error().kind() == ErrorKind::Stale)
}

/// A transfer under way whose waker is a clock: when it ends, that is noted on the shard where
/// it ends, and nobody has to wait for it meanwhile.
struct Flight {
    span: Span,
    transfer: Transfer,
    landed: Result<Result<Outcome, Failed>, Arc<Stamp>>,
}

#[derive(Default)]
struct Stamp(OnceLock<Instant>);

impl Wake for Stamp {
    fn wake(self: Arc<Self>) {
        self.0.get_or_init(Instant::now);
    }
}

impl Flight {
    fn new(began: Instant, mut transfer: Transfer) -> Self {
        let stamp = Arc::new(Stamp::default());
        let waker = Waker::from(stamp.clone());
        let landed = match std::pin::pin!(&mut transfer).poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(outcome) => Ok(outcome),
            Poll::Pending => Err(stamp),
        };
        let posted = Instant::now();
        Self { span: Span { began, posted, ended: posted }, transfer, landed }
    }

    /// Takes a transfer that has ended to its outcome, and says whether that is a failure.
    fn has_failed(&mut self) -> bool {
        if let Err(stamp) = &self.landed
            && let Some(&ended) = stamp.0.get()
            && let Poll::Ready(outcome) =
                std::pin::pin!(&mut self.transfer).poll(&mut Context::from_waker(Waker::noop()))
        {
            self.span.ended = ended;
            self.landed = Ok(outcome);
        }
        matches!(&self.landed, Ok(Err(_)))
    }

    fn land(self) -> Result<Span, Failed> {
        let mut span = self.span;
        match self.landed {
            Ok(outcome) => drop(outcome?),
            Err(stamp) => {
                drop(block_on(self.transfer)?);
                span.ended = *stamp.0.get_or_init(Instant::now);
            }
        }
        Ok(span)
    }
}

/// When a transfer was posted, from when to when, and when it ended.
#[derive(Debug, Clone, Copy)]
struct Span {
    began: Instant,
    posted: Instant,
    ended: Instant,
}

/// The time in which at least one transfer was under way, and the part of it in which the compute
/// thread was computing: not done yet, and not busy with posting.
fn measure(spans: &[Span], computed: Instant) -> (Duration, Duration) {
    let mut spans = spans.to_vec();
    spans.sort_by_key(|span| span.began);
    let (mut transfer, mut hidden) = (Duration::ZERO, Duration::ZERO);
    let Some(mut covered) = spans.first().map(|span| span.began) else { return (transfer, hidden) };
    for span in &spans {
        let from = span.began.max(covered);
        covered = covered.max(span.ended);
        transfer += span.ended.saturating_duration_since(from);
        hidden += span.ended.min(computed).saturating_duration_since(from);
    }
    let posting: Duration = spans.iter().map(|span| span.posted - span.began).sum();
    (transfer, hidden.saturating_sub(posting))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlaps_count_once_and_posting_is_not_hidden() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let span =
            |began, posted, ended| Span { began: at(began), posted: at(posted), ended: at(ended) };
        let ms = Duration::from_millis;
        assert_eq!(measure(&[], at(5)), (ms(0), ms(0)));
        assert_eq!(measure(&[span(0, 1, 10)], at(100)), (ms(10), ms(9)));
        assert_eq!(measure(&[span(0, 1, 10)], at(4)), (ms(10), ms(3)));
        assert_eq!(measure(&[span(5, 5, 10)], at(4)), (ms(5), ms(0)), "posted after the compute");
        // 0..10 and 20..30 are covered; one lies inside another, and two overlap.
        let spans = [span(20, 21, 28), span(0, 1, 10), span(2, 3, 9), span(25, 26, 30)];
        assert_eq!(measure(&spans, at(100)), (ms(20), ms(16)));
        assert_eq!(measure(&spans, at(24)), (ms(20), ms(10)));
    }
}
