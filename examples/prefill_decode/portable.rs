//! The kernels in plain Rust: the twin of `kernel::avx2`, for every other CPU, and the formulas
//! that both share.

use crate::gguf::{BLOCK_WEIGHTS, Encoding};
use crate::kernel::LANES;

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
    values.iter_mut().for_each(|value| *value = exp_of(*value - shift));
}

pub fn silu(values: &mut [f32]) {
    values.iter_mut().for_each(|value| *value /= 1.0 + exp_of(-*value));
}

/// e^x to about 2 units in the last place, within ±86: one formula for both sets (elementwise, so
/// vectorising can't change the bits), and not the C library's, which differs by version.
#[inline(always)]
pub fn exp_of(x: f32) -> f32 {
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

#[cfg(test)]
mod tests {
    use super::*;

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
            let got = f64::from(half(bits));
            assert!(got == want || got.is_nan() && want.is_nan(), "{bits:#06x}: {got} {want}");
        }
    }

    #[test]
    fn exp_is_close() {
        for step in -8600..8600 {
            let x = step as f32 * 0.01;
            let (got, want) = (f64::from(exp_of(x)), f64::from(x).exp());
            assert!((got / want - 1.0).abs() < 3e-7, "e^{x}: {got}, should be {want}");
        }
        assert_eq!(exp_of(0.0), 1.0);
        assert!(exp_of(-1e9) < 1e-37 && exp_of(1e9).is_finite());
    }
}
