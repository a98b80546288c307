//! The arithmetic kernels, twice: AVX2 + FMA for the CPUs that have them, plain Rust for the rest.
//!
//! Both give **the same bits**: every sum runs over the same eight lanes in the same order, fused
//! multiply-add by fused multiply-add, and the lanes are folded in one fixed order. This is the
//! example's only file with `unsafe`.

use crate::gguf::{BLOCK_WEIGHTS, Encoding, Tensor};
use crate::portable;

/// Sums are kept in this many lanes: the width of an AVX register of f32.
pub const LANES: usize = 8;

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

/// Calls a function of the chosen set.
macro_rules! call {
    ($kernel:expr, $function:ident($($argument:expr),*)) => {
        match $kernel.0 {
            // SAFETY: `Set::Avx2` exists only where `best` has found AVX2, FMA and F16C.
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => unsafe { avx2::$function($($argument),*) },
            Set::Portable => portable::$function($($argument),*),
        }
    };
}

/// Slices of numbers are whole multiples of [`LANES`] long.
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

    /// Writes a row of a matrix as plain f32.
    pub fn decode_row(self, matrix: &Tensor, row: usize, out: &mut [f32]) {
        let row_bytes = matrix.data.len() / matrix.rows;
        let bytes = &matrix.data[row * row_bytes..][..row_bytes];
        call!(self, decode_row(matrix.encoding, bytes, out))
    }

    pub fn dot(self, a: &[f32], b: &[f32]) -> f32 {
        self.dots([a], [b])[0][0]
    }

    /// Every input's product with every row, all of one length.
    pub fn dots<const R: usize, const T: usize>(
        self,
        rows: [&[f32]; R],
        inputs: [&[f32]; T],
    ) -> [[f32; R]; T] {
        call!(self, dots(rows, inputs))
    }

    /// `out = Σ weights[index] · rows[index]`, the rows lying `stride` numbers apart.
    pub fn mix(self, weights: &[f32], rows: &[f32], stride: usize, out: &mut [f32]) {
        call!(self, mix(weights, rows, stride, out))
    }

    /// `values[i] = e^(values[i] - shift)`
    pub fn exp(self, values: &mut [f32], shift: f32) {
        call!(self, exp(values, shift))
    }

    /// `values[i] = values[i] / (1 + e^-values[i])`
    pub fn silu(self, values: &mut [f32]) {
        call!(self, silu(values))
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{BLOCK_WEIGHTS, Encoding, LANES, portable};

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
            Encoding::F32 => portable::decode_row(encoding, bytes, out.as_flattened_mut()),
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
        values.iter_mut().for_each(|value| *value = portable::exp_of(*value - shift));
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn silu(values: &mut [f32]) {
        values.iter_mut().for_each(|value| *value /= 1.0 + portable::exp_of(-*value));
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

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::weights::Random;

    /// Both sets where the CPU has both; the comparison is empty, aloud, where it hasn't.
    pub fn sets() -> [Kernel; 2] {
        let best = Kernel::best();
        if best == Kernel::portable() {
            crate::tests::skipped("this CPU has no AVX2, FMA and F16C to compare with");
        }
        [best, Kernel::portable()]
    }

    /// Numbers of all sizes and both signs.
    pub fn numbers(random: &mut Random, count: usize) -> Vec<f32> {
        let number = |bits: u64| (bits as i32 as f32) * 2_f32.powi((bits >> 60) as i32 - 40);
        (0..count).map(|_| number(random.next())).collect()
    }

    pub fn bits(numbers: &[f32]) -> Vec<u32> {
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

    #[test]
    fn both_sets_give_the_same_bits() {
        let [best, portable] = sets();
        let mut random = Random(7);
        for (count, dim, stride) in [(1, 8, 8), (13, 16, 32), (70, 64, 192), (9, 72, 80)] {
            let rows = numbers(&mut random, count * stride);
            let weights = numbers(&mut random, count);
            let both = [best, portable].map(|kernel| {
                let mut mixed = vec![0.0; dim];
                kernel.mix(&weights, &rows, stride, &mut mixed);
                bits(&mixed)
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
}
