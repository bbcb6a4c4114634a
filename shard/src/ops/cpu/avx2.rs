//! [`Simd`] with AVX2, FMA and F16C: two registers of eight lanes.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::isa::Kernel;
use super::simd::{LANES, Simd, widen};

/// Proof that the machine has AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

/// Runs `kernel` compiled for AVX2, FMA and F16C.
///
/// # Safety
/// The machine has AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn enter<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx2(()))
}

/// One intrinsic applied to both halves.
macro_rules! halves {
    ($intrinsic:ident($($argument:ident),+)) => {
        // SAFETY: `self` proves that the machine has the instruction.
        unsafe { [$intrinsic($($argument[0]),+), $intrinsic($($argument[1]),+)] }
    };
}

impl Simd for Avx2 {
    type Lanes = [__m256; 2];
    type Pairs = [[__m256; 2]; 2];
    type Integers = [__m256i; 2];
    type Shorts = [__m256i; 2];

    const WIDE: bool = false;

    #[inline(always)]
    fn splat(self, value: f32) -> [__m256; 2] {
        // SAFETY: `self` proves that the machine has the instruction.
        unsafe { [_mm256_set1_ps(value); 2] }
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> [__m256; 2] {
        let from = from.as_ptr();
        // SAFETY: `self` proves that the machine has the instruction; sixteen floats are there to read.
        unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
    }

    #[inline(always)]
    fn store(self, lanes: [__m256; 2], to: &mut [f32; LANES]) {
        let to = to.as_mut_ptr();
        // SAFETY: `self` proves that the machine has the instruction; there is room for sixteen floats.
        unsafe {
            _mm256_storeu_ps(to, lanes[0]);
            _mm256_storeu_ps(to.add(8), lanes[1]);
        }
    }

    #[inline(always)]
    fn add(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        halves!(_mm256_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        halves!(_mm256_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        halves!(_mm256_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        halves!(_mm256_div_ps(a, b))
    }

    #[inline(always)]
    fn max(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        halves!(_mm256_max_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        halves!(_mm256_min_ps(a, b))
    }

    #[inline(always)]
    fn mul_add(self, a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
        halves!(_mm256_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn power_of_two(self, biased: [__m256; 2]) -> [__m256; 2] {
        [power_of_two(self, biased[0]), power_of_two(self, biased[1])]
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
    fn load_f16(self, from: &[f16; LANES]) -> [__m256; 2] {
        let from = from.as_ptr().cast::<__m128i>();
        // SAFETY: `self` proves that the machine has the instructions; 32 bytes are there to read.
        let numbers = unsafe { [_mm_loadu_si128(from), _mm_loadu_si128(from.add(1))] };
        halves!(_mm256_cvtph_ps(numbers))
    }

    #[inline(always)]
    fn no_integers(self) -> [__m256i; 2] {
        // SAFETY: `self` proves that the machine has the instruction.
        unsafe { [_mm256_setzero_si256(); 2] }
    }

    #[inline(always)]
    fn to_lanes(self, integers: [__m256i; 2]) -> [__m256; 2] {
        halves!(_mm256_cvtepi32_ps(integers))
    }

    #[inline(always)]
    fn load_shorts(self, from: &[[u8; 2]; LANES]) -> [__m256i; 2] {
        let from = from.as_ptr().cast::<__m128i>();
        // SAFETY: `self` proves that the machine has the instructions; 32 bytes are there to read.
        let bytes = unsafe { [_mm_loadu_si128(from), _mm_loadu_si128(from.add(1))] };
        halves!(_mm256_cvtepi8_epi16(bytes))
    }

    #[inline(always)]
    fn splat_shorts(self, pair: [i16; 2]) -> [__m256i; 2] {
        let bits = u32::from(pair[0].cast_unsigned()) | u32::from(pair[1].cast_unsigned()) << 16;
        // SAFETY: `self` proves that the machine has the instruction.
        unsafe { [_mm256_set1_epi32(bits.cast_signed()); 2] }
    }

    #[inline(always)]
    fn dot_shorts(self, sums: [__m256i; 2], a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
        let products = halves!(_mm256_madd_epi16(a, b));
        halves!(_mm256_add_epi32(sums, products))
    }

    #[inline(always)]
    fn store_i16(self, lanes: [__m256; 2], to: &mut [i16; LANES]) {
        let [low, high] = halves!(_mm256_cvtps_epi32(lanes));
        // SAFETY: `self` proves that the machine has the instructions; there is room for 32 bytes.
        unsafe {
            // Of each half of a register in turn.
            let packed = _mm256_packs_epi32(low, high);
            let in_order = _mm256_permute4x64_epi64::<0b11_01_10_00>(packed);
            _mm256_storeu_si256(to.as_mut_ptr().cast(), in_order);
        }
    }

    #[inline(always)]
    fn load_pairs(self, from: &[[bf16; 2]; LANES]) -> [[__m256; 2]; 2] {
        let from = from.as_ptr().cast::<__m256i>();
        // SAFETY: `self` proves that the machine has the instructions; 64 bytes are there to read.
        let [low, high] = unsafe { [_mm256_loadu_si256(from), _mm256_loadu_si256(from.add(1))] };
        [
            [first_of_pairs(self, low), first_of_pairs(self, high)],
            [second_of_pairs(self, low), second_of_pairs(self, high)],
        ]
    }

    #[inline(always)]
    fn splat_pair(self, pair: [bf16; 2]) -> [[__m256; 2]; 2] {
        [self.splat(widen(pair[0])), self.splat(widen(pair[1]))]
    }

    #[inline(always)]
    fn dot_pairs(self, sum: [__m256; 2], a: [[__m256; 2]; 2], b: [[__m256; 2]; 2]) -> [__m256; 2] {
        let sum = self.mul_add(a[0], b[0], sum);
        self.mul_add(a[1], b[1], sum)
    }
}

#[inline(always)]
fn power_of_two(_: Avx2, biased: __m256) -> __m256 {
    // SAFETY: the witness proves that the machine has the instructions.
    unsafe {
        let exponent = _mm256_add_epi32(_mm256_castps_si256(biased), _mm256_set1_epi32(127));
        _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23))
    }
}

#[inline(always)]
fn first_of_pairs(_: Avx2, pairs: __m256i) -> __m256 {
    // SAFETY: the witness proves that the machine has the instructions.
    unsafe { _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)) }
}

#[inline(always)]
fn second_of_pairs(_: Avx2, pairs: __m256i) -> __m256 {
    // SAFETY: the witness proves that the machine has the instructions.
    unsafe { _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000_u32 as i32))) }
}
