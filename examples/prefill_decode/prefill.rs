//! The role `prefill`: computes prompts for its peers and writes the KV cache into their memory.

use std::time::Instant;

use futures_lite::future::{block_on, or};
use kvrail::{Engine, Notification, Peer, Verdict};

use crate::crew::Role;
use crate::generate::likeliest;
use crate::kv::{PagedCache, Store};
use crate::llama::Failure;
use crate::messages::{FirstToken, Order, Report, Request, Shipped};
use crate::options::{Options, Path};
use crate::shipment::{Shipment, is_aborted};
use crate::wait::wait;
use crate::weights::Model;

pub struct Prefill<'a> {
    model: &'a Model,
    options: &'a Options,
    engine: Engine,
    store: Store,
    peer: Option<Peer>,
}

/// Serves until the parent has no more orders, which it never gives to this role.
pub fn run(
    model: &Model,
    options: &Options,
    orders: &flume::Receiver<Order>,
    report: &dyn Fn(Report) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let engine = options.engine(Role::Prefill)?;
    let mut prefill = Prefill::new(model, options, &engine)?;
    report(Report::Ready(engine.name().to_owned()))?;
    while let Some(request) = next_request(&engine, orders) {
        report(prefill.serve(&request)?)?;
    }
    block_on(engine.stop());
    Ok(())
}

fn next_request(engine: &Engine, orders: &flume::Receiver<Order>) -> Option<Notification> {
    let request = async { Some(engine.notification().await) };
    let closed = async { orders.recv_async().await.ok().and(None) };
    block_on(or(request, closed))
}

impl<'a> Prefill<'a> {
    pub fn new(model: &'a Model, options: &'a Options, engine: &Engine) -> Result<Self, Failure> {
        let store = Store::new(engine, *model.shape(), options.ship)?;
        Ok(Self { model, options, engine: engine.clone(), store, peer: None })
    }

    /// Computes the prompt of a request; its KV cache leaves meanwhile, the first token after it.
    /// Where the peer aborts the request, computing and sending end.
    pub fn serve(&mut self, notification: &Notification) -> Result<Report, Failure> {
        let request: Request = serde_json::from_slice(&notification.bytes)?;
        self.check(&request)?;
        let peer = self.peer(&notification.from)?;
        let mut cache = self.store.own(request.tokens.len())?;
        let shape = *self.model.shape();
        let Options { ship, flip_bit, .. } = *self.options;
        let why = self.why(&peer)?;
        let mut shipment = Shipment::new((&self.engine, &peer), &request, shape, ship, flip_bit);
        match self.ship((&peer, &request), &mut cache, &mut shipment) {
            Ok(shipped) => Ok(Report::Shipped(Shipped { why, ..shipped })),
            Err(why) if is_aborted(&why) => Ok(Report::Dropped(shipment.abandon(&why))),
            Err(failure) => Err(failure),
        }
    }

    fn ship(
        &self,
        (peer, request): (&Peer, &Request),
        cache: &mut PagedCache,
        shipment: &mut Shipment<'_>,
    ) -> Result<Shipped, Failure> {
        let pace = self.options.pace();
        let layer_done = &mut |layer, positions, cache: &mut PagedCache| {
            shipment.layer_done(layer, positions, cache)
        };
        let logits = self.model.prefill(&request.tokens, 0, pace, cache, layer_done)?;
        let computed = Instant::now();
        shipment.prompt_done(cache)?;
        let (token, position) = (likeliest(&logits), request.tokens.len());
        let first = FirstToken { request: request.id, token, position };
        let told = self.engine.notify(peer, serde_json::to_vec(&first)?);
        wait("a sign that the first token was taken", told)??;
        shipment.arrive(computed)
    }

    /// What came over the network has to make sense before memory is written by it.
    fn check(&self, request: &Request) -> Result<(), Failure> {
        let blocks = self.model.shape().blocks(request.tokens.len());
        if request.blocks.len() != blocks || request.counters.len() != self.store.pieces() {
            return Err(format!(
                "a request of {} tokens with {} blocks and {} counters, where {blocks} and {} \
                 are needed: do both processes ship alike?",
                request.tokens.len(),
                request.blocks.len(),
                request.counters.len(),
                self.store.pieces(),
            )
            .into());
        }
        Ok(())
    }

    /// Which path the cache takes, and why.
    fn why(&self, peer: &Peer) -> Result<String, Failure> {
        let asked = self.engine.explain(peer, self.store.region());
        let explanation = wait("a word on the path", asked)?;
        let path = explanation.write_path().ok_or("no path leads to the decode engine")?;
        let chosen = format!("{} by {}: {}", path.path.label(), path.means, path.why);
        let better = explanation.write.iter().take_while(|other| other.verdict != Verdict::Chosen);
        let missed = better.filter(|_| self.options.path == Path::Auto);
        let missed = missed.filter(|other| other.path != path.path);
        Ok(missed.fold(chosen, |text, other| {
            text + &format!("; not {} by {}: {}", other.path.label(), other.means, other.why)
        }))
    }

    /// The peer of this name; opened anew only when another asks.
    fn peer(&mut self, name: &str) -> Result<Peer, Failure> {
        if let Some(peer) = self.peer.as_ref().filter(|peer| peer.name() == name) {
            return Ok(peer.clone());
        }
        let peer = wait("the decode engine", self.engine.open(name))??;
        if let Some(path) = self.options.path.demanded().filter(|&path| path != peer.path()) {
            let (chosen, asked) = (peer.path().label(), path.label());
            return Err(format!("kvrail chose the path {chosen}, not {asked}").into());
        }
        Ok(self.peer.insert(peer).clone())
    }
}
