//! Greedy decoding, and the hash by which two runs are told equal.

use std::time::{Duration, Instant};

use crate::cache::KvCache;
use crate::llama::Failure;
use crate::weights::Model;

/// FNV-1a, over words where it is defined over bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    pub fn add(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(0x100_0000_01b3);
    }

    /// The bits of every logit. Tokens alone may not notice one wrong bit in the cache; this does.
    /// Comparable between runs of one build on one kind of CPU.
    pub fn add_logits(&mut self, logits: &[f32]) {
        logits.iter().for_each(|logit| self.add(u64::from(logit.to_bits())));
    }

    pub fn value(self) -> u64 {
        self.0
    }
}

/// The likeliest token; the first of equals.
pub fn likeliest(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (index, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = index;
        }
    }
    best as u32
}

/// What came of decoding.
pub struct Answer {
    /// The first token and those decoded after it, without the one that ends the answer.
    pub tokens: Vec<u32>,
    /// Over the logits of every decoded step. The first token's belong to the prefill and don't
    /// count.
    pub logit_hash: u64,
    pub steps: usize,
    pub elapsed: Duration,
}

/// Decodes greedily from the prefill's first token, which will stand at `position`, until the
/// model ends its answer or has said `max_tokens`. `on_token` sees every token of the answer as
/// soon as it is known; its error ends the decoding.
pub fn generate<C: KvCache>(
    model: &Model,
    first: u32,
    position: usize,
    max_tokens: usize,
    cache: &mut C,
    on_token: &mut dyn FnMut(u32) -> Result<(), Failure>,
) -> Result<Answer, Failure> {
    let start = Instant::now();
    let mut hash = Fnv::default();
    let mut tokens = Vec::new();
    let mut steps = 0;
    let mut token = first;
    while tokens.len() < max_tokens && !model.tokenizer().is_end(token) {
        tokens.push(token);
        on_token(token)?;
        if tokens.len() < max_tokens {
            let logits = model.decode(token, position + steps, cache)?;
            hash.add_logits(&logits);
            token = likeliest(&logits);
            steps += 1;
        }
    }
    Ok(Answer { tokens, logit_hash: hash.value(), steps, elapsed: start.elapsed() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::VecCache;
    use crate::shape::Shape;

    #[test]
    fn every_bit_of_every_logit_counts() {
        let hash = |logits: &[f32]| {
            let mut hash = Fnv::default();
            hash.add_logits(logits);
            hash.value()
        };
        let logits = [1.0, 2.0, 3.0];
        assert_eq!(hash(&logits), hash(&logits));
        assert_ne!(hash(&logits), hash(&[2.0, 1.0, 3.0]));
        assert_ne!(hash(&[0.0]), hash(&[-0.0]));
        for index in 0..logits.len() * 32 {
            let mut flipped = logits;
            let bits = flipped[index / 32].to_bits() ^ 1 << (index % 32);
            flipped[index / 32] = f32::from_bits(bits);
            assert_ne!(hash(&logits), hash(&flipped));
        }
    }

    #[test]
    fn the_first_of_the_likeliest_wins() {
        assert_eq!(likeliest(&[0.5, 2.0, -1.0, 2.0]), 1);
        assert_eq!(likeliest(&[f32::NAN, 1.0]), 0);
    }

    #[test]
    fn answers_have_the_asked_length_and_stop_on_failure() {
        let model = Model::random(Shape::TINY, 3);
        let mut cache = VecCache::new(Shape::TINY, 16);
        let answer = generate(&model, 5, 0, 4, &mut cache, &mut |_| Ok(())).unwrap();
        assert_eq!((answer.tokens.len(), answer.tokens[0], answer.steps), (4, 5, 3));
        let none = generate(&model, 5, 0, 0, &mut cache, &mut |_| Ok(())).unwrap();
        assert_eq!((none.tokens.len(), none.steps), (0, 0));
        let mut left = 2;
        let stopped = generate(&model, 5, 0, 4, &mut cache, &mut |_| {
            left -= 1;
            if left == 0 { Err("the terminal is gone".into()) } else { Ok(()) }
        });
        assert_eq!(stopped.err().unwrap().to_string(), "the terminal is gone");
    }
}
