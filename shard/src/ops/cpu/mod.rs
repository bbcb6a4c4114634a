//! CPU kernels. Each is written once over [`simd::Simd`] and compiled for every instruction set in [`isa`].

pub(crate) mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(crate) mod huge_memory;
pub(crate) mod isa;
pub(crate) mod kv_element;
pub(crate) mod linear;
pub(crate) mod panels;
mod parallel;
mod portable;
pub(crate) mod rms_norm;
pub(crate) mod rope;
pub(crate) mod silu_gate;
pub(crate) mod simd;
