//! [`Integers`] with AVX-512 and its dot product of bytes.

use std::arch::x86_64::*;

use super::super::simd::LANES;
use super::integers::{IntegerKernel, Integers};

/// Proof that the machine has AVX-512 F, BW, DQ, VL and VNNI.
#[derive(Clone, Copy)]
pub(super) struct Avx512Vnni(());

/// Runs `kernel` compiled for AVX-512 with the dot product of bytes.
///
/// # Safety
/// The machine has AVX-512 F, BW, DQ, VL and VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
pub(super) unsafe fn enter(kernel: impl IntegerKernel) {
    kernel.run(Avx512Vnni(()));
}

impl Integers for Avx512Vnni {
    type Weights = __m512i;
    type Activations = __m512i;

    type Lanes = __m512;
    type Sums = __m512i;
    type Stored = __m512i;

    const WIDE: bool = true;

    #[inline(always)]
    fn load(self, from: &[u8; 64]) -> __m512i {
        // SAFETY: `self` proves that the machine has the instruction; 64 bytes are there to read.
        unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn lower(self, stored: __m512i) -> __m512i {
        // SAFETY: `self` proves that the machine has the instructions.
        self.bytes(unsafe { _mm512_and_si512(stored, _mm512_set1_epi8(15)) })
    }

    #[inline(always)]
    fn upper(self, stored: __m512i) -> __m512i {
        // SAFETY: `self` proves that the machine has the instructions.
        self.bytes(unsafe { _mm512_and_si512(_mm512_srli_epi16(stored, 4), _mm512_set1_epi8(15)) })
    }

    #[inline(always)]
    fn splat_sum(self, value: i32) -> __m512i {
        // SAFETY: `self` proves that the machine has the instruction.
        unsafe { _mm512_set1_epi32(value) }
    }

    #[inline(always)]
    fn to_lanes(self, sums: __m512i) -> __m512 {
        // SAFETY: `self` proves that the machine has the instruction.
        unsafe { _mm512_cvtepi32_ps(sums) }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        // SAFETY: `self` proves that the machine has the instruction.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    fn load_f16(self, from: &[u8; 2 * LANES]) -> __m512 {
        // SAFETY: `self` proves that the machine has the instructions; 32 bytes are there to read.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) }
    }

    #[inline(always)]
    fn load_i8(self, from: &[u8; LANES]) -> __m512 {
        // SAFETY: `self` proves that the machine has the instructions; 16 bytes are there to read.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.as_ptr().cast()))) }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves that the machine has the instruction.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves that the machine has the instruction.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: `self` proves that the machine has the instruction.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn to_array(self, lanes: __m512) -> [f32; LANES] {
        let mut array = [0.0; LANES];
        // SAFETY: `self` proves that the machine has the instruction; there is room for sixteen floats.
        unsafe { _mm512_storeu_ps(array.as_mut_ptr(), lanes) };
        array
    }

    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        // SAFETY: the program sees nothing of a prefetch, and it faults nowhere.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }

    #[inline(always)]
    fn bytes(self, stored: __m512i) -> __m512i {
        stored
    }

    #[inline(always)]
    fn splat_activations(self, four: u32) -> __m512i {
        // SAFETY: `self` proves that the machine has the instruction.
        unsafe { _mm512_set1_epi32(four.cast_signed()) }
    }

    #[inline(always)]
    fn dot(self, sum: __m512i, w: __m512i, a: __m512i) -> __m512i {
        // SAFETY: `self` proves that the machine has the instruction.
        unsafe { _mm512_dpbusd_epi32(sum, w, a) }
    }
}
