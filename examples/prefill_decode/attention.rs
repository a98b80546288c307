//! Attention: K and V as the cache keeps them, mixed by how well they answer each token's Q.

use std::ops::Range;

use crate::cache::KvCache;
use crate::kernel::Kernel;
use crate::llama::Failure;
use crate::shape::Shape;

/// K and V of a layer as attention reads them: gathered from the cache, widened to f32.
pub struct Remembered {
    bits: [Vec<u16>; 2],
    keys: Vec<f32>,
    values: Vec<f32>,
    tokens: usize,
}

impl Remembered {
    pub fn new(shape: &Shape, tokens: usize) -> Self {
        let numbers = tokens * shape.row();
        let bits = [vec![0; numbers], vec![0; numbers]];
        Self { bits, keys: vec![0.0; numbers], values: vec![0.0; numbers], tokens }
    }

    /// Takes a layer's K and V from the cache.
    pub fn gather<C: KvCache>(&mut self, layer: usize, cache: &C) -> Result<(), Failure> {
        let [keys, values] = &mut self.bits;
        cache.gather(layer, self.tokens, keys, values)?;
        widen(keys, &mut self.keys);
        widen(values, &mut self.values);
        Ok(())
    }

    /// All heads of one token over the first `seen` tokens.
    pub fn attend(
        &self,
        shape: &Shape,
        kernel: Kernel,
        seen: usize,
        query: &[f32],
        found: &mut [f32],
    ) {
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
pub struct Rope {
    pairs: usize,
    /// Sine and cosine, `positions × pairs`.
    turns: Vec<(f32, f32)>,
}

impl Rope {
    pub fn new(shape: &Shape, positions: Range<usize>) -> Self {
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
    pub fn turn(&self, numbers: &mut [f32], width: usize) {
        let tokens = numbers.chunks_exact_mut(width).zip(self.turns.chunks_exact(self.pairs));
        for (token, turns) in tokens {
            let (pairs, _) = token.as_chunks_mut::<2>();
            for ([a, b], (sin, cos)) in pairs.iter_mut().zip(turns.iter().cycle()) {
                (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
            }
        }
    }
}

fn widen(numbers: &[u16], out: &mut [f32]) {
    numbers.iter().zip(out).for_each(|(n, out)| *out = f32::from_bits(u32::from(*n) << 16));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widening_keeps_the_value() {
        let mut wide = [0.0];
        widen(&[0xc020], &mut wide);
        assert_eq!(wide, [-2.5]);
    }

    /// Turning keeps lengths, does nothing at position 0, and products only depend on distance.
    #[test]
    fn rope_measures_distance() {
        let shape = Shape { heads: 1, kv_heads: 1, width: 16, ..Shape::TINY };
        let numbers: Vec<f32> = (0..16).map(|n| (n as f32 * 0.7).sin()).collect();
        let turned = |position: usize| {
            let mut numbers = numbers.clone();
            Rope::new(&shape, position..position + 1).turn(&mut numbers, 16);
            numbers
        };
        let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        assert_eq!(turned(0), numbers);
        assert!((product(&turned(9), &turned(9)) - product(&numbers, &numbers)).abs() < 1e-4);
        assert!((product(&turned(3), &turned(8)) - product(&turned(40), &turned(45))).abs() < 1e-4);
        assert!((product(&turned(3), &turned(8)) - product(&turned(3), &turned(4))).abs() > 1e-2);
    }

    #[test]
    fn softmax_sums_to_one_and_survives_large_scores() {
        let mut scores = [1e4, 1e4 - 10.0, -1e4];
        soften(Kernel::best(), &mut scores, 0.1);
        assert!((scores.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        assert!((scores[0] / scores[1] - 1.0_f32.exp()).abs() < 1e-4);
    }
}
