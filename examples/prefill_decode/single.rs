//! The role `single`: prefill and decode in one process, the run that the others must equal.

use std::io::Write;
use std::time::Instant;

use crate::cache::VecCache;
use crate::fetch;
use crate::generate::{generate, likeliest};
use crate::llama::{Failure, Pace};
use crate::text::Streamer;

/// What to ask and how.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// What to ask the model.
    #[arg(long, default_value = "What is the capital of France?")]
    pub prompt: String,
    /// Tokens to answer with, at most.
    #[arg(long, default_value_t = 64)]
    pub max_tokens: usize,
    /// Prompt tokens computed at once.
    #[arg(long, default_value_t = Pace::default().chunk_tokens)]
    pub chunk_tokens: usize,
    /// Threads that share the prefill.
    #[arg(long, default_value_t = Pace::default().threads)]
    pub threads: usize,
    /// Use random weights: nothing is fetched, and the answer is nonsense.
    #[arg(long)]
    pub random: bool,
}

pub fn run(options: &Options) -> Result<(), Failure> {
    let model = if options.random { fetch::random() } else { fetch::model()? };
    let prompt = model.tokenizer().chat(&options.prompt);
    let mut cache = VecCache::new(*model.shape(), prompt.len() + options.max_tokens);

    let pace = Pace { chunk_tokens: options.chunk_tokens, threads: options.threads };
    let start = Instant::now();
    let logits = model.prefill(&prompt, 0, pace, &mut cache, &mut |_, _, _| Ok(()))?;
    let prefill = start.elapsed();

    let mut streamer = Streamer::default();
    let print = |text: &str| -> Result<(), Failure> {
        print!("{text}");
        Ok(std::io::stdout().flush()?)
    };
    let first = likeliest(&logits);
    let answer =
        generate(&model, first, prompt.len(), options.max_tokens, &mut cache, &mut |token| {
            print(&streamer.push(&model.tokenizer().piece(token)))
        })?;
    print(&streamer.finish())?;

    let speed = |tokens: usize, seconds: f64| tokens as f64 / seconds;
    println!();
    println!(
        "prefill {} tokens, {:.1} tok/s; answer {} tokens, {:.1} tok/s; logit hash {:016x}",
        prompt.len(),
        speed(prompt.len(), prefill.as_secs_f64()),
        answer.tokens.len(),
        speed(answer.steps, answer.elapsed.as_secs_f64()),
        answer.logit_hash,
    );
    Ok(())
}
