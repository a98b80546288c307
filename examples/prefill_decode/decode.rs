//! The role `decode`: has prompts computed elsewhere, straight into its own memory, and goes on
//! from there.

use std::ops::Range;

use futures_lite::future::block_on;
use kvrail::{Block, Counter, Engine, Peer};

use crate::cache::cache_hash;
use crate::crew::Role;
use crate::generate::generate;
use crate::kv::{Arriving, PagedCache, Store};
use crate::llama::Failure;
use crate::messages::{Aborted, Ask, FirstToken, Order, Report, Request};
use crate::options::Options;
use crate::wait::wait;
use crate::weights::Model;

pub struct Decode<'a> {
    model: &'a Model,
    engine: Engine,
    store: Store,
    prefill: Peer,
    next_request: u64,
    /// Counters are never used twice: a late advance must not count for another request.
    next_counter: u64,
    /// What an aborted request has left for the next one.
    spare: Vec<Block>,
    /// Its counters, until the prefill is known to have turned to the next one.
    late: Vec<Counter>,
}

/// A question that the prefill is working on.
pub struct Asked {
    id: u64,
    cache: PagedCache,
    prompt_tokens: usize,
    max_tokens: usize,
}

/// Opens the prefill engine that the parent names and answers what the parent asks.
pub fn run(
    model: &Model,
    options: &Options,
    orders: &flume::Receiver<Order>,
    report: &dyn Fn(Report) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let engine = options.engine(Role::Decode)?;
    let Ok(Order::Open(prefill)) = orders.recv() else {
        return Err("the first order is to open the prefill engine".into());
    };
    let prefill = wait("the prefill engine", engine.open(&prefill))??;
    let mut decode = Decode::new(model, options, &engine, prefill)?;
    report(Report::Ready(engine.name().to_owned()))?;
    for order in orders {
        match order {
            Order::Open(_) => return Err("only one engine can be opened".into()),
            Order::Ask(ask) => {
                let asked = decode.ask(ask)?;
                decode.answer(asked, report)?;
            }
            Order::Abort(ask, layers) => {
                let asked = decode.ask(ask)?;
                report(Report::Aborted(decode.abort(asked, layers)?))?;
            }
        }
    }
    block_on(engine.stop());
    Ok(())
}

impl<'a> Decode<'a> {
    pub fn new(
        model: &'a Model,
        options: &Options,
        engine: &Engine,
        prefill: Peer,
    ) -> Result<Self, Failure> {
        let store = Store::new(engine, *model.shape(), options.ship)?;
        Ok(Self {
            model,
            engine: engine.clone(),
            store,
            prefill,
            next_request: 0,
            next_counter: 0,
            spare: Vec::new(),
            late: Vec::new(),
        })
    }

    /// Takes blocks for prompt and answer, and tells the prefill where they are.
    pub fn ask(&mut self, ask: Ask) -> Result<Asked, Failure> {
        let Ask { tokens, max_tokens } = ask;
        let shape = self.model.shape();
        let (prompt_tokens, arriving) = (tokens.len(), shape.blocks(tokens.len()));
        let ids = self.counter_ids();
        let counters = ids.clone().map(|id| self.engine.counter(id)).collect::<Result<_, _>>()?;
        // The last token of the answer is not fed back.
        let room = prompt_tokens + max_tokens.saturating_sub(1);
        let writer = self.prefill.name().to_owned();
        let arriving = Arriving { blocks: arriving, counters, writer };
        let cache = self.store.awaiting(room, arriving, std::mem::take(&mut self.spare))?;
        let id = self.next_request;
        self.next_request += 1;
        let request = Request { id, tokens, blocks: cache.references(), counters: ids.collect() };
        let told = self.engine.notify(&self.prefill, serde_json::to_vec(&request)?);
        wait("a sign that the request was taken", told)??;
        Ok(Asked { id, cache, prompt_tokens, max_tokens })
    }

    /// Takes back what a request has, as soon as so many of its layers have arrived. The next one
    /// gets the same blocks.
    pub fn abort(&mut self, asked: Asked, layers: usize) -> Result<Aborted, Failure> {
        let Asked { mut cache, .. } = asked;
        (0..layers).try_for_each(|layer| cache.arrived(layer))?;
        let blocks = cache.references().len();
        let (spare, late, took) = cache.revoke()?;
        self.spare = spare;
        self.late.extend(late);
        Ok(Aborted { layers, blocks, took })
    }

    /// Goes on from the first token. The layers of the KV cache may still be on their way then:
    /// each is awaited when the model comes to it.
    pub fn answer(
        &mut self,
        asked: Asked,
        report: &dyn Fn(Report) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let Asked { id, mut cache, prompt_tokens, max_tokens } = asked;
        let FirstToken { token, position, .. } = self.first_token(id)?;
        self.late.clear();
        if position != prompt_tokens {
            return Err(format!("{prompt_tokens} tokens asked, {position} computed").into());
        }
        let on_token = &mut |token| report(Report::Token(token));
        let answer = generate(self.model, token, position, max_tokens, &mut cache, on_token)?;
        cache.all_arrived()?;
        let cache_hash = cache_hash(&cache, self.model.shape(), prompt_tokens + answer.steps)?;
        report(Report::Answered { logit_hash: answer.logit_hash, cache_hash })
    }

    /// That of this request: one of a request that was aborted may still have been on its way.
    fn first_token(&self, request: u64) -> Result<FirstToken, Failure> {
        loop {
            let notification = wait("the first token", self.engine.notification())?;
            let first: FirstToken = serde_json::from_slice(&notification.bytes)?;
            if first.request == request {
                return Ok(first);
            }
        }
    }

    fn counter_ids(&mut self) -> Range<u64> {
        let first = self.next_counter;
        self.next_counter += self.store.pieces() as u64;
        first..self.next_counter
    }
}
