//! [`Simd`] with AVX-512: one register of sixteen lanes, and the fused bf16 dot product where there is one.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::isa::Kernel;
use super::simd::{LANES, Simd, widen};

/// Proof that the machine has AVX-512 F, BW, DQ and VL.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

/// Proof that the machine has AVX-512 F, BW, DQ, VL and BF16.
#[derive(Clone, Copy)]
pub(crate) struct Avx512Bf16(());

/// Runs `kernel` compiled for AVX-512.
///
/// # Safety
/// The machine has AVX-512 F, BW, DQ and VL.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
pub(super) unsafe fn enter<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx512(()))
}

/// Runs `kernel` compiled for AVX-512 with the fused bf16 dot product.
///
/// # Safety
/// The machine has AVX-512 F, BW, DQ, VL and BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
pub(super) unsafe fn enter_bf16<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx512Bf16(()))
}

/// What both sets do alike: everything but dot products of pairs.
macro_rules! common {
    () => {
        type Lanes = __m512;
        type Integers = __m512i;
        type Shorts = __m512i;

        const WIDE: bool = true;

        #[inline(always)]
        fn splat(self, value: f32) -> __m512 {
            // SAFETY: `self` proves that the machine has the instruction.
            unsafe { _mm512_set1_ps(value) }
        }

        #[inline(always)]
        fn load(self, from: &[f32; LANES]) -> __m512 {
            // SAFETY: `self` proves that the machine has the instruction; sixteen floats are there to read.
            unsafe { _mm512_loadu_ps(from.as_ptr()) }
        }

        #[inline(always)]
        fn store(self, lanes: __m512, to: &mut [f32; LANES]) {
            // SAFETY: `self` proves that the machine has the instruction; there is room for sixteen floats.
            unsafe { _mm512_storeu_ps(to.as_mut_ptr(), lanes) }
        }

        #[inline(always)]
        fn add(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: `self` proves that the machine has the instruction.
            unsafe { _mm512_add_ps(a, b) }
        }

        #[inline(always)]
        fn sub(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: `self` proves that the machine has the instruction.
            unsafe { _mm512_sub_ps(a, b) }
        }

        #[inline(always)]
        fn mul(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: `self` proves that the machine has the instruction.
            unsafe { _mm512_mul_ps(a, b) }
        }

        #[inline(always)]
        fn div(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: `self` proves that the machine has the instruction.
            unsafe { _mm512_div_ps(a, b) }
        }

        #[inline(always)]
        fn max(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: `self` proves that the machine has the instruction.
            unsafe { _mm512_max_ps(a, b) }
        }

        #[inline(always)]
        fn min(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: `self` proves that the machine has the instruction.
            unsafe { _mm512_min_ps(a, b) }
        }

        #[inline(always)]
        fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
            // SAFETY: `self` proves that the machine has the instruction.
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }

        #[inline(always)]
        fn power_of_two(self, biased: __m512) -> __m512 {
            // SAFETY: `self` proves that the machine has the instructions.
            unsafe {
                let exponent = _mm512_add_epi32(_mm512_castps_si512(biased), _mm512_set1_epi32(127));
                _mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23))
            }
        }

        #[inline(always)]
        fn prefetch<T>(self, at: *const T) {
            // SAFETY: `self` proves that the machine has the instruction, which faults on no address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
        }

        #[inline(always)]
        fn prefetch_once<T>(self, at: *const T) {
            // SAFETY: `self` proves that the machine has the instruction, which faults on no address.
            unsafe { _mm_prefetch::<_MM_HINT_NTA>(at.cast()) }
        }

        #[inline(always)]
        fn alternate(self, first: f32, second: f32) -> __m512 {
            let pair = u64::from(first.to_bits()) | u64::from(second.to_bits()) << 32;
            // SAFETY: `self` proves that the machine has the instruction.
            unsafe { _mm512_castsi512_ps(_mm512_set1_epi64(pair.cast_signed())) }
        }

        #[inline(always)]
        fn load_f16(self, from: &[f16; LANES]) -> __m512 {
            // SAFETY: `self` proves that the machine has the instructions; 32 bytes are there to read.
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) }
        }

        #[inline(always)]
        fn no_integers(self) -> __m512i {
            // SAFETY: `self` proves that the machine has the instruction.
            unsafe { _mm512_setzero_si512() }
        }

        #[inline(always)]
        fn to_lanes(self, integers: __m512i) -> __m512 {
            // SAFETY: `self` proves that the machine has the instruction.
            unsafe { _mm512_cvtepi32_ps(integers) }
        }

        #[inline(always)]
        fn load_shorts(self, from: &[[u8; 2]; LANES]) -> __m512i {
            // SAFETY: `self` proves that the machine has the instructions; 32 bytes are there to read.
            unsafe { _mm512_cvtepi8_epi16(_mm256_loadu_si256(from.as_ptr().cast())) }
        }

        #[inline(always)]
        fn splat_shorts(self, pair: [i16; 2]) -> __m512i {
            let bits = u32::from(pair[0].cast_unsigned()) | u32::from(pair[1].cast_unsigned()) << 16;
            // SAFETY: `self` proves that the machine has the instruction.
            unsafe { _mm512_set1_epi32(bits.cast_signed()) }
        }

        #[inline(always)]
        fn dot_shorts(self, sums: __m512i, a: __m512i, b: __m512i) -> __m512i {
            // SAFETY: `self` proves that the machine has the instructions.
            unsafe { _mm512_add_epi32(sums, _mm512_madd_epi16(a, b)) }
        }

        #[inline(always)]
        fn store_i16(self, lanes: __m512, to: &mut [i16; LANES]) {
            // SAFETY: `self` proves that the machine has the instructions; there is room for 32 bytes.
            unsafe {
                let rounded = _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(lanes));
                _mm256_storeu_si256(to.as_mut_ptr().cast(), rounded);
            }
        }

        #[inline(always)]
        fn keep(self, lanes: __m512, (first, end): (usize, usize), other: f32) -> __m512 {
            let below = |lane: usize| ((1_u32 << lane.min(LANES)) - 1) as u16;
            // SAFETY: `self` proves that the machine has the instructions.
            unsafe { _mm512_mask_blend_ps(below(end) & !below(first), _mm512_set1_ps(other), lanes) }
        }

        #[inline(always)]
        fn reduce_max(self, lanes: __m512) -> f32 {
            // SAFETY: `self` proves that the machine has the instructions.
            unsafe { _mm512_reduce_max_ps(lanes) }
        }
    };
}

