//! The role `decode`: has prompts computed elsewhere, straight into its own memory, and goes on
//! from there.

use std::ops::Range;

use futures_lite::future::block_on;
use kvrail::{Access, Engine, Peer};

use crate::generate::generate;
use crate::kv::{PagedCache, Store};
use crate::llama::Failure;
use crate::messages::{Ask, FirstToken, Order, Report, Request};
use crate::options::Options;
use crate::wait::wait;
use crate::weights::Model;

pub struct Decode<'a> {
    model: &'a Model,
    engine: Engine,
    store: Store,
    prefill: Peer,
    /// Counters are never used twice: a late advance must not count for another request.
    next_counter: u64,
}

/// A question that the prefill is working on.
pub struct Asked {
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
    let engine = options.engine()?;
    let Ok(Order::Open(prefill)) = orders.recv() else {
        return Err("the first order is to open the prefill engine".into());
    };
    let prefill = wait("the prefill engine", engine.open(&prefill))??;
    let mut decode = Decode::new(model, options, &engine, prefill)?;
    report(Report::Ready(engine.name().to_owned()))?;
    for order in orders {
        let Order::Ask(ask) = order else { return Err("only one engine can be opened".into()) };
        let asked = decode.ask(ask)?;
        decode.answer(asked, report)?;
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
        let store = Store::new(engine, *model.shape(), options.ship, Access::WRITE)?;
        Ok(Self { model, engine: engine.clone(), store, prefill, next_counter: 0 })
    }

    /// Takes blocks for prompt and answer, and tells the prefill where they are.
    pub fn ask(&mut self, ask: Ask) -> Result<Asked, Failure> {
        let Ask { tokens, max_tokens } = ask;
        let shape = self.model.shape();
        let (prompt_tokens, arriving) = (tokens.len(), shape.blocks(tokens.len()));
        let ids = self.counter_ids();
        let counters = ids.clone().map(|id| self.engine.counter(id)).collect::<Result<_, _>>()?;
        // The last token of the answer is not fed back.
        let cache = self.store.awaiting(
            prompt_tokens + max_tokens.saturating_sub(1),
            arriving,
            counters,
        )?;
        let blocks = cache.addresses()[..arriving].to_vec();
        let request = Request { tokens, blocks, counters: ids.collect() };
        let told = self.engine.notify(&self.prefill, serde_json::to_vec(&request)?);
        wait("a sign that the request was taken", told)??;
        Ok(Asked { cache, prompt_tokens, max_tokens })
    }

    /// Goes on from the first token. The layers of the KV cache may still be on their way then:
    /// each is awaited when the model comes to it.
    pub fn answer(
        &self,
        asked: Asked,
        report: &dyn Fn(Report) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let Asked { mut cache, prompt_tokens, max_tokens } = asked;
        let notification = wait("the first token", self.engine.notification())?;
        let FirstToken { token, position } = serde_json::from_slice(&notification.bytes)?;
        if position != prompt_tokens {
            return Err(format!("{prompt_tokens} tokens asked, {position} computed").into());
        }
        let on_token = &mut |token| report(Report::Token(token));
        let answer = generate(self.model, token, position, max_tokens, &mut cache, on_token)?;
        cache.all_arrived()?;
        report(Report::Answered { logit_hash: answer.logit_hash })
    }

    fn counter_ids(&mut self) -> Range<u64> {
        let first = self.next_counter;
        self.next_counter += self.store.pieces() as u64;
        first..self.next_counter
    }
}
