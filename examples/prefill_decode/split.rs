//! The parent: has every question answered by the split pair and once more in one process, shows
//! the answer as it comes, and compares the two.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::crew::Crew;
use crate::fetch;
use crate::kv::POOL_TOKENS;
use crate::llama::Failure;
use crate::messages::{Ask, Order, Report, Shipped};
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
}

/// One question, answered twice.
#[derive(Debug)]
pub struct Row {
    pub prompt_tokens: usize,
    pub split: Run,
    pub single: Run,
    pub shipped: Shipped,
}

/// Whether all hashes are equal.
pub fn run(options: &Options) -> Result<bool, Failure> {
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
    writeln!(out, "logit hashes equal: {}", if equal { "yes" } else { "no" })?;
    Ok(equal)
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
    let (split, shipped) = split(crew, &ask, &mut |token| typewriter.push(token))?;
    typewriter.finish()?;
    let mut single = Run::start();
    let answer = single::answer(model, options.pace(), &ask, &mut |token| {
        single.push(token);
        Ok(())
    })?;
    single.logit_hash = answer.logit_hash;
    Ok(Row { prompt_tokens: ask.tokens.len(), split, single, shipped })
}

/// Has a question answered by prefill and decode.
fn split(
    crew: &mut Crew,
    ask: &Ask,
    on_token: &mut dyn FnMut(u32) -> Result<(), Failure>,
) -> Result<(Run, Shipped), Failure> {
    let mut run = Run::start();
    crew.order(Order::Ask(ask.clone()))?;
    let (mut hash, mut shipped) = (None, None);
    loop {
        match crew.report()? {
            Report::Token(token) => {
                run.push(token);
                on_token(token)?;
            }
            Report::Answered { logit_hash } => hash = Some(logit_hash),
            Report::Shipped(report) => shipped = Some(report),
            report => return Err(format!("out of turn: {report:?}").into()),
        }
        if let (Some(hash), Some(shipped)) = (hash, &shipped) {
            run.logit_hash = hash;
            return Ok((run, shipped.clone()));
        }
    }
}

impl Run {
    fn start() -> Self {
        let start = Instant::now();
        Self { start, tokens: Vec::new(), first: None, second: None, logit_hash: 0 }
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
}
