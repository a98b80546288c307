//! Products of a model's matrices with many tokens at once, cut into tiles for the kernels.
//!
//! A tile's shape never shows in its numbers: each (row, token) sum has one order, so any batch
//! and any number of threads give the same bits. So a prompt that was prefilled in chunks, by
//! another process, on two threads, leads to the very logits of a single run, and tests may
//! compare hashes.

use crate::gguf::Tensor;
use crate::kernel::Kernel;

/// Rows and tokens that one tile multiplies: 4 × 3 sums, 3 inputs and a weight fill 16 registers.
const TILE_ROWS: usize = 4;
const TILE_TOKENS: usize = 3;
/// Tokens that go through one decoded row before the next is decoded: 128 × 1536 inputs of f32
/// are 768 KiB and stay in the second-level cache.
const BLOCK_TOKENS: usize = 128;

impl Kernel {
    /// `out[token][row] = Σ matrix[row][column] · x[token][column]`, on `threads` threads that
    /// share out the tokens.
    pub fn multiply(self, matrix: &Tensor, x: &[f32], out: &mut [f32], threads: usize) {
        let (columns, rows) = (matrix.columns, matrix.rows);
        in_parts(threads, x, columns, out, rows, |_, x, out| {
            let blocks = x.chunks(BLOCK_TOKENS * columns).zip(out.chunks_mut(BLOCK_TOKENS * rows));
            blocks.for_each(|(x, out)| self.multiply_block(matrix, x, out));
        });
    }

    fn multiply_block(self, matrix: &Tensor, x: &[f32], out: &mut [f32]) {
        let (columns, rows) = (matrix.columns, matrix.rows);
        // When rows run out the last tile's spare ones keep old weights; their sums are dropped.
        let mut decoded = vec![0.0; TILE_ROWS * columns];
        for first in (0..rows).step_by(TILE_ROWS) {
            let count = TILE_ROWS.min(rows - first);
            for (row, decoded) in decoded.chunks_exact_mut(columns).take(count).enumerate() {
                self.decode_row(matrix, first + row, decoded);
            }
            let weights: [&[f32]; TILE_ROWS] =
                std::array::from_fn(|row| &decoded[row * columns..][..columns]);
            let mut token = 0;
            while token < x.len() / columns {
                token += self.tile(weights, x, columns, token, |token, row, sum| {
                    if row < count {
                        out[token * rows + first + row] = sum;
                    }
                });
            }
        }
    }

    /// Multiplies some rows with the next few tokens; gives back how many tokens it took.
    fn tile(
        self,
        weights: [&[f32]; TILE_ROWS],
        x: &[f32],
        columns: usize,
        token: usize,
        mut store: impl FnMut(usize, usize, f32),
    ) -> usize {
        let input = |index: usize| &x[(token + index) * columns..][..columns];
        if (token + TILE_TOKENS) * columns <= x.len() {
            let sums = self.dots(weights, std::array::from_fn::<_, TILE_TOKENS, _>(input));
            for (index, sums) in sums.iter().enumerate() {
                sums.iter().enumerate().for_each(|(row, &sum)| store(token + index, row, sum));
            }
            TILE_TOKENS
        } else {
            let [sums] = self.dots(weights, [input(0)]);
            sums.iter().enumerate().for_each(|(row, &sum)| store(token, row, sum));
            1
        }
    }

    /// `out[index] = x · rows[index]`, the rows lying `stride` numbers apart.
    pub fn scores(self, x: &[f32], rows: &[f32], stride: usize, out: &mut [f32]) {
        let row = |index: usize| &rows[index * stride..][..x.len()];
        let (tiles, rest) = out.as_chunks_mut::<TILE_ROWS>();
        let first_rest = tiles.len() * TILE_ROWS;
        for (tile, out) in tiles.iter_mut().enumerate() {
            let rows =
                std::array::from_fn::<_, TILE_ROWS, _>(|index| row(tile * TILE_ROWS + index));
            [*out] = self.dots(rows, [x]);
        }
        for (index, out) in rest.iter_mut().enumerate() {
            *out = self.dot(row(first_rest + index), x);
        }
    }
}

