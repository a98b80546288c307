//! The model's weights: read from a GGUF file, or made up from a seed where there is no file.

use std::path::Path;

use crate::gguf::{BLOCK_WEIGHTS, Encoding, Gguf, GgufError, Span, Tensor};
use crate::kernel::{Kernel, LANES};
use crate::shape::Shape;
use crate::text::Tokenizer;

/// Tokens in a cache block: with it one layer of a block of SmolLM2 is exactly three pages.
const BLOCK_TOKENS: usize = 16;

/// Everything one process needs to run the model. Immutable; share it between threads by reference.
pub struct Model {
    pub(crate) shape: Shape,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) kernel: Kernel,
    /// Row per token of the vocabulary; the output matrix is the same one.
    pub(crate) embedding: Tensor,
    pub(crate) layers: Vec<Layer>,
    pub(crate) output_norm: Vec<f32>,
}

pub(crate) struct Layer {
    pub attention_norm: Vec<f32>,
    pub query: Tensor,
    pub key: Tensor,
    pub value: Tensor,
    pub output: Tensor,
    pub feed_norm: Vec<f32>,
    pub gate: Tensor,
    pub up: Tensor,
    pub down: Tensor,
}

impl Model {
    /// Reads a llama-like model whose output is tied to its embedding.
    pub fn load(path: &Path) -> Result<Self, GgufError> {
        Self::from_gguf(&Gguf::open(path)?)
    }

    pub fn from_gguf(gguf: &Gguf) -> Result<Self, GgufError> {
        let shape = read_shape(gguf)?;
        let layer = |index| read_layer(gguf, &shape, index);
        Ok(Self {
            shape,
            tokenizer: Tokenizer::from_gguf(gguf, shape.vocabulary)?,
            kernel: Kernel::best(),
            embedding: gguf.tensor("token_embd.weight", shape.vocabulary, shape.width)?,
            layers: (0..shape.layers).map(layer).collect::<Result<_, _>>()?,
            output_norm: gguf.floats("output_norm.weight", shape.width)?,
        })
    }

    /// Random weights of any shape: the same arithmetic and the same cache, but nonsense for text.
    pub fn random(shape: Shape, seed: u64) -> Self {
        let mut random = Random(seed.max(1));
        let layers = (0..shape.layers).map(|_| random.layer(&shape)).collect();
        Self {
            shape,
            tokenizer: Tokenizer::Bytes,
            kernel: Kernel::best(),
            embedding: random.q8_0(shape.vocabulary, shape.width),
            layers,
            output_norm: vec![1.0; shape.width],
        }
    }

    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }
}

fn read_shape(gguf: &Gguf) -> Result<Shape, GgufError> {
    let unexpected = |key: &str, wanted| GgufError::Unexpected { key: key.into(), wanted };
    if gguf.text("general.architecture")? != "llama" {
        return Err(unexpected("general.architecture", "`llama`, the only one known here"));
    }
    let heads = gguf.integer("llama.attention.head_count")?;
    let width = gguf.integer("llama.embedding_length")?;
    let shape = Shape {
        layers: gguf.integer("llama.block_count")?,
        width,
        hidden: gguf.integer("llama.feed_forward_length")?,
        heads,
        kv_heads: gguf.integer("llama.attention.head_count_kv")?,
        head_dim: width.checked_div(heads).unwrap_or(0),
        vocabulary: gguf.integer("llama.vocab_size")?,
        context: gguf.integer("llama.context_length")?,
        rope_base: gguf.float("llama.rope.freq_base")?,
        epsilon: gguf.float("llama.attention.layer_norm_rms_epsilon")?,
        block_tokens: BLOCK_TOKENS,
    };
    if is_usable(&shape) {
        Ok(shape)
    } else {
        Err(unexpected("llama.*", "a shape that fits together"))
    }
}

/// What the arithmetic relies on: nothing is zero, heads tile the width, rows are whole blocks.
fn is_usable(shape: &Shape) -> bool {
    let Shape { layers, width, hidden, heads, kv_heads, head_dim, vocabulary, .. } = *shape;
    // 2^20 is beyond any model this example can run, and keeps every product inside a usize.
    [layers, width, hidden, heads, kv_heads, head_dim, vocabulary]
        .iter()
        .all(|count| (1..=1 << 20).contains(count))
        && heads * head_dim == width
        && heads.is_multiple_of(kv_heads)
        && head_dim.is_multiple_of(LANES)
        && width.is_multiple_of(BLOCK_WEIGHTS)
        && hidden.is_multiple_of(BLOCK_WEIGHTS)
}

