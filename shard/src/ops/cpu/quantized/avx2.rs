//! [`Integers`] with AVX2, FMA and F16C, with and without the dot product of bytes: two registers of eight lanes.

use std::arch::x86_64::*;

use super::super::simd::LANES;
use super::integers::{IntegerKernel, Integers};

/// Proof that the machine has AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

/// Proof that the machine has AVX2, FMA, F16C and AVX-VNNI.
#[derive(Clone, Copy)]
pub(super) struct AvxVnni(());

/// Runs `kernel` compiled for AVX2.
///
/// # Safety
/// The machine has AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn enter(kernel: impl IntegerKernel) {
    kernel.run(Avx2(()));
}

/// Runs `kernel` compiled for AVX2 with the dot product of bytes.
///
/// # Safety
/// The machine has AVX2, FMA, F16C and AVX-VNNI.
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
pub(super) unsafe fn enter_vnni(kernel: impl IntegerKernel) {
    kernel.run(AvxVnni(()));
}

/// One intrinsic applied to both halves.
macro_rules! halves {
    ($intrinsic:ident($($argument:ident),+)) => {
        // SAFETY: `self` proves that the machine has the instruction.
        unsafe { [$intrinsic($($argument[0]),+), $intrinsic($($argument[1]),+)] }
    };
}

/// What both sets do alike.
macro_rules! shared {
    () => {
        type Lanes = [__m256; 2];
        type Sums = [__m256i; 2];
        type Stored = [__m256i; 2];

        const WIDE: bool = false;

        #[inline(always)]
        fn load(self, from: &[u8; 64]) -> [__m256i; 2] {
            let from = from.as_ptr().cast::<__m256i>();
            // SAFETY: `self` proves that the machine has the instruction; 64 bytes are there to read.
            unsafe { [_mm256_loadu_si256(from), _mm256_loadu_si256(from.add(1))] }
        }

        #[inline(always)]
        fn lower(self, stored: [__m256i; 2]) -> Self::Weights {
            // SAFETY: `self` proves that the machine has the instructions.
            self.bytes(stored.map(|half| unsafe { _mm256_and_si256(half, _mm256_set1_epi8(15)) }))
        }

        #[inline(always)]
        fn upper(self, stored: [__m256i; 2]) -> Self::Weights {
            let fours = |half| {
                // SAFETY: `self` proves that the machine has the instructions.
                unsafe { _mm256_and_si256(_mm256_srli_epi16(half, 4), _mm256_set1_epi8(15)) }
            };
            self.bytes(stored.map(fours))
        }

        #[inline(always)]
        fn splat_sum(self, value: i32) -> [__m256i; 2] {
            // SAFETY: `self` proves that the machine has the instruction.
            unsafe { [_mm256_set1_epi32(value); 2] }
        }

        #[inline(always)]
        fn to_lanes(self, sums: [__m256i; 2]) -> [__m256; 2] {
            halves!(_mm256_cvtepi32_ps(sums))
        }

        #[inline(always)]
        fn splat(self, value: f32) -> [__m256; 2] {
            // SAFETY: `self` proves that the machine has the instruction.
            unsafe { [_mm256_set1_ps(value); 2] }
        }

        #[inline(always)]
        fn load_f16(self, from: &[u8; 2 * LANES]) -> [__m256; 2] {
            let from = from.as_ptr().cast::<__m128i>();
            // SAFETY: `self` proves that the machine has the instructions; 32 bytes are there to read.
            unsafe {
                [_mm256_cvtph_ps(_mm_loadu_si128(from)), _mm256_cvtph_ps(_mm_loadu_si128(from.add(1)))]
            }
        }

        #[inline(always)]
        fn load_i8(self, from: &[u8; LANES]) -> [__m256; 2] {
            // SAFETY: `self` proves that the machine has the instructions; 16 bytes are there to read.
            unsafe {
                let bytes = _mm_loadu_si128(from.as_ptr().cast());
                [bytes, _mm_srli_si128(bytes, 8)]
                    .map(|eight| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight)))
            }
        }

        #[inline(always)]
        fn add(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
            halves!(_mm256_add_ps(a, b))
        }

        #[inline(always)]
        fn mul(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
            halves!(_mm256_mul_ps(a, b))
        }

        #[inline(always)]
        fn mul_add(self, a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
            halves!(_mm256_fmadd_ps(a, b, c))
        }

        #[inline(always)]
        fn to_array(self, lanes: [__m256; 2]) -> [f32; LANES] {
            let mut array = [0.0; LANES];
            // SAFETY: `self` proves that the machine has the instruction; there is room for sixteen floats.
            unsafe {
                _mm256_storeu_ps(array.as_mut_ptr(), lanes[0]);
                _mm256_storeu_ps(array.as_mut_ptr().add(8), lanes[1]);
            }
            array
        }

        #[inline(always)]
        fn prefetch(self, address: *const u8) {
            // SAFETY: the program sees nothing of a prefetch, and it faults nowhere.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
        }
    };
}

impl Integers for AvxVnni {
    type Weights = [__m256i; 2];
    type Activations = __m256i;

    shared!();

    #[inline(always)]
    fn bytes(self, stored: [__m256i; 2]) -> [__m256i; 2] {
        stored
    }

    #[inline(always)]
    fn splat_activations(self, four: u32) -> __m256i {
        // SAFETY: `self` proves that the machine has the instruction.
        unsafe { _mm256_set1_epi32(four.cast_signed()) }
    }

    #[inline(always)]
    fn dot(self, sum: [__m256i; 2], w: [__m256i; 2], a: __m256i) -> [__m256i; 2] {
        // SAFETY: `self` proves that the machine has the instruction.
        unsafe { [_mm256_dpbusd_avx_epi32(sum[0], w[0], a), _mm256_dpbusd_avx_epi32(sum[1], w[1], a)] }
    }
}

/// Even and odd bytes as words: products of words are added in pairs, which do not leave a lane. The product of
/// bytes would saturate.
impl Integers for Avx2 {
    /// Of each half, its even and its odd bytes.
    type Weights = [[__m256i; 2]; 2];
    type Activations = [__m256i; 2];

    shared!();

    #[inline(always)]
    fn bytes(self, stored: [__m256i; 2]) -> [[__m256i; 2]; 2] {
        // SAFETY: `self` proves that the machine has the instructions.
        stored.map(|half| unsafe {
            [_mm256_and_si256(half, _mm256_set1_epi16(255)), _mm256_srli_epi16(half, 8)]
        })
    }

    #[inline(always)]
    fn splat_activations(self, four: u32) -> [__m256i; 2] {
        // SAFETY: `self` proves that the machine has the instructions.
        unsafe {
            let four = _mm256_set1_epi32(four.cast_signed());
            [_mm256_srai_epi16(_mm256_slli_epi16(four, 8), 8), _mm256_srai_epi16(four, 8)]
        }
    }

    #[inline(always)]
    fn dot(self, sum: [__m256i; 2], w: [[__m256i; 2]; 2], a: [__m256i; 2]) -> [__m256i; 2] {
        std::array::from_fn(|half| {
            // SAFETY: `self` proves that the machine has the instructions.
            unsafe {
                let sum = _mm256_add_epi32(sum[half], _mm256_madd_epi16(w[half][0], a[0]));
                _mm256_add_epi32(sum, _mm256_madd_epi16(w[half][1], a[1]))
            }
        })
    }
}
