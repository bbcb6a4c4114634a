//! [`Simd`] in plain Rust, for machines without a set of their own here and as the yardstick of the others.

use half::{bf16, f16};

use super::simd::{LANES, Simd, widen};

/// Needs nothing of the machine.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> [f32; LANES] {
    std::array::from_fn(f)
}

/// The same number in single precision, without asking the machine what it can do.
#[inline(always)]
fn widen_f16(number: f16) -> f32 {
    /// Two to the power of 112: what is taken for an f32 with the same bits of exponent is smaller by this.
    const SCALE: f32 = f32::from_bits((127 + 112) << 23);
    /// Bits of what is no finite number.
    const NOT_FINITE: u32 = 0x7c00;

    let bits = u32::from(number.to_bits());
    let (sign, size) = ((bits & 0x8000) << 16, bits & 0x7fff);
    let exponent = if size >= NOT_FINITE { 0x7f80_0000 } else { 0 };
    f32::from_bits((f32::from_bits(size << 13) * SCALE).to_bits() | exponent | sign)
}

impl Simd for Portable {
    type Lanes = [f32; LANES];
    type Pairs = [[f32; LANES]; 2];
    type Integers = [i32; LANES];
    type Shorts = [[i16; 2]; LANES];

    const WIDE: bool = false;

    #[inline(always)]
    fn splat(self, value: f32) -> [f32; LANES] {
        [value; LANES]
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> [f32; LANES] {
        *from
    }

    #[inline(always)]
    fn store(self, lanes: [f32; LANES], to: &mut [f32; LANES]) {
        *to = lanes;
    }

    #[inline(always)]
    fn add(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        each(|lane| a[lane] + b[lane])
    }

    #[inline(always)]
    fn sub(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        each(|lane| a[lane] - b[lane])
    }

    #[inline(always)]
    fn mul(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        each(|lane| a[lane] * b[lane])
    }

    #[inline(always)]
    fn div(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        each(|lane| a[lane] / b[lane])
    }

    #[inline(always)]
    fn max(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        each(|lane| if a[lane] > b[lane] { a[lane] } else { b[lane] })
    }

    #[inline(always)]
    fn min(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        each(|lane| if a[lane] < b[lane] { a[lane] } else { b[lane] })
    }

    #[inline(always)]
    fn mul_add(self, a: [f32; LANES], b: [f32; LANES], c: [f32; LANES]) -> [f32; LANES] {
        each(|lane| a[lane] * b[lane] + c[lane])
    }

    #[inline(always)]
    fn power_of_two(self, biased: [f32; LANES]) -> [f32; LANES] {
        each(|lane| f32::from_bits(biased[lane].to_bits().wrapping_add(127) << 23))
    }

    #[inline(always)]
    fn load_pairs(self, from: &[[bf16; 2]; LANES]) -> [[f32; LANES]; 2] {
        [each(|lane| widen(from[lane][0])), each(|lane| widen(from[lane][1]))]
    }

    #[inline(always)]
    fn splat_pair(self, pair: [bf16; 2]) -> [[f32; LANES]; 2] {
        [[widen(pair[0]); LANES], [widen(pair[1]); LANES]]
    }

    #[inline(always)]
    fn dot_pairs(self, sum: [f32; LANES], a: [[f32; LANES]; 2], b: [[f32; LANES]; 2]) -> [f32; LANES] {
        let sum = self.mul_add(a[0], b[0], sum);
        self.mul_add(a[1], b[1], sum)
    }

    #[inline(always)]
    fn load_f16(self, from: &[f16; LANES]) -> [f32; LANES] {
        from.map(widen_f16)
    }

    #[inline(always)]
    fn no_integers(self) -> [i32; LANES] {
        [0; LANES]
    }

    #[inline(always)]
    fn to_lanes(self, integers: [i32; LANES]) -> [f32; LANES] {
        integers.map(|integer| integer as f32)
    }

    #[inline(always)]
    fn load_shorts(self, from: &[[u8; 2]; LANES]) -> [[i16; 2]; LANES] {
        from.map(|pair| pair.map(|byte| i16::from(byte.cast_signed())))
    }

    #[inline(always)]
    fn splat_shorts(self, pair: [i16; 2]) -> [[i16; 2]; LANES] {
        [pair; LANES]
    }

    #[inline(always)]
    fn dot_shorts(self, sums: [i32; LANES], a: [[i16; 2]; LANES], b: [[i16; 2]; LANES]) -> [i32; LANES] {
        let product = |lane: usize, at: usize| i32::from(a[lane][at]) * i32::from(b[lane][at]);
        std::array::from_fn(|lane| sums[lane].wrapping_add(product(lane, 0).wrapping_add(product(lane, 1))))
    }

    #[inline(always)]
    fn store_i16(self, lanes: [f32; LANES], to: &mut [i16; LANES]) {
        *to = lanes.map(|lane| lane.round_ties_even() as i16);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_is_widened_as_the_half_crate_does() {
        for bits in 0..=u16::MAX {
            let number = f16::from_bits(bits);
            let (found, expected) = (widen_f16(number), number.to_f32());
            let is_right = found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
            assert!(is_right, "{bits:#x}: {found} in place of {expected}");
        }
    }
}
