//! The forward pass of a llama-like model: ids in, K and V into the cache, logits out.
//!
//! Each token's numbers come out with the same bits however its prompt is cut into chunks and
//! however many threads share the work, because every sum has one order (see `kernel`) and
//! attention only ever sees K and V as the cache keeps them, rounded to bf16.

use std::ops::Range;

use crate::attention::{Remembered, Rope};
use crate::cache::KvCache;
use crate::kernel::Kernel;
use crate::matmul::in_parts;
use crate::shape::Shape;
use crate::weights::{Layer, Model};

/// Errors of whatever the caller plugs in travel through the model as they are.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Called with a layer and the positions whose K and V are complete in it.
pub type LayerDone<'a, C> = dyn FnMut(usize, Range<usize>, &mut C) -> Result<(), Failure> + 'a;

/// What the model refuses to compute.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    #[error("the prompt is empty")]
    Empty,
    #[error("token {token} is outside the vocabulary of {vocabulary}")]
    Token { token: u32, vocabulary: usize },
    #[error("{tokens} tokens don't fit: the model and its cache have room for {room}")]
    TooLong { tokens: usize, room: usize },
}

/// How a prompt is worked through.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Tokens computed at once. K and V of a layer are complete after the last chunk only.
    pub chunk_tokens: usize,
    pub threads: usize,
}

impl Default for Pace {
    fn default() -> Self {
        Self { chunk_tokens: 512, threads: 1 }
    }
}

impl Model {
    /// Computes the tokens of a prompt, the first of which stands at `position`; gives back the
    /// logits of the last one.
    ///
    /// `layer_done(layer, positions, cache)` is called as soon as K and V of these positions are
    /// in the cache and this chunk needs nothing more of that layer from it: what it ships
    /// travels while the layer's attention and the layers after it are computed. Its error ends
    /// the prefill.
    pub fn prefill<C: KvCache>(
        &self,
        tokens: &[u32],
        position: usize,
        pace: Pace,
        cache: &mut C,
        layer_done: &mut LayerDone<C>,
    ) -> Result<Vec<f32>, Failure> {
        self.check(tokens, position, cache.capacity())?;
        let mut last = Vec::new();
        for (index, chunk) in tokens.chunks(pace.chunk_tokens.max(1)).enumerate() {
            let position = position + index * pace.chunk_tokens.max(1);
            let states = self.forward(chunk, position, pace.threads, cache, layer_done)?;
            last = states[states.len() - self.shape.width..].to_vec();
        }
        Ok(self.logits(&last))
    }

    /// Computes one more token, which stands at `position`, and gives back its logits.
    pub fn decode<C: KvCache>(
        &self,
        token: u32,
        position: usize,
        cache: &mut C,
    ) -> Result<Vec<f32>, Failure> {
        self.check(&[token], position, cache.capacity())?;
        let state = self.forward(&[token], position, 1, cache, &mut |_, _, _| Ok(()))?;
        Ok(self.logits(&state))
    }

    fn check(&self, tokens: &[u32], position: usize, capacity: usize) -> Result<(), PromptError> {
        let vocabulary = self.shape.vocabulary;
        let end = position.saturating_add(tokens.len());
        let room = capacity.min(self.shape.context);
        if tokens.is_empty() {
            return Err(PromptError::Empty);
        }
        if end > room {
            return Err(PromptError::TooLong { tokens: end, room });
        }
        match tokens.iter().find(|&&token| token as usize >= vocabulary) {
            Some(&token) => Err(PromptError::Token { token, vocabulary }),
            None => Ok(()),
        }
    }

    /// Takes a chunk through all layers; gives back the tokens' states.
    fn forward<C: KvCache>(
        &self,
        tokens: &[u32],
        position: usize,
        threads: usize,
        cache: &mut C,
        layer_done: &mut LayerDone<C>,
    ) -> Result<Vec<f32>, Failure> {
        let mut pass = Pass::new(self, tokens, position, threads);
        for (index, layer) in self.layers.iter().enumerate() {
            let query = pass.project(index, layer, cache)?;
            pass.remembered.gather(index, cache)?;
            layer_done(index, pass.positions.clone(), cache)?;
            pass.attend(layer, &query);
            pass.feed(layer);
        }
        Ok(pass.states)
    }

