//! The parent: has every question answered by the split pair and once more in one process, shows
//! the answer as it comes, and compares the two.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::crew::Crew;
use crate::fetch;
use crate::kv::POOL_TOKENS;
use crate::llama::Failure;
use crate::messages::{Aborted, Ask, Dropped, Order, Report, Shipped};
use crate::options::Options;
use crate::single;
use crate::table::table;
use crate::text::Tokenizer;
use crate::typewriter::Typewriter;
use crate::weights::Model;

/// One answer: when its tokens came, and the hash of the logits behind them.
#[derive(Debug)]
pub struct Run {
    start: Instant,
    pub tokens: Vec<u32>,
    pub first: Option<Duration>,
    pub second: Option<Duration>,
    pub logit_hash: u64,
    /// Of K and V of the question and its answer.
    pub cache_hash: u64,
}

/// One question, answered twice.
#[derive(Debug)]
pub struct Row {
    pub prompt_tokens: usize,
    pub split: Run,
    pub single: Run,
    pub shipped: Shipped,
    pub aborted: Option<Abort>,
}

/// The request that was aborted before a question, from both sides. Where the prefill has nothing
/// to say it had sent everything before it could know.
#[derive(Debug)]
pub struct Abort {
    pub decode: Aborted,
    pub prefill: Option<Dropped>,
}

/// Whether all hashes are equal.
pub fn run(options: &Options) -> Result<bool, Failure> {
    options.check()?;
    let model = if options.random { fetch::random() } else { fetch::model()? };
    let is_random = matches!(model.tokenizer(), Tokenizer::Bytes);
    let model = Arc::new(model);
    let crew = Crew::start(&model, options, is_random)?;
    conduct(crew, &model, options, &mut std::io::stdout())
}

/// Asks everything, writes answers, figures and verdict.
pub fn conduct(
    mut crew: Crew,
    model: &Model,
    options: &Options,
    out: &mut dyn Write,
) -> Result<bool, Failure> {
    options.abort_after(model.shape().layers)?;
    let requests = usize::from(options.requests);
    let mut rows = Vec::new();
    for request in 0..requests {
        let ask = options.ask(model, request, POOL_TOKENS.min(model.shape().context))?;
        let question = shortened(options.question(request));
        writeln!(out, "[{}/{requests}] {question}\n", request + 1)?;
        rows.push(both(&mut crew, model, options, ask, out)?);
        writeln!(out)?;
    }
    crew.dismiss()?;
    writeln!(out, "{}", table(&rows))?;
    let equal = rows.iter().all(Row::is_equal);
    let word = |yes| if yes { "yes" } else { "no" };
    writeln!(out, "KV caches equal: {}", word(rows.iter().all(Row::is_memory_equal)))?;
    writeln!(out, "logit hashes equal: {}", word(equal))?;
    Ok(equal && rows.iter().all(Row::is_memory_equal))
}

/// The two ends of a text that is longer than a line.
fn shortened(text: &str) -> String {
    const END: usize = 36;
    let count = text.chars().count();
    if count <= 2 * END + 3 {
        return text.to_owned();
    }
    let head: String = text.chars().take(END).collect();
    let tail: String = text.chars().skip(count - END).collect();
    format!("{} … {}", head.trim_end(), tail.trim_start())
}

fn both(
    crew: &mut Crew,
    model: &Model,
    options: &Options,
    ask: Ask,
    out: &mut dyn Write,
) -> Result<Row, Failure> {
    let mut typewriter = Typewriter::new(out, model.tokenizer());
    let abort_after = options.abort_after(model.shape().layers)?;
    let on_token = &mut |token| typewriter.push(token);
    let (split, shipped, aborted) = split(crew, &ask, abort_after, on_token)?;
    typewriter.finish()?;
    let mut single = Run::start();
    let (answer, cache_hash) = single::answer(model, options.pace(), &ask, &mut |token| {
        single.push(token);
        Ok(())
    })?;
    (single.logit_hash, single.cache_hash) = (answer.logit_hash, cache_hash);
    Ok(Row { prompt_tokens: ask.tokens.len(), split, single, shipped, aborted })
}

/// Has a question answered by prefill and decode; if asked for, another one is aborted first.
fn split(
    crew: &mut Crew,
    ask: &Ask,
    abort_after: Option<usize>,
    on_token: &mut dyn FnMut(u32) -> Result<(), Failure>,
) -> Result<(Run, Shipped, Option<Abort>), Failure> {
    if let Some(layers) = abort_after {
        crew.order(Order::Abort(ask.backwards(), layers))?;
    }
    let mut run = Run::start();
    crew.order(Order::Ask(ask.clone()))?;
    // The prefill takes one request after the other.
    let (mut hashes, mut aborted, mut ends) = (None, None, Vec::new());
    loop {
        match crew.report()? {
            Report::Token(token) => {
                run.push(token);
                on_token(token)?;
            }
            Report::Answered { logit_hash, cache_hash } => hashes = Some((logit_hash, cache_hash)),
            Report::Aborted(report) => aborted = Some(report),
            Report::Shipped(shipped) => ends.push(Ok(shipped)),
            Report::Dropped(dropped) => ends.push(Err(dropped)),
            report => return Err(format!("out of turn: {report:?}").into()),
        }
        if let Some(hashes) = hashes
            && ends.len() == 1 + usize::from(abort_after.is_some())
        {
            (run.logit_hash, run.cache_hash) = hashes;
            let shipped = ends.pop().ok_or("nothing was shipped")?;
            let prefill = ends.pop().and_then(Result::err);
            let aborted = aborted.map(|decode| Abort { decode, prefill });
            return Ok((run, shipped.map_err(|dropped| dropped.why)?, aborted));
        }
    }
}

impl Run {
    fn start() -> Self {
        let start = Instant::now();
        Self { start, tokens: Vec::new(), first: None, second: None, logit_hash: 0, cache_hash: 0 }
    }

    fn push(&mut self, token: u32) {
        match self.tokens.len() {
            0 => self.first = Some(self.start.elapsed()),
            1 => self.second = Some(self.start.elapsed()),
            _ => {}
        }
        self.tokens.push(token);
    }
}

impl Row {
    /// The tokens too: the first one's logits are the prefill's and not in the hash.
    pub fn is_equal(&self) -> bool {
        self.split.logit_hash == self.single.logit_hash && self.split.tokens == self.single.tokens
    }

    /// Whether the KV cache is the same to the bit.
    pub fn is_memory_equal(&self) -> bool {
        self.split.cache_hash == self.single.cache_hash
    }
}
