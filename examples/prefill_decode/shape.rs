//! The model's sizes, and the layout of its KV cache: what the two processes must agree on.
//!
//! A block holds [`Shape::block_tokens`] tokens as `layer → [K|V] → token → kv_head → dim` in
//! bf16, so a layer of a block is one contiguous slice that can leave as soon as that layer is
//! computed, and a whole block is contiguous too. For SmolLM2 a slice is 12,288 bytes, exactly
//! three pages of 4 KiB, and a block 368,640.

use std::ops::Range;

/// Sizes of a llama-like model and of its cache blocks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    pub layers: usize,
    /// Numbers in a token's state.
    pub width: usize,
    /// Numbers inside the feed-forward part.
    pub hidden: usize,
    pub heads: usize,
    /// Heads of K and V; each serves `heads / kv_heads` heads of Q.
    pub kv_heads: usize,
    pub head_dim: usize,
    pub vocabulary: usize,
    /// The most tokens the model was trained for.
    pub context: usize,
    pub rope_base: f32,
    pub epsilon: f32,
    pub block_tokens: usize,
}

impl Shape {
    /// SmolLM2-135M.
    pub const SMOLLM2: Self = Self {
        layers: 30,
        width: 576,
        hidden: 1536,
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        vocabulary: 49_152,
        context: 8192,
        rope_base: 100_000.0,
        epsilon: 1e-5,
        block_tokens: 16,
    };

    /// Small enough for tests of a few milliseconds, with every ratio different.
    #[cfg(test)]
    pub const TINY: Self = Self {
        layers: 3,
        width: 64,
        hidden: 96,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        vocabulary: 301,
        context: 128,
        rope_base: 10_000.0,
        epsilon: 1e-5,
        block_tokens: 4,
    };

    /// Numbers in the K (or the V) of one token in one layer.
    pub fn row(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    pub fn row_bytes(&self) -> usize {
        self.row() * size_of::<u16>()
    }

    /// Bytes of one layer of a block: K and V of its tokens.
    pub fn slice_bytes(&self) -> usize {
        2 * self.block_tokens * self.row_bytes()
    }

    pub fn block_bytes(&self) -> usize {
        self.layers * self.slice_bytes()
    }

    /// Where a layer's slice starts in its block.
    pub fn slice_offset(&self, layer: usize) -> usize {
        layer * self.slice_bytes()
    }

    /// Where the K rows of `layer` lie in a block, from token `from` of the block to its end.
    pub fn keys(&self, layer: usize, from: usize) -> Range<usize> {
        let start = self.slice_offset(layer);
        start + from * self.row_bytes()..start + self.slice_bytes() / 2
    }

    /// Where the V rows of `layer` lie in a block, from token `from` of the block to its end.
    pub fn values(&self, layer: usize, from: usize) -> Range<usize> {
        let start = self.slice_offset(layer) + self.slice_bytes() / 2;
        start + from * self.row_bytes()..start + self.slice_bytes() / 2
    }

    /// Blocks that hold `tokens` tokens.
    pub fn blocks(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_whole_pages() {
        let shape = Shape::SMOLLM2;
        assert_eq!(shape.slice_bytes(), 3 * 4096);
        assert_eq!(shape.block_bytes(), 90 * 4096);
        assert_eq!(shape.slice_offset(29) + shape.slice_bytes(), shape.block_bytes());
        assert_eq!(shape.blocks(512) * shape.layers, 960);
    }

    #[test]
    fn keys_and_values_tile_a_slice() {
        let shape = Shape::TINY;
        let slice = shape.slice_offset(1);
        assert_eq!(shape.keys(1, 0).start, slice);
        assert_eq!(shape.keys(1, 0).end, shape.values(1, 0).start);
        assert_eq!(shape.values(1, 0).end, slice + shape.slice_bytes());
        assert_eq!(shape.values(1, 3).len(), shape.row_bytes());
    }

    #[test]
    fn a_started_block_counts() {
        let blocks = [0, 1, 4, 5].map(|tokens| Shape::TINY.blocks(tokens));
        assert_eq!(blocks, [0, 1, 1, 2]);
    }
}
