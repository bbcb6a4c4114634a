//! What a KV block's elements may be.

use candle_core::{CpuStorage, WithDType};
use half::bf16;

use super::simd::{LANES, Simd, round_to_bf16};

/// An element of a KV block.
pub(crate) trait KvElement: WithDType {
    fn from_f32(value: f32) -> Self;
    /// The pool's elements, where it is a pool of these.
    fn elements_mut(storage: &mut CpuStorage) -> Option<&mut [Self]>;
    fn load<S: Simd>(simd: S, from: &[Self; LANES]) -> S::Lanes;
    /// The first lanes from memory, zero in the others.
    fn load_first<S: Simd>(simd: S, from: &[Self]) -> S::Lanes;
}

impl KvElement for f32 {
    fn elements_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        if let CpuStorage::F32(elements) = storage { Some(elements) } else { None }
    }

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        value
    }

    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[f32; LANES]) -> S::Lanes {
        simd.load(from)
    }

    #[inline(always)]
    fn load_first<S: Simd>(simd: S, from: &[f32]) -> S::Lanes {
        simd.load_first(from)
    }
}

impl KvElement for bf16 {
    fn elements_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        if let CpuStorage::BF16(elements) = storage { Some(elements) } else { None }
    }

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        round_to_bf16(value)
    }

    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[bf16; LANES]) -> S::Lanes {
        simd.load_bf16(from)
    }

    #[inline(always)]
    fn load_first<S: Simd>(simd: S, from: &[bf16]) -> S::Lanes {
        if let Some(whole) = from.as_array() {
            return simd.load_bf16(whole);
        }
        let mut array = [bf16::ZERO; LANES];
        let count = from.len().min(LANES);
        array[..count].copy_from_slice(&from[..count]);
        simd.load_bf16(&array)
    }
}
