//! The arithmetic kernels, twice: AVX2 + FMA for the CPUs that have them, plain Rust for the rest.
//!
//! Both give **the same bits**, whatever the batch or the number of threads: the sum behind each
//! output runs over the same eight lanes in the same order, fused multiply-add by fused
//! multiply-add, and the lanes are folded in one fixed order. So a prompt that was prefilled in
//! chunks, by another process, on two threads, leads to the very logits of a single run, and
//! tests may compare hashes. This is the example's only file with `unsafe`.

use crate::gguf::{BLOCK_WEIGHTS, Encoding, Tensor};

/// Sums are kept in this many lanes: the width of an AVX register of f32.
pub const LANES: usize = 8;
/// Rows and tokens that one tile multiplies: 4 × 3 sums, 3 inputs and a weight fill 16 registers.
const TILE_ROWS: usize = 4;
const TILE_TOKENS: usize = 3;
/// Tokens that go through one decoded row before the next is decoded: 128 × 1536 inputs of f32
/// are 768 KiB and stay in the second-level cache.
const BLOCK_TOKENS: usize = 128;

/// One of the two sets of kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernel(Set);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Set {
    /// Made by [`Kernel::best`] alone, after it has seen that the CPU has the instructions.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

impl Kernel {
    /// The fastest kernels this CPU can run.
    pub fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
        {
            return Self(Set::Avx2);
        }
        Self(Set::Portable)
    }

    #[cfg(test)]
    pub fn portable() -> Self {
        Self(Set::Portable)
    }

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

    pub fn dot(self, a: &[f32], b: &[f32]) -> f32 {
        self.dots([a], [b])[0][0]
    }
}

/// Each of these picks the set. Slices of numbers are whole multiples of eight long.
impl Kernel {
    /// Writes a row of a matrix as plain f32.
    pub fn decode_row(self, matrix: &Tensor, row: usize, out: &mut [f32]) {
        let row_bytes = matrix.data.len() / matrix.rows;
        let bytes = &matrix.data[row * row_bytes..][..row_bytes];
        match self.0 {
            // SAFETY: `Set::Avx2` exists only where `best` has found AVX2, FMA and F16C.
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => unsafe { avx2::decode_row(matrix.encoding, bytes, out) },
            Set::Portable => portable::decode_row(matrix.encoding, bytes, out),
        }
    }

    fn dots<const R: usize, const T: usize>(
        self,
        rows: [&[f32]; R],
        inputs: [&[f32]; T],
    ) -> [[f32; R]; T] {
        match self.0 {
            // SAFETY: `Set::Avx2` exists only where `best` has found AVX2, FMA and F16C.
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => unsafe { avx2::dots(rows, inputs) },
            Set::Portable => portable::dots(rows, inputs),
        }
    }

    /// `out = Σ weights[index] · rows[index]`, the rows lying `stride` numbers apart.
    pub fn mix(self, weights: &[f32], rows: &[f32], stride: usize, out: &mut [f32]) {
        match self.0 {
            // SAFETY: `Set::Avx2` exists only where `best` has found AVX2, FMA and F16C.
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => unsafe { avx2::mix(weights, rows, stride, out) },
            Set::Portable => portable::mix(weights, rows, stride, out),
        }
    }

    /// `values[i] = e^(values[i] - shift)`
    pub fn exp(self, values: &mut [f32], shift: f32) {
        match self.0 {
            // SAFETY: `Set::Avx2` exists only where `best` has found AVX2, FMA and F16C.
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => unsafe { avx2::exp(values, shift) },
            Set::Portable => portable::exp(values, shift),
        }
    }
}

