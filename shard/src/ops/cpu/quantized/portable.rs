//! [`Integers`] in plain Rust.

use half::f16;

use super::super::simd::LANES;
use super::integers::Integers;

/// Needs nothing of the machine.
#[derive(Clone, Copy)]
pub(super) struct Portable;

impl Integers for Portable {
    type Lanes = [f32; LANES];
    type Sums = [i32; LANES];
    type Stored = [[u8; 4]; LANES];
    type Weights = [[u8; 4]; LANES];
    type Activations = [i8; 4];

    const WIDE: bool = false;

    #[inline(always)]
    fn load(self, from: &[u8; 64]) -> Self::Stored {
        std::array::from_fn(|lane| std::array::from_fn(|element| from[lane * 4 + element]))
    }

    #[inline(always)]
    fn bytes(self, stored: Self::Stored) -> Self::Weights {
        stored
    }

    #[inline(always)]
    fn lower(self, stored: Self::Stored) -> Self::Weights {
        stored.map(|four| four.map(|byte| byte & 15))
    }

    #[inline(always)]
    fn upper(self, stored: Self::Stored) -> Self::Weights {
        stored.map(|four| four.map(|byte| byte >> 4))
    }

    #[inline(always)]
    fn splat_activations(self, four: u32) -> [i8; 4] {
        four.to_le_bytes().map(u8::cast_signed)
    }

    #[inline(always)]
    fn splat_sum(self, value: i32) -> [i32; LANES] {
        [value; LANES]
    }

    #[inline(always)]
    fn dot(self, sum: [i32; LANES], w: Self::Weights, a: [i8; 4]) -> [i32; LANES] {
        let product = |lane: usize, element: usize| i32::from(w[lane][element]) * i32::from(a[element]);
        std::array::from_fn(|lane| {
            sum[lane] + product(lane, 0) + product(lane, 1) + product(lane, 2) + product(lane, 3)
        })
    }

    #[inline(always)]
    fn to_lanes(self, sums: [i32; LANES]) -> [f32; LANES] {
        sums.map(|sum| sum as f32)
    }

    #[inline(always)]
    fn splat(self, value: f32) -> [f32; LANES] {
        [value; LANES]
    }

    #[inline(always)]
    fn load_f16(self, from: &[u8; 2 * LANES]) -> [f32; LANES] {
        std::array::from_fn(|lane| f16::from_le_bytes([from[lane * 2], from[lane * 2 + 1]]).to_f32())
    }

    #[inline(always)]
    fn load_i8(self, from: &[u8; LANES]) -> [f32; LANES] {
        from.map(|byte| f32::from(byte.cast_signed()))
    }

    #[inline(always)]
    fn add(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        std::array::from_fn(|lane| a[lane] + b[lane])
    }

    #[inline(always)]
    fn mul(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        std::array::from_fn(|lane| a[lane] * b[lane])
    }

    #[inline(always)]
    fn mul_add(self, a: [f32; LANES], b: [f32; LANES], c: [f32; LANES]) -> [f32; LANES] {
        std::array::from_fn(|lane| a[lane].mul_add(b[lane], c[lane]))
    }

    #[inline(always)]
    fn to_array(self, lanes: [f32; LANES]) -> [f32; LANES] {
        lanes
    }

    #[inline(always)]
    fn prefetch(self, _address: *const u8) {}
}