impl Simd for Avx512 {
    type Pairs = [__m512; 2];

    common!();

    #[inline(always)]
    fn load_pairs(self, from: &[[bf16; 2]; LANES]) -> [__m512; 2] {
        // SAFETY: `self` proves that the machine has the instructions; 64 bytes are there to read.
        unsafe {
            let pairs = _mm512_loadu_si512(from.as_ptr().cast());
            let second = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32 as i32));
            [_mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)), _mm512_castsi512_ps(second)]
        }
    }

    #[inline(always)]
    fn splat_pair(self, pair: [bf16; 2]) -> [__m512; 2] {
        [self.splat(widen(pair[0])), self.splat(widen(pair[1]))]
    }

    #[inline(always)]
    fn dot_pairs(self, sum: __m512, a: [__m512; 2], b: [__m512; 2]) -> __m512 {
        let sum = self.mul_add(a[0], b[0], sum);
        self.mul_add(a[1], b[1], sum)
    }
}

impl Simd for Avx512Bf16 {
    type Pairs = __m512i;

    common!();

    #[inline(always)]
    fn load_pairs(self, from: &[[bf16; 2]; LANES]) -> __m512i {
        // SAFETY: `self` proves that the machine has the instruction; 64 bytes are there to read.
        unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn splat_pair(self, pair: [bf16; 2]) -> __m512i {
        let bits = u32::from(pair[0].to_bits()) | u32::from(pair[1].to_bits()) << 16;
        // SAFETY: `self` proves that the machine has the instruction.
        unsafe { _mm512_set1_epi32(bits as i32) }
    }

    #[inline(always)]
    fn store_bf16(self, lanes: __m512, to: &mut [bf16; LANES]) -> __m512 {
        // SAFETY: `self` proves that the machine has the instruction; both types are 32 bytes of bf16, and
        // there is room for so many.
        unsafe {
            let rounded = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(lanes));
            _mm256_storeu_si256(to.as_mut_ptr().cast(), rounded);
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(rounded)))
        }
    }

    #[inline(always)]
    fn dot_pairs(self, sum: __m512, a: __m512i, b: __m512i) -> __m512 {
        // SAFETY: `self` proves that the machine has the instruction; both types are 64 bytes of bf16 pairs.
        unsafe {
            let pairs = |lanes: __m512i| std::mem::transmute::<__m512i, __m512bh>(lanes);
            _mm512_dpbf16_ps(sum, pairs(a), pairs(b))
        }
    }
}