impl Kernel {
    /// `values[i] = values[i] / (1 + e^-values[i])`
    pub fn silu(self, values: &mut [f32]) {
        match self.0 {
            // SAFETY: `Set::Avx2` exists only where `best` has found AVX2, FMA and F16C.
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => unsafe { avx2::silu(values) },
            Set::Portable => portable::silu(values),
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

/// e^x to about 2 units in the last place, within ±86: one formula for both sets (elementwise, so
/// vectorising can't change the bits), and not the C library's, which differs by version.
#[inline(always)]
fn exp(x: f32) -> f32 {
    // Adding 1.5 · 2^23 rounds to a whole number, which the low bits of the sum then hold.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-86.0, 86.0);
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let whole = shifted - ROUND;
    // ln 2 in two parts, so that x - whole · ln 2 stays exact: |rest| <= 0.347.
    let rest = whole.mul_add(-0.693_359_4, x);
    let rest = whole.mul_add(2.121_944_4e-4, rest);
    // Taylor series of e^rest; the first term left out is below 1e-8.
    let mut sum = 1.0 / 5040.0;
    for factor in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        sum = rest.mul_add(sum, factor);
    }
    // Times 2^whole, by adding to the exponent's bits.
    f32::from_bits(sum.to_bits().wrapping_add(shifted.to_bits() << 23))
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{BLOCK_WEIGHTS, Encoding, LANES};

    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn decode_row(encoding: Encoding, bytes: &[u8], out: &mut [f32]) {
        let (out, _) = out.as_chunks_mut::<BLOCK_WEIGHTS>();
        match encoding {
            Encoding::Q4_1 => {
                let (blocks, _) = bytes.as_chunks::<20>();
                blocks.iter().zip(out).for_each(|(block, out)| decode_q4_1(block, out));
            }
            Encoding::Q8_0 => {
                let (blocks, _) = bytes.as_chunks::<34>();
                blocks.iter().zip(out).for_each(|(block, out)| decode_q8_0(block, out));
            }
            Encoding::F32 => super::portable::decode_row(encoding, bytes, out.as_flattened_mut()),
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn decode_q4_1(block: &[u8; 20], out: &mut [f32; BLOCK_WEIGHTS]) {
        let head = i32::from_le_bytes([block[0], block[1], block[2], block[3]]);
        let head = _mm_cvtph_ps(_mm_cvtsi32_si128(head));
        let scale = _mm256_broadcastss_ps(head);
        let minimum = _mm256_broadcastss_ps(_mm_movehdup_ps(head));
        // SAFETY: reads 16 bytes from offset 4 of a block of 20.
        let nibbles = unsafe { _mm_loadu_si128(block[4..].as_ptr().cast()) };
        let mask = _mm_set1_epi8(0x0f);
        let low = _mm_and_si128(nibbles, mask);
        let high = _mm_and_si128(_mm_srli_epi16::<4>(nibbles), mask);
        let (lanes, _) = out.as_chunks_mut::<LANES>();
        let eights = [low, _mm_srli_si128::<8>(low), high, _mm_srli_si128::<8>(high)];
        for (lanes, eight) in lanes.iter_mut().zip(eights) {
            let weights = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(eight));
            store(lanes, _mm256_fmadd_ps(weights, scale, minimum));
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn decode_q8_0(block: &[u8; 34], out: &mut [f32; BLOCK_WEIGHTS]) {
        let head = i32::from(u16::from_le_bytes([block[0], block[1]]));
        let scale = _mm256_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(head)));
        let (eights, _) = block[2..].as_chunks::<LANES>();
        let (lanes, _) = out.as_chunks_mut::<LANES>();
        for (lanes, eight) in lanes.iter_mut().zip(eights) {
            let eight = _mm_cvtsi64_si128(i64::from_le_bytes(*eight));
            let weights = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight));
            store(lanes, _mm256_mul_ps(weights, scale));
        }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn dots<const R: usize, const T: usize>(
        rows: [&[f32]; R],
        inputs: [&[f32]; T],
    ) -> [[f32; R]; T] {
        let steps = rows[0].len() / LANES;
        let (rows, inputs) = (in_lanes(rows, steps), in_lanes(inputs, steps));
        let mut sums = [[_mm256_setzero_ps(); R]; T];
        for step in 0..steps {
            let mut x = [_mm256_setzero_ps(); T];
            for t in 0..T {
                x[t] = load(&inputs[t][step]);
            }
            for r in 0..R {
                let weight = load(&rows[r][step]);
                for t in 0..T {
                    sums[t][r] = _mm256_fmadd_ps(weight, x[t], sums[t][r]);
                }
            }
        }
        let mut folded = [[0.0; R]; T];
        for t in 0..T {
            for r in 0..R {
                folded[t][r] = fold(sums[t][r]);
            }
        }
        folded
    }

    /// A plain function, because closures with target features are not inlined into `map`.
    #[inline]
    fn in_lanes<const N: usize>(slices: [&[f32]; N], steps: usize) -> [&[[f32; LANES]]; N] {
        slices.map(|slice| &slice.as_chunks().0[..steps])
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn mix(weights: &[f32], rows: &[f32], stride: usize, out: &mut [f32]) {
        let (lanes, _) = out.as_chunks_mut::<LANES>();
        // Eight registers of sums at a time hide the latency of one another's additions.
        let (wide, narrow) = lanes.as_chunks_mut::<8>();
        let narrow_at = wide.len() * 8 * LANES;
        for (index, out) in wide.iter_mut().enumerate() {
            mix_columns(weights, &rows[index * 8 * LANES..], stride, out);
        }
        for (index, out) in narrow.iter_mut().enumerate() {
            let out = std::array::from_mut(out);
            mix_columns(weights, &rows[narrow_at + index * LANES..], stride, out);
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn mix_columns<const N: usize>(
        weights: &[f32],
        rows: &[f32],
        stride: usize,
        out: &mut [[f32; LANES]; N],
    ) {
        let mut sums = [_mm256_setzero_ps(); N];
        for (weight, row) in weights.iter().zip(rows.chunks(stride)) {
            let weight = _mm256_set1_ps(*weight);
            let (row, _) = row[..N * LANES].as_chunks::<LANES>();
            for n in 0..N {
                sums[n] = _mm256_fmadd_ps(weight, load(&row[n]), sums[n]);
            }
        }
        for n in 0..N {
            store(&mut out[n], sums[n]);
        }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn exp(values: &mut [f32], shift: f32) {
        values.iter_mut().for_each(|value| *value = super::exp(*value - shift));
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn silu(values: &mut [f32]) {
        values.iter_mut().for_each(|value| *value /= 1.0 + super::exp(-*value));
    }

    /// The eight lanes' sum: halves, quarters, then the last pair, as `portable::fold` does.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn fold(lanes: __m256) -> f32 {
        let four = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps::<1>(lanes));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn load(lanes: &[f32; LANES]) -> __m256 {
        // SAFETY: the reference is to 32 readable bytes, and this load needs no alignment.
        unsafe { _mm256_loadu_ps(lanes.as_ptr()) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn store(lanes: &mut [f32; LANES], value: __m256) {
        // SAFETY: the reference is to 32 writable bytes, and this store needs no alignment.
        unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), value) }
    }
}

mod portable {
    use super::{BLOCK_WEIGHTS, Encoding, LANES};

    pub fn decode_row(encoding: Encoding, bytes: &[u8], out: &mut [f32]) {
        match encoding {
            Encoding::F32 => {
                let (words, _) = bytes.as_chunks::<4>();
                words.iter().zip(out).for_each(|(word, out)| *out = f32::from_le_bytes(*word));
            }
            Encoding::Q4_1 => {
                let (blocks, _) = bytes.as_chunks::<20>();
                let (out, _) = out.as_chunks_mut::<BLOCK_WEIGHTS>();
                blocks.iter().zip(out).for_each(|(block, out)| decode_q4_1(block, out));
            }
            Encoding::Q8_0 => {
                let (blocks, _) = bytes.as_chunks::<34>();
                let (out, _) = out.as_chunks_mut::<BLOCK_WEIGHTS>();
                blocks.iter().zip(out).for_each(|(block, out)| decode_q8_0(block, out));
            }
        }
    }

    /// Low nibbles are the first 16 weights, high nibbles the last.
    fn decode_q4_1(block: &[u8; 20], out: &mut [f32; BLOCK_WEIGHTS]) {
        let scale = half(u16::from_le_bytes([block[0], block[1]]));
        let minimum = half(u16::from_le_bytes([block[2], block[3]]));
        let (low, high) = out.split_at_mut(BLOCK_WEIGHTS / 2);
        for ((byte, low), high) in block[4..].iter().zip(low).zip(high) {
            *low = f32::from(byte & 0x0f).mul_add(scale, minimum);
            *high = f32::from(byte >> 4).mul_add(scale, minimum);
        }
    }

    fn decode_q8_0(block: &[u8; 34], out: &mut [f32; BLOCK_WEIGHTS]) {
        let scale = half(u16::from_le_bytes([block[0], block[1]]));
        for (byte, out) in block[2..].iter().zip(out) {
            *out = f32::from(*byte as i8) * scale;
        }
    }

    /// An f16 as f32, exactly: its exponent and fraction in place, then the bias made good by a
    /// product, which also normalises subnormals.
    pub fn half(bits: u16) -> f32 {
        let sign = u32::from(bits & 0x8000) << 16;
        let rest = u32::from(bits & 0x7fff) << 13;
        let is_finite = bits & 0x7c00 != 0x7c00;
        let magnitude = if is_finite {
            // 2^112 = 2^(127 - 15): the difference of the two biases.
            (f32::from_bits(rest) * f32::from_bits((112 + 127) << 23)).to_bits()
        } else {
            rest | 0x7f80_0000
        };
        f32::from_bits(magnitude | sign)
    }

    pub fn dots<const R: usize, const T: usize>(
        rows: [&[f32]; R],
        inputs: [&[f32]; T],
    ) -> [[f32; R]; T] {
        inputs.map(|input| rows.map(|row| dot(row, input)))
    }

    fn dot(row: &[f32], input: &[f32]) -> f32 {
        let mut sums = [0.0_f32; LANES];
        let (row, _) = row.as_chunks::<LANES>();
        let (input, _) = input.as_chunks::<LANES>();
        for (weights, x) in row.iter().zip(input) {
            for lane in 0..LANES {
                sums[lane] = weights[lane].mul_add(x[lane], sums[lane]);
            }
        }
        fold(sums)
    }

    fn fold(lanes: [f32; LANES]) -> f32 {
        let [a, b, c, d, e, f, g, h] = lanes;
        ((a + e) + (c + g)) + ((b + f) + (d + h))
    }

    pub fn mix(weights: &[f32], rows: &[f32], stride: usize, out: &mut [f32]) {
        out.fill(0.0);
        for (weight, row) in weights.iter().zip(rows.chunks(stride)) {
            for (out, value) in out.iter_mut().zip(row) {
                *out = weight.mul_add(*value, *out);
            }
        }
    }

    pub fn exp(values: &mut [f32], shift: f32) {
        values.iter_mut().for_each(|value| *value = super::exp(*value - shift));
    }

    pub fn silu(values: &mut [f32]) {
        values.iter_mut().for_each(|value| *value /= 1.0 + super::exp(-*value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::Random;

    /// Both sets where the CPU has both; the comparison is empty, aloud, where it hasn't.
    fn sets() -> [Kernel; 2] {
        let best = Kernel::best();
        if best == Kernel::portable() {
            eprintln!("skipped: this CPU has no AVX2, FMA and F16C to compare with");
        }
        [best, Kernel::portable()]
    }

    /// Numbers of all sizes and both signs.
    fn numbers(random: &mut Random, count: usize) -> Vec<f32> {
        let number = |bits: u64| (bits as i32 as f32) * 2_f32.powi((bits >> 60) as i32 - 40);
        (0..count).map(|_| number(random.next())).collect()
    }

    fn bits(numbers: &[f32]) -> Vec<u32> {
        numbers.iter().map(|number| number.to_bits()).collect()
    }

    #[test]
    fn rows_decode_as_the_format_says() {
        // Scale 2, minimum -1; then scale 0.5 with signed bytes.
        let mut q4_1 = vec![0x00, 0x40, 0x00, 0xbc];
        q4_1.extend((0..16).map(|low: u8| low | (15 - low) << 4));
        let mut q8_0 = vec![0x00, 0x38];
        q8_0.extend((0..32).map(|index: u8| (index as i8 - 16) as u8));
        for kernel in sets() {
            let mut row = [0.0; 32];
            kernel.decode_row(&tensor(Encoding::Q4_1, 1, 32, q4_1.clone()), 0, &mut row);
            assert_eq!(row[..3], [-1.0, 1.0, 3.0]);
            assert_eq!(row[15..18], [29.0, 29.0, 27.0]);
            kernel.decode_row(&tensor(Encoding::Q8_0, 1, 32, q8_0.clone()), 0, &mut row);
            assert_eq!(row[..2], [-8.0, -7.5]);
            assert_eq!(row[31], 7.5);
        }
    }

    fn tensor(encoding: Encoding, rows: usize, columns: usize, data: Vec<u8>) -> Tensor {
        Tensor { encoding, rows, columns, data: data.into() }
    }

    /// Every finite f16 is itself again after the way back through its parts.
    #[test]
    fn half_is_exact() {
        for bits in 0..=u16::MAX {
            let (exponent, fraction) = (i32::from(bits >> 10 & 0x1f), f64::from(bits & 0x3ff));
            let magnitude = match exponent {
                0 => fraction * 2_f64.powi(-24),
                31 if fraction == 0.0 => f64::INFINITY,
                31 => f64::NAN,
                _ => (1024.0 + fraction) * 2_f64.powi(exponent - 25),
            };
            let want = if bits & 0x8000 == 0 { magnitude } else { -magnitude };
            let got = f64::from(portable::half(bits));
            assert!(got == want || got.is_nan() && want.is_nan(), "{bits:#06x}: {got} {want}");
        }
    }

    #[test]
    fn both_sets_give_the_same_bits() {
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
            let weights = numbers(&mut random, count);
            let both = [best, portable].map(|kernel| {
                let (mut scores, mut mixed) = (vec![0.0; count], vec![0.0; dim]);
                kernel.scores(&query, &rows, stride, &mut scores);
                kernel.mix(&weights, &rows, stride, &mut mixed);
                (bits(&scores), bits(&mixed))
            });
            assert_eq!(both[0], both[1], "{count} {dim} {stride}");
        }
        let both = [best, portable].map(|kernel| {
            let mut exps: Vec<f32> = (-9000..9000).map(|n| n as f32 * 0.01).collect();
            let mut silus = exps.clone();
            kernel.exp(&mut exps, 0.3);
            kernel.silu(&mut silus);
            (bits(&exps), bits(&silus))
        });
        assert_eq!(both[0], both[1]);
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

    #[test]
    fn exp_is_close() {
        for step in -8600..8600 {
            let x = step as f32 * 0.01;
            let (got, want) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((got / want - 1.0).abs() < 3e-7, "e^{x}: {got}, should be {want}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(-1e9) < 1e-37 && exp(1e9).is_finite());
    }
}
