//! The vectors quantized products are made of: sixteen lanes of integer sums, and sixteen f32.
//!
//! Sums of products of bytes are exact, and the few steps in f32 are the same on every set, so all sets give the
//! same bits.

use super::super::isa::Isa;
use super::super::simd::LANES;
use super::portable::Portable;
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};

/// Arithmetic on sixteen lanes of sums. A value of a type that implements it is a witness that the machine has
/// the set, so every method is safe.
pub(super) trait Integers: Copy + Send + Sync {
    /// Sixteen f32.
    type Lanes: Copy;
    /// Sixteen i32.
    type Sums: Copy;
    /// 64 bytes as they lie in memory.
    type Stored: Copy;
    /// Four weights from 0 to 255 for each lane.
    type Weights: Copy;
    /// Four activations from -127 to 127, the same in each lane.
    type Activations: Copy;

    /// Whether there are registers for tiles of many rows.
    const WIDE: bool;

    fn load(self, from: &[u8; 64]) -> Self::Stored;
    /// Each byte is a weight.
    fn bytes(self, stored: Self::Stored) -> Self::Weights;
    /// The lower half of each byte is a weight.
    fn lower(self, stored: Self::Stored) -> Self::Weights;
    /// The upper half of each byte is a weight.
    fn upper(self, stored: Self::Stored) -> Self::Weights;
    /// Four signed bytes, the first in the lowest bits.
    fn splat_activations(self, four: u32) -> Self::Activations;

    fn splat_sum(self, value: i32) -> Self::Sums;
    /// `sum + w[0] * a[0] + w[1] * a[1] + w[2] * a[2] + w[3] * a[3]`, exactly.
    fn dot(self, sum: Self::Sums, w: Self::Weights, a: Self::Activations) -> Self::Sums;
    fn to_lanes(self, sums: Self::Sums) -> Self::Lanes;

    fn splat(self, value: f32) -> Self::Lanes;
    /// Sixteen f16 as they lie in memory, widened exactly.
    fn load_f16(self, from: &[u8; 2 * LANES]) -> Self::Lanes;
    /// Sixteen signed bytes, widened exactly.
    fn load_i8(self, from: &[u8; LANES]) -> Self::Lanes;
    fn add(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;
    fn mul(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;
    /// `a * b + c`, rounded once.
    fn mul_add(self, a: Self::Lanes, b: Self::Lanes, c: Self::Lanes) -> Self::Lanes;
    fn to_array(self, lanes: Self::Lanes) -> [f32; LANES];
    /// Has the cache line at `address` fetched. Any address will do.
    fn prefetch(self, address: *const u8);
}

/// Work that is compiled once for each set.
pub(super) trait IntegerKernel {
    /// Implementations, and what they call, are `#[inline(always)]`.
    fn run<S: Integers>(self, simd: S);
}

/// The sets quantized products are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IntegerIsa {
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

impl IntegerIsa {
    /// The fastest set that goes with `isa`. Machines with AVX-512 and no dot product of bytes take AVX2.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn of(isa: Isa) -> Self {
        match isa {
            Isa::Avx512Bf16 | Isa::Avx512 if is_x86_feature_detected!("avx512vnni") => Self::Avx512Vnni,
            Isa::Portable => Self::Portable,
            Isa::Avx512Bf16 | Isa::Avx512 | Isa::Avx2 if is_x86_feature_detected!("avxvnni") => {
                Self::AvxVnni
            }
            Isa::Avx512Bf16 | Isa::Avx512 | Isa::Avx2 => Self::Avx2,
        }
    }

    /// The fastest set that goes with `isa`.
    #[cfg(not(target_arch = "x86_64"))]
    pub(super) fn of(isa: Isa) -> Self {
        match isa {
            Isa::Portable => Self::Portable,
        }
    }

    /// Every set this machine has.
    #[cfg(test)]
    pub(super) fn all_of_this_machine() -> Vec<Self> {
        let mut found: Vec<Self> = Isa::all_of_this_machine().into_iter().map(Self::of).collect();
        #[cfg(target_arch = "x86_64")]
        if found.contains(&Self::AvxVnni) {
            found.push(Self::Avx2);
        }
        found.dedup();
        found
    }

    /// Whether there are registers for tiles of many rows.
    pub(super) fn is_wide(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => true,
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni | Self::Avx2 => false,
            Self::Portable => false,
        }
    }

    /// Runs a kernel compiled for this set.
    pub(super) fn run(self, kernel: impl IntegerKernel) {
        match self {
            // SAFETY: these variants are made only where the sets were detected.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => unsafe { avx512::enter(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni => unsafe { avx2::enter_vnni(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { avx2::enter(kernel) },
            Self::Portable => kernel.run(Portable),
        }
    }
}