    fn logits(&self, state: &[f32]) -> Vec<f32> {
        let normed = normalise(self.kernel, state, &self.output_norm, self.shape.epsilon);
        let mut logits = vec![0.0; self.shape.vocabulary];
        self.kernel.multiply(&self.embedding, &normed, &mut logits, 1);
        logits
    }
}

/// One chunk on its way through the layers.
struct Pass {
    shape: Shape,
    kernel: Kernel,
    threads: usize,
    positions: Range<usize>,
    /// `tokens × width`
    states: Vec<f32>,
    rope: Rope,
    remembered: Remembered,
}

impl Pass {
    fn new(model: &Model, tokens: &[u32], position: usize, threads: usize) -> Self {
        let shape = model.shape;
        let positions = position..position + tokens.len();
        let mut states = vec![0.0; tokens.len() * shape.width];
        for (token, state) in tokens.iter().zip(states.chunks_exact_mut(shape.width)) {
            model.kernel.decode_row(&model.embedding, *token as usize, state);
        }
        let rope = Rope::new(&shape, positions.clone());
        let remembered = Remembered::new(&shape, positions.end);
        Self { shape, kernel: model.kernel, threads, positions, states, rope, remembered }
    }

    /// Computes Q, which it gives back, and K and V, which it puts into the cache.
    fn project<C: KvCache>(
        &self,
        index: usize,
        layer: &Layer,
        cache: &mut C,
    ) -> Result<Vec<f32>, Failure> {
        let shape = &self.shape;
        let input = normalise(self.kernel, &self.states, &layer.attention_norm, shape.epsilon);
        let mut query = self.multiply(&layer.query, &input);
        let mut key = self.multiply(&layer.key, &input);
        let value = self.multiply(&layer.value, &input);
        self.rope.turn(&mut query, shape.width);
        self.rope.turn(&mut key, shape.row());
        let key: Vec<u16> = key.into_iter().map(to_bf16).collect();
        let value: Vec<u16> = value.into_iter().map(to_bf16).collect();
        let rows = key.chunks_exact(shape.row()).zip(value.chunks_exact(shape.row()));
        for (position, (key, value)) in self.positions.clone().zip(rows) {
            cache.put(index, position, key, value)?;
        }
        Ok(query)
    }

    /// Adds to each token what it finds in the tokens before it and in itself.
    fn attend(&mut self, layer: &Layer, query: &[f32]) {
        let width = self.shape.width;
        let mut found = vec![0.0; query.len()];
        in_parts(self.threads, query, width, &mut found, width, |first, query, found| {
            let tokens = query.chunks_exact(width).zip(found.chunks_exact_mut(width));
            for (token, (query, found)) in tokens.enumerate() {
                let seen = self.positions.start + first + token + 1;
                self.remembered.attend(&self.shape, self.kernel, seen, query, found);
            }
        });
        let output = self.multiply(&layer.output, &found);
        add(&mut self.states, &output);
    }

    /// The feed-forward part: `down(silu(gate(x)) · up(x))`.
    fn feed(&mut self, layer: &Layer) {
        let input = normalise(self.kernel, &self.states, &layer.feed_norm, self.shape.epsilon);
        let mut gate = self.multiply(&layer.gate, &input);
        let up = self.multiply(&layer.up, &input);
        self.kernel.silu(&mut gate);
        gate.iter_mut().zip(&up).for_each(|(gate, up)| *gate *= up);
        let output = self.multiply(&layer.down, &gate);
        add(&mut self.states, &output);
    }

    fn multiply(&self, matrix: &crate::gguf::Tensor, x: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; x.len() / matrix.columns * matrix.rows];
        self.kernel.multiply(matrix, x, &mut out, self.threads);
        out
    }
}

