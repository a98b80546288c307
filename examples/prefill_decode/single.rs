//! The role `single`: prefill and decode in one process, the run that the others must equal.

use std::io::Write;
use std::time::{Duration, Instant};

use crate::cache::VecCache;
use crate::fetch;
use crate::generate::{Answer, generate, likeliest};
use crate::llama::{Failure, Pace};
use crate::text::Streamer;
use crate::weights::Model;

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

impl Options {
    pub fn pace(&self) -> Pace {
        Pace { chunk_tokens: self.chunk_tokens, threads: self.threads }
    }
}

pub fn run(options: &Options) -> Result<(), Failure> {
    let model = if options.random { fetch::random() } else { fetch::model()? };
    answer(&model, options, &mut std::io::stdout()).map(drop)
}

/// Writes the answer as it comes, then one line of figures.
fn answer(model: &Model, options: &Options, out: &mut dyn Write) -> Result<Answer, Failure> {
    let tokenizer = model.tokenizer();
    let prompt = tokenizer.chat(&options.prompt);
    let room = prompt.len().saturating_add(options.max_tokens).min(model.shape().context);
    let mut cache = VecCache::new(*model.shape(), room);

    let start = Instant::now();
    let shipped = &mut |_, _, _: &mut VecCache| Ok(());
    let logits = model.prefill(&prompt, 0, options.pace(), &mut cache, shipped)?;
    let prefill = start.elapsed();

    let mut streamer = Streamer::default();
    let first = likeliest(&logits);
    let max_tokens = options.max_tokens.min(room - prompt.len() + 1);
    let answer = generate(model, first, prompt.len(), max_tokens, &mut cache, &mut |token| {
        write!(out, "{}", streamer.push(&tokenizer.piece(token)))?;
        Ok(out.flush()?)
    })?;
    writeln!(out, "{}", streamer.finish())?;

    let speed = |tokens: usize, time: Duration| tokens as f64 / time.as_secs_f64();
    writeln!(
        out,
        "prefill {} tokens, {:.1} tok/s; answer {} tokens, {:.1} tok/s; logit hash {:016x}",
        prompt.len(),
        speed(prompt.len(), prefill),
        answer.tokens.len(),
        speed(answer.steps, answer.elapsed),
        answer.logit_hash,
    )?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::Shape;
    use crate::text::Tokenizer;

    fn options(prompt: &str, max_tokens: usize) -> Options {
        let Pace { chunk_tokens, threads } = Pace::default();
        Options { prompt: prompt.into(), max_tokens, chunk_tokens, threads, random: true }
    }

    #[test]
    fn the_text_and_its_hash_are_printed() {
        let model = Model::random(Shape::TINY, 5);
        let mut out = Vec::new();
        let answer = answer(&model, &options("why?", 7), &mut out).unwrap();
        assert_eq!((answer.tokens.len(), answer.steps), (7, 6));
        let out = String::from_utf8(out).unwrap();
        let (text, figures) = out.trim_end().rsplit_once('\n').unwrap();
        let bytes: Vec<u8> =
            answer.tokens.iter().flat_map(|&t| Tokenizer::Bytes.piece(t)).collect();
        assert_eq!(text, String::from_utf8_lossy(&bytes));
        assert!(figures.starts_with("prefill 4 tokens, "), "{figures}");
        assert!(figures.ends_with(&format!("{:016x}", answer.logit_hash)), "{figures}");
    }

    /// The context is full after its last token has been fed back and one more was chosen.
    #[test]
    fn the_answer_ends_with_the_context() {
        let model = Model::random(Shape::TINY, 5);
        let prompt = "x".repeat(Shape::TINY.context - 3);
        let answer = answer(&model, &options(&prompt, usize::MAX), &mut Vec::new()).unwrap();
        assert_eq!((answer.tokens.len(), answer.steps), (4, 3));
    }

    #[test]
    fn a_prompt_beyond_the_context_is_refused() {
        let model = Model::random(Shape::TINY, 5);
        let prompt = "x".repeat(Shape::TINY.context + 1);
        let failure = answer(&model, &options(&prompt, 1), &mut Vec::new()).err().unwrap();
        assert!(failure.to_string().contains("don't fit"), "{failure}");
    }
}
