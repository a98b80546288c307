//! Where K and V of the tokens live: the [`KvCache`] seam, and one in plain memory.
//!
//! The model only knows the seam, so the blocks behind it may lie in registered memory and be
//! on their way to another process while the next layer is computed.

use crate::generate::Fnv;
use crate::llama::Failure;
use crate::shape::Shape;

/// K and V (bf16 bits) of every layer and token. An implementation keeps them in blocks laid out
/// as [`Shape`] says; which block holds which tokens is its own affair. It may fail, for the rows
/// may belong to somebody else at the moment, or never come.
pub trait KvCache {
    /// Tokens there is room for.
    fn capacity(&self) -> usize;

    /// Stores one token's row of K and of V: [`Shape::row`] numbers each.
    fn put(&mut self, layer: usize, position: usize, k: &[u16], v: &[u16]) -> Result<(), Failure>;

    /// Copies the rows of the first `tokens` tokens of a layer, in the order of their positions.
    fn gather(
        &self,
        layer: usize,
        tokens: usize,
        k: &mut [u16],
        v: &mut [u16],
    ) -> Result<(), Failure>;
}

/// FNV-1a over K and V of so many tokens, in all layers: whether two caches hold the same.
pub fn cache_hash<C: KvCache>(cache: &C, shape: &Shape, tokens: usize) -> Result<u64, Failure> {
    let mut hash = Fnv::default();
    let mut k = vec![0; tokens * shape.row()];
    let mut v = k.clone();
    for layer in 0..shape.layers {
        cache.gather(layer, tokens, &mut k, &mut v)?;
        k.iter().chain(&v).for_each(|&number| hash.add(u64::from(number)));
    }
    Ok(hash.value())
}

/// Writes numbers as the bytes of a block (little-endian).
pub fn to_bytes(numbers: &[u16], bytes: &mut [u8]) {
    let (bytes, _) = bytes.as_chunks_mut::<2>();
    bytes.iter_mut().zip(numbers).for_each(|(bytes, number)| *bytes = number.to_le_bytes());
}

/// Reads as many numbers from the bytes of a block as `numbers` has room for.
pub fn from_bytes(bytes: &[u8], numbers: &mut [u16]) {
    let (bytes, _) = bytes.as_chunks::<2>();
    bytes.iter().zip(numbers).for_each(|(bytes, number)| *number = u16::from_le_bytes(*bytes));
}

/// A cache in this process's own memory.
pub struct VecCache {
    shape: Shape,
    bytes: Vec<u8>,
    /// Block of each run of `block_tokens` tokens.
    table: Vec<usize>,
}

impl VecCache {
    /// Room for `tokens` tokens, rounded up to whole blocks.
    pub fn new(shape: Shape, tokens: usize) -> Self {
        Self::with_table(shape, (0..shape.blocks(tokens)).collect())
    }

    /// Tokens `i * block_tokens ..` live in block `table[i]`.
    pub fn with_table(shape: Shape, table: Vec<usize>) -> Self {
        let blocks = table.iter().max().map_or(0, |last| last + 1);
        Self { shape, bytes: vec![0; blocks * shape.block_bytes()], table }
    }

    /// The block that holds the `index`-th run of tokens.
    fn block(&self, index: usize) -> &[u8] {
        let bytes = self.shape.block_bytes();
        &self.bytes[self.table[index] * bytes..][..bytes]
    }

    fn block_mut(&mut self, index: usize) -> &mut [u8] {
        let bytes = self.shape.block_bytes();
        &mut self.bytes[self.table[index] * bytes..][..bytes]
    }
}

impl KvCache for VecCache {
    fn capacity(&self) -> usize {
        self.table.len() * self.shape.block_tokens
    }

    fn put(&mut self, layer: usize, position: usize, k: &[u16], v: &[u16]) -> Result<(), Failure> {
        let shape = self.shape;
        let token = position % shape.block_tokens;
        let block = self.block_mut(position / shape.block_tokens);
        to_bytes(k, &mut block[shape.keys(layer, token)]);
        to_bytes(v, &mut block[shape.values(layer, token)]);
        Ok(())
    }

    fn gather(
        &self,
        layer: usize,
        tokens: usize,
        k: &mut [u16],
        v: &mut [u16],
    ) -> Result<(), Failure> {
        let shape = self.shape;
        let run = shape.block_tokens * shape.row();
        let rows = tokens * shape.row();
        let runs = k[..rows].chunks_mut(run).zip(v[..rows].chunks_mut(run));
        for (index, (k, v)) in runs.enumerate() {
            from_bytes(&self.block(index)[shape.keys(layer, 0)], k);
            from_bytes(&self.block(index)[shape.values(layer, 0)], v);
        }
        Ok(())
    }
}

#[cfg(test)]
impl VecCache {
    /// Copies every block of another cache, whatever its block table: what the wire does.
    pub fn receive(&mut self, from: &VecCache) {
        for index in 0..from.table.len() {
            self.block_mut(index).copy_from_slice(from.block(index));
        }
    }

    pub fn flip_bit(&mut self, index: usize, byte: usize) {
        self.block_mut(index)[byte] ^= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A number that tells its place.
    fn number(layer: usize, position: usize, index: usize) -> u16 {
        (layer * 10_000 + position * 100 + index) as u16
    }

    #[test]
    fn gathers_what_was_put_through_any_table() {
        let shape = Shape::TINY;
        let mut cache = VecCache::with_table(shape, vec![2, 0, 3]);
        assert_eq!(cache.capacity(), 12);
        for (layer, position) in (0..shape.layers).flat_map(|l| (0..10).map(move |p| (l, p))) {
            let k: Vec<u16> = (0..shape.row()).map(|i| number(layer, position, i)).collect();
            let v: Vec<u16> = k.iter().map(|number| !number).collect();
            cache.put(layer, position, &k, &v).unwrap();
        }
        for tokens in 1..=10 {
            let mut k = vec![0; tokens * shape.row()];
            let mut v = k.clone();
            cache.gather(2, tokens, &mut k, &mut v).unwrap();
            let want = (0..tokens).flat_map(|p| (0..shape.row()).map(move |i| number(2, p, i)));
            assert!(k.iter().copied().eq(want), "{tokens} tokens");
            assert!(v.iter().zip(&k).all(|(v, k)| *v == !k), "{tokens} tokens");
        }
    }

    #[test]
    fn the_layout_is_layer_then_kv_then_token() {
        let shape = Shape::TINY;
        let mut cache = VecCache::with_table(shape, vec![0]);
        let row = vec![0x0201; shape.row()];
        cache.put(1, 2, &row, &row).unwrap();
        let k = shape.slice_bytes() + 2 * shape.row_bytes();
        let v = k + shape.slice_bytes() / 2;
        let written = |at: &usize| {
            (k..k + shape.row_bytes()).contains(at) || (v..v + shape.row_bytes()).contains(at)
        };
        for (at, &byte) in cache.block(0).iter().enumerate() {
            let want = if written(&at) { 1 + (at % 2) as u8 } else { 0 };
            assert_eq!(byte, want, "byte {at}");
        }
    }
}
