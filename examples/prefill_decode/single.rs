//! The role `single`: prefill and decode in one process, the run that the others must equal.

use std::io::Write;
use std::time::Instant;

use crate::cache::{VecCache, cache_hash};
use crate::fetch;
use crate::generate::{Answer, generate, likeliest};
use crate::llama::{Failure, Pace};
use crate::messages::Ask;
use crate::options::Options;
use crate::typewriter::Typewriter;
use crate::weights::Model;

pub fn run(options: &Options) -> Result<(), Failure> {
    let model = if options.random { fetch::random() } else { fetch::model()? };
    (0..options.requests.into())
        .try_for_each(|request| show(&model, options, request, &mut std::io::stdout()).map(drop))
}

/// Answers a prompt with a cache in plain memory, and hashes that. `on_token` sees the tokens as
/// they come.
pub fn answer(
    model: &Model,
    pace: Pace,
    ask: &Ask,
    on_token: &mut dyn FnMut(u32) -> Result<(), Failure>,
) -> Result<(Answer, u64), Failure> {
    let room = ask.tokens.len() + ask.max_tokens.saturating_sub(1);
    let mut cache = VecCache::new(*model.shape(), room);
    let none = &mut |_, _, _: &mut VecCache| Ok(());
    let logits = model.prefill(&ask.tokens, 0, pace, &mut cache, none)?;
    let (first, position) = (likeliest(&logits), ask.tokens.len());
    let answer = generate(model, first, position, ask.max_tokens, &mut cache, on_token)?;
    let cache_hash = cache_hash(&cache, model.shape(), position + answer.steps)?;
    Ok((answer, cache_hash))
}

/// Writes the answer as it comes, then one line of figures.
fn show(
    model: &Model,
    options: &Options,
    request: usize,
    out: &mut dyn Write,
) -> Result<Answer, Failure> {
    let ask = options.ask(model, request, model.shape().context)?;
    let start = Instant::now();
    let mut typewriter = Typewriter::new(out, model.tokenizer());
    let (answer, _) = answer(model, options.pace(), &ask, &mut |token| typewriter.push(token))?;
    let prefill = start.elapsed().saturating_sub(answer.elapsed);
    typewriter.finish()?;
    writeln!(
        out,
        "prefill {} tokens, {:.1} tok/s; answer {} tokens, {:.1} tok/s; logit hash {:016x}",
        ask.tokens.len(),
        ask.tokens.len() as f64 / prefill.as_secs_f64(),
        answer.tokens.len(),
        answer.steps as f64 / answer.elapsed.as_secs_f64(),
        answer.logit_hash,
    )?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::Shape;
    use crate::text::Tokenizer;

    #[test]
    fn the_text_and_its_hash_are_printed() {
        let model = Model::random(Shape::TINY, 5);
        let mut out = Vec::new();
        let answer = show(&model, &Options::tiny("why?", 7), 0, &mut out).unwrap();
        assert_eq!((answer.tokens.len(), answer.steps), (7, 6));
        let mut text = Vec::new();
        let mut typewriter = Typewriter::new(&mut text, &Tokenizer::Bytes);
        answer.tokens.iter().for_each(|&token| typewriter.push(token).unwrap());
        typewriter.finish().unwrap();
        let out = String::from_utf8(out).unwrap();
        let figures = out.strip_prefix(std::str::from_utf8(&text).unwrap()).unwrap().trim_end();
        assert!(figures.starts_with("prefill 4 tokens, "), "{figures}");
        assert!(figures.ends_with(&format!("{:016x}", answer.logit_hash)), "{figures}");
    }

    /// The context is full after its last token has been fed back and one more was chosen.
    #[test]
    fn the_answer_ends_with_the_context() {
        let model = Model::random(Shape::TINY, 5);
        let options = Options::tiny(&"x".repeat(Shape::TINY.context - 3), usize::MAX);
        let answer = show(&model, &options, 0, &mut Vec::new()).unwrap();
        assert_eq!((answer.tokens.len(), answer.steps), (4, 3));
    }

    #[test]
    fn a_prompt_beyond_the_context_is_refused() {
        let model = Model::random(Shape::TINY, 5);
        let options = Options::tiny(&"x".repeat(Shape::TINY.context + 1), 1);
        let failure = show(&model, &options, 0, &mut Vec::new()).err().unwrap();
        assert!(failure.to_string().contains("don't fit"), "{failure}");
    }
}