fn read_layer(gguf: &Gguf, shape: &Shape, index: usize) -> Result<Layer, GgufError> {
    let name = |part: &str| format!("blk.{index}.{part}.weight");
    let floats = |part| gguf.floats(&name(part), shape.width);
    let tensor = |part, rows, columns| gguf.tensor(&name(part), rows, columns);
    Ok(Layer {
        attention_norm: floats("attn_norm")?,
        query: tensor("attn_q", shape.width, shape.width)?,
        key: tensor("attn_k", shape.row(), shape.width)?,
        value: tensor("attn_v", shape.row(), shape.width)?,
        output: tensor("attn_output", shape.width, shape.width)?,
        feed_norm: floats("ffn_norm")?,
        gate: tensor("ffn_gate", shape.hidden, shape.width)?,
        up: tensor("ffn_up", shape.hidden, shape.width)?,
        down: tensor("ffn_down", shape.width, shape.hidden)?,
    })
}

/// A small xorshift generator: the same weights from the same seed, everywhere.
pub(crate) struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn layer(&mut self, shape: &Shape) -> Layer {
        Layer {
            attention_norm: vec![1.0; shape.width],
            query: self.q4_1(shape.width, shape.width),
            key: self.q4_1(shape.row(), shape.width),
            value: self.q4_1(shape.row(), shape.width),
            output: self.q4_1(shape.width, shape.width),
            feed_norm: vec![1.0; shape.width],
            gate: self.q4_1(shape.hidden, shape.width),
            up: self.q4_1(shape.hidden, shape.width),
            down: self.q4_1(shape.width, shape.hidden),
        }
    }

    /// Nibbles of a uniform spread, scaled so that a product keeps the size of its input.
    pub fn q4_1(&mut self, rows: usize, columns: usize) -> Tensor {
        // The nibbles 0..=15 have a mean of 7.5 and a deviation of 4.6.
        let scale = 1.0 / (4.6 * (columns as f32).sqrt());
        let head = [half(scale), half(-7.5 * scale)].concat();
        self.tensor(Encoding::Q4_1, rows, columns, &head)
    }

    pub fn q8_0(&mut self, rows: usize, columns: usize) -> Tensor {
        // Signed bytes have a deviation of 74.
        let head = half(1.0 / (74.0 * (columns as f32).sqrt()));
        self.tensor(Encoding::Q8_0, rows, columns, &head)
    }

    /// Blocks of one head each and random bytes after it.
    fn tensor(&mut self, encoding: Encoding, rows: usize, columns: usize, head: &[u8]) -> Tensor {
        let blocks = rows * columns / BLOCK_WEIGHTS;
        let words = if encoding == Encoding::Q4_1 { 2 } else { 4 };
        let mut bytes = Vec::with_capacity(blocks * (head.len() + words * 8));
        for _ in 0..blocks {
            bytes.extend_from_slice(head);
            (0..words).for_each(|_| bytes.extend_from_slice(&self.next().to_le_bytes()));
        }
        Tensor { encoding, rows, columns, data: Span::from(bytes) }
    }
}

/// A number between 2^-14 and 2^15 in size as the two bytes of an f16, cut to its precision.
fn half(value: f32) -> [u8; 2] {
    let bits = value.to_bits();
    let exponent_and_fraction = ((bits & 0x7fff_ffff) - (112 << 23)) >> 13;
    ((bits >> 16 & 0x8000) as u16 | exponent_and_fraction as u16).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_weights_everywhere() {
        let weights = |seed| Model::random(Shape::TINY, seed).layers[2].gate.data.to_vec();
        assert_eq!(weights(5), weights(5));
        assert_ne!(weights(5), weights(6));
    }

    #[test]
    fn random_weights_keep_the_size_of_their_input() {
        let mut random = Random(11);
        let x: Vec<f32> = (0..576).map(|_| (random.next() as i32 as f32) / 1.24e9).collect();
        for matrix in [random.q4_1(300, 576), random.q8_0(300, 576)] {
            let mut out = vec![0.0; 300];
            Kernel::best().multiply(&matrix, &x, &mut out, 1);
            let mean_square = out.iter().map(|out| out * out).sum::<f32>() / 300.0;
            assert!((0.7..1.4).contains(&mean_square), "{mean_square}");
        }
    }

    #[test]
    fn halves_are_written_as_they_are_read() {
        assert_eq!(half(1.0), [0x00, 0x3c]);
        assert_eq!(half(-0.375), [0x00, 0xb6]);
    }

    #[test]
    fn shapes_that_do_not_fit_together_are_refused() {
        let shape = Shape::SMOLLM2;
        assert!(is_usable(&shape) && is_usable(&Shape::TINY));
        for wrong in [
            Shape { heads: 0, width: 0, ..shape },
            Shape { kv_heads: 0, ..shape },
            Shape { kv_heads: 2, ..shape },
            Shape { width: 577, ..shape },
            Shape { hidden: 1500, ..shape },
            Shape { layers: usize::MAX, ..shape },
        ] {
            assert!(!is_usable(&wrong), "{wrong:?}");
        }
    }

    #[test]
    fn the_real_file_has_the_shape_we_say() {
        let Some(gguf) = crate::tests::model_file() else { return };
        assert_eq!(*Model::from_gguf(&gguf).unwrap().shape(), Shape::SMOLLM2);
    }
}