/// Shares out tokens between threads: `work(first token, its inputs, its outputs)`.
pub fn in_parts(
    threads: usize,
    x: &[f32],
    x_width: usize,
    out: &mut [f32],
    out_width: usize,
    work: impl Fn(usize, &[f32], &mut [f32]) + Sync,
) {
    let tokens = x.len() / x_width;
    let part = tokens.div_ceil(threads.max(1)).max(1);
    if part == tokens {
        return work(0, x, out);
    }
    let parts = x.chunks(part * x_width).zip(out.chunks_mut(part * out_width));
    std::thread::scope(|scope| {
        for (index, (x, out)) in parts.enumerate() {
            let work = &work;
            scope.spawn(move || work(index * part, x, out));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::tests::{bits, numbers, sets};
    use crate::weights::Random;

    #[test]
    fn both_sets_of_kernels_give_the_same_bits() {
        let [best, portable] = sets();
        let mut random = Random(7);
        for (rows, columns, tokens) in [(1, 32, 1), (7, 64, 5), (192, 576, 4), (13, 96, 131)] {
            let x = numbers(&mut random, tokens * columns);
            for matrix in [random.q4_1(rows, columns), random.q8_0(rows, columns)] {
                let mut outs = [vec![0.0; tokens * rows], vec![0.0; tokens * rows]];
                best.multiply(&matrix, &x, &mut outs[0], 1);
                portable.multiply(&matrix, &x, &mut outs[1], 1);
                assert_eq!(bits(&outs[0]), bits(&outs[1]), "{rows} {columns} {tokens}");
            }
        }
        for (count, dim, stride) in [(1, 8, 8), (13, 16, 32), (70, 64, 192), (9, 72, 80)] {
            let rows = numbers(&mut random, count * stride);
            let query = numbers(&mut random, dim);
            let both = [best, portable].map(|kernel| {
                let mut scores = vec![0.0; count];
                kernel.scores(&query, &rows, stride, &mut scores);
                bits(&scores)
            });
            assert_eq!(both[0], both[1], "{count} {dim} {stride}");
        }
    }

    #[test]
    fn batches_and_threads_give_the_same_bits() {
        let mut random = Random(8);
        let (rows, columns, tokens) = (10, 64, 141);
        let matrix = random.q4_1(rows, columns);
        let x = numbers(&mut random, tokens * columns);
        for kernel in sets() {
            let mut one_by_one = vec![0.0; tokens * rows];
            for (x, out) in x.chunks(columns).zip(one_by_one.chunks_mut(rows)) {
                kernel.multiply(&matrix, x, out, 1);
            }
            for threads in [1, 2, 3, 200] {
                let mut out = vec![0.0; tokens * rows];
                kernel.multiply(&matrix, &x, &mut out, threads);
                assert_eq!(bits(&out), bits(&one_by_one), "{threads} threads");
            }
        }
    }

    #[test]
    fn products_are_right() {
        let mut random = Random(9);
        let (rows, columns, tokens) = (6, 64, 4);
        let matrix = random.q8_0(rows, columns);
        let x = numbers(&mut random, tokens * columns);
        let mut out = vec![0.0; tokens * rows];
        Kernel::best().multiply(&matrix, &x, &mut out, 1);
        let mut row = vec![0.0; columns];
        for (index, &got) in out.iter().enumerate() {
            Kernel::portable().decode_row(&matrix, index % rows, &mut row);
            let x = &x[index / rows * columns..][..columns];
            let products = row.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
            let size: f64 = products.clone().map(f64::abs).sum();
            let want: f64 = products.sum();
            assert!((f64::from(got) - want).abs() <= size * 1e-6, "{got} {want}");
        }
    }
}
