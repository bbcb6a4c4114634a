//! [`Simd`] in plain Rust, for machines without a set of their own here and as the yardstick of the others.

use half::bf16;

use super::simd::{LANES, Simd, widen};

/// Needs nothing of the machine.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> [f32; LANES] {
    std::array::from_fn(f)
}

impl Simd for Portable {
    type Lanes = [f32; LANES];
    type Pairs = [[f32; LANES]; 2];

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
}
