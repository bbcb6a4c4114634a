//! Which instruction set kernels run with, found once.

use std::fmt;
use std::sync::OnceLock;

use thiserror::Error;

use super::portable::Portable;
use super::simd::Simd;
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};

/// The instruction sets kernels are compiled for. Results are bit-equal within one of them, not across.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Isa {
    /// AVX-512 with the fused bf16 dot product.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    /// AVX-512.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX2 with FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// Whatever the compiler makes of plain Rust.
    Portable,
}

/// The set that kernels run with, once it was found or said.
static USED: OnceLock<Isa> = OnceLock::new();

/// An instruction set that cannot be had.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum InstructionSetError {
    /// The machine has none of this name.
    #[error("use the instruction set {found:?}: this machine has {has}")]
    Unknown {
        /// What was asked for.
        found: String,
        /// What there is, fastest first.
        has: String,
    },
    /// Kernels ran already.
    #[error(
        "use the instruction set {asked}: kernels run with {used} already; say it before anything is loaded"
    )]
    Late {
        /// What was asked for.
        asked: String,
        /// What is used.
        used: String,
    },
}

/// Has kernels run with the set of this name in place of the fastest, so that a benchmark shows what a lesser
/// machine would do. To be called before anything is loaded.
///
/// # Errors
/// When the machine has no such set, or another is used already.
pub fn use_instruction_set(name: &str) -> Result<(), InstructionSetError> {
    let sets = Isa::all_of_this_machine();
    let Some(isa) = sets.iter().copied().find(|isa| isa.to_string() == name) else {
        let has: Vec<String> = sets.iter().map(Isa::to_string).collect();
        return Err(InstructionSetError::Unknown { found: name.to_owned(), has: has.join(", ") });
    };
    let used = *USED.get_or_init(|| isa);
    if used == isa {
        return Ok(());
    }
    Err(InstructionSetError::Late { asked: name.to_owned(), used: used.to_string() })
}

/// Work that is compiled once for each instruction set.
pub(crate) trait Kernel {
    type Output;

    /// Does the work. Implementations, and what they call, are `#[inline(always)]`, so that all of it is
    /// compiled for the set.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

impl Isa {
    /// The fastest set this machine has, or what was said in its place.
    pub(crate) fn of_this_machine() -> Self {
        *USED.get_or_init(|| Self::all_of_this_machine()[0])
    }

    /// Every set this machine has, fastest first.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn all_of_this_machine() -> Vec<Self> {
        let mut found = vec![Self::Portable];
        let avx2 = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        if avx2 {
            found.insert(0, Self::Avx2);
        }
        let avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        if avx512 && found[0] == Self::Avx2 {
            found.insert(0, Self::Avx512);
            if is_x86_feature_detected!("avx512bf16") {
                found.insert(0, Self::Avx512Bf16);
            }
        }
        found
    }

    /// Every set this machine has, fastest first.
    #[cfg(not(target_arch = "x86_64"))]
    pub(crate) fn all_of_this_machine() -> Vec<Self> {
        vec![Self::Portable]
    }

    /// Whether there are 32 registers of 64 bytes.
    pub(crate) fn is_wide(self) -> bool {
        struct IsWide;
        impl Kernel for IsWide {
            type Output = bool;

            #[inline(always)]
            fn run<S: Simd>(self, _simd: S) -> bool {
                S::WIDE
            }
        }
        self.run(IsWide)
    }

    /// Runs a kernel that takes no dot products of pairs, compiled for this set.
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: these variants are made only where the set was detected. Without dot products of pairs
            // both sets are one, and compiled once.
            Self::Avx512Bf16 | Self::Avx512 => unsafe { avx512::enter(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: this variant is made only where the set was detected.
            Self::Avx2 => unsafe { avx2::enter(kernel) },
            Self::Portable => kernel.run(Portable),
        }
    }

    /// Runs a kernel that takes dot products of pairs, compiled for this set.
    pub(crate) fn run_pairs<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: this variant is made only where the set was detected.
            Self::Avx512Bf16 => unsafe { avx512::enter_bf16(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: this variant is made only where the set was detected.
            Self::Avx512 => unsafe { avx512::enter(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: this variant is made only where the set was detected.
            Self::Avx2 => unsafe { avx2::enter(kernel) },
            Self::Portable => kernel.run(Portable),
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => "avx512-bf16",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => "avx2",
            Self::Portable => "portable",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_used_by_its_name_and_no_other_after_it() {
        let used = Isa::of_this_machine();
        assert_eq!(use_instruction_set(&used.to_string()), Ok(()));
        for other in Isa::all_of_this_machine().into_iter().filter(|isa| *isa != used) {
            let error = use_instruction_set(&other.to_string()).unwrap_err();
            assert!(matches!(error, InstructionSetError::Late { .. }), "{error}");
        }
        let message = use_instruction_set("mmx").unwrap_err().to_string();
        assert!(message.contains("\"mmx\"") && message.contains("portable"), "{message}");
    }
}