/// Scales every token to a mean square of one, then each number by its weight.
fn normalise(kernel: Kernel, states: &[f32], weights: &[f32], epsilon: f32) -> Vec<f32> {
    let width = weights.len();
    let mut out = vec![0.0; states.len()];
    for (state, out) in states.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let scale = 1.0 / (kernel.dot(state, state) / width as f32 + epsilon).sqrt();
        for ((out, number), weight) in out.iter_mut().zip(state).zip(weights) {
            *out = number * scale * weight;
        }
    }
    out
}

fn add(states: &mut [f32], more: &[f32]) {
    states.iter_mut().zip(more).for_each(|(state, more)| *state += more);
}

/// Rounds to the nearest bf16, ties to even.
fn to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::VecCache;

    #[test]
    fn bf16_rounds_to_nearest_even() {
        let cases = [(1.0, 0x3f80), (-2.5, 0xc020), (1.0 + 1.0 / 256.0, 0x3f80)];
        for (value, bits) in cases {
            assert_eq!(to_bf16(value), bits, "{value}");
        }
        assert_eq!(to_bf16(1.0 + 3.0 / 256.0), 0x3f82);
    }

    #[test]
    fn prompts_that_do_not_fit_are_refused() {
        let model = Model::random(Shape::TINY, 1);
        let mut cache = VecCache::new(Shape::TINY, 8);
        let mut prefill = |tokens: &[u32], position| {
            let done = &mut |_, _, _: &mut VecCache| Ok(());
            let failure = model.prefill(tokens, position, Pace::default(), &mut cache, done);
            failure.err().map(|failure| failure.to_string())
        };
        assert_eq!(prefill(&[1; 8], 0), None);
        assert!(prefill(&[], 0).unwrap().contains("empty"));
        assert!(prefill(&[1; 9], 0).unwrap().contains("9 tokens don't fit"));
        assert!(prefill(&[1; 8], 1).unwrap().contains("room for 8"));
        assert!(prefill(&[1], usize::MAX).unwrap().contains("don't fit"));
        assert!(prefill(&[1, 301], 0).unwrap().contains("token 301"));
        assert!(model.decode(1, 8, &mut cache).is_err());
    }

    #[test]
    fn layers_are_reported_in_order_and_a_failure_ends_the_prefill() {
        let model = Model::random(Shape::TINY, 1);
        let mut cache = VecCache::new(Shape::TINY, 8);
        let pace = Pace { chunk_tokens: 5, threads: 1 };
        let mut seen = Vec::new();
        let failed = model.prefill(&[7; 8], 0, pace, &mut cache, &mut |layer, positions, _| {
            seen.push((layer, positions));
            if seen.len() == 5 { Err("the wire broke".into()) } else { Ok(()) }
        });
        assert_eq!(failed.unwrap_err().to_string(), "the wire broke");
        assert_eq!(seen, [(0, 0..5), (1, 0..5), (2, 0..5), (0, 5..8), (1, 5..8)]);
    }

    /// K and V of a layer are final when the layer is reported: shipping may start there.
    #[test]
    fn a_reported_layer_changes_no_more() {
        let model = Model::random(Shape::TINY, 1);
        let mut cache = VecCache::new(Shape::TINY, 8);
        let rows = |cache: &VecCache, layer| {
            let mut rows = [vec![0; 8 * Shape::TINY.row()], vec![0; 8 * Shape::TINY.row()]];
            let [k, v] = &mut rows;
            cache.gather(layer, 8, k, v).unwrap();
            rows
        };
        let mut reported = Vec::new();
        let done = &mut |layer, _, cache: &mut VecCache| {
            reported.push(rows(cache, layer));
            Ok(())
        };
        model.prefill(&[9; 8], 0, Pace::default(), &mut cache, done).unwrap();
        for (layer, reported) in reported.iter().enumerate() {
            assert_eq!(*reported, rows(&cache, layer));
            assert!(reported.iter().flatten().any(|&number| number != 0));
        }
    }
}
