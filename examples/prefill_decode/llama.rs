//! The forward pass of a llama-like model: ids in, K and V into the cache, logits out.
//!
//! Each token's numbers come out with the same bits however its prompt is cut into chunks and
//! however many threads share the work, because every sum has one order (see `matmul`) and
//! attention only ever sees K and V as the cache keeps them, rounded to bf16.

use std::ops::Range;

use crate::cache::KvCache;
use crate::matmul::{Kernel, in_parts};
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
            let query = pass.project(index, layer, cache);
            pass.remembered.gather(index, cache);
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
    fn project<C: KvCache>(&self, index: usize, layer: &Layer, cache: &mut C) -> Vec<f32> {
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
            cache.put(index, position, key, value);
        }
        query
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

/// K and V of a layer as attention reads them: gathered from the cache, widened to f32.
struct Remembered {
    bits: [Vec<u16>; 2],
    keys: Vec<f32>,
    values: Vec<f32>,
    tokens: usize,
}

impl Remembered {
    fn new(shape: &Shape, tokens: usize) -> Self {
        let numbers = tokens * shape.row();
        let bits = [vec![0; numbers], vec![0; numbers]];
        Self { bits, keys: vec![0.0; numbers], values: vec![0.0; numbers], tokens }
    }

    fn gather<C: KvCache>(&mut self, layer: usize, cache: &C) {
        let [keys, values] = &mut self.bits;
        cache.gather(layer, self.tokens, keys, values);
        widen(keys, &mut self.keys);
        widen(values, &mut self.values);
    }

    /// All heads of one token over the first `seen` tokens.
    fn attend(&self, shape: &Shape, kernel: Kernel, seen: usize, query: &[f32], found: &mut [f32]) {
        let (dim, stride) = (shape.head_dim, shape.row());
        let mut scores = vec![0.0; seen];
        let heads = query.chunks_exact(dim).zip(found.chunks_exact_mut(dim));
        for (head, (query, found)) in heads.enumerate() {
            let column = head / (shape.heads / shape.kv_heads) * dim;
            kernel.scores(query, &self.keys[column..], stride, &mut scores);
            soften(kernel, &mut scores, 1.0 / (dim as f32).sqrt());
            kernel.mix(&scores, &self.values[column..], stride, found);
        }
    }
}

/// Softmax of scaled scores, in place.
fn soften(kernel: Kernel, scores: &mut [f32], scale: f32) {
    scores.iter_mut().for_each(|score| *score *= scale);
    let highest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    kernel.exp(scores, highest);
    let sum: f32 = scores.iter().sum();
    scores.iter_mut().for_each(|score| *score /= sum);
}

/// Rotary embedding: neighbouring numbers are turned by an angle that grows with the position.
struct Rope {
    pairs: usize,
    /// Sine and cosine, `positions × pairs`.
    turns: Vec<(f32, f32)>,
}

impl Rope {
    fn new(shape: &Shape, positions: Range<usize>) -> Self {
        let pairs = shape.head_dim / 2;
        let turn = |position: usize, pair: usize| {
            let exponent = -(pair as f64) / pairs as f64;
            (position as f64 * f64::from(shape.rope_base).powf(exponent)).sin_cos()
        };
        let turns = positions.flat_map(|position| (0..pairs).map(move |pair| (position, pair)));
        let turns = turns.map(|(position, pair)| turn(position, pair));
        Self { pairs, turns: turns.map(|(sin, cos)| (sin as f32, cos as f32)).collect() }
    }

    /// Turns every head of every token; a token has `width` numbers.
    fn turn(&self, numbers: &mut [f32], width: usize) {
        let tokens = numbers.chunks_exact_mut(width).zip(self.turns.chunks_exact(self.pairs));
        for (token, turns) in tokens {
            let (pairs, _) = token.as_chunks_mut::<2>();
            for ([a, b], (sin, cos)) in pairs.iter_mut().zip(turns.iter().cycle()) {
                (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
            }
        }
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

fn widen(numbers: &[u16], out: &mut [f32]) {
    numbers.iter().zip(out).for_each(|(n, out)| *out = f32::from_bits(u32::from(*n) << 16));
}
