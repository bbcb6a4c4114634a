//! CPU kernels. Each is written once over [`simd::Simd`] and compiled for every instruction set in [`isa`].

pub(crate) mod activation;
pub(crate) mod add_bias;
pub(crate) mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(crate) mod head_norm;
pub(crate) mod heap;
pub(crate) mod huge_memory;
pub(crate) mod isa;
pub(crate) mod kv_element;
mod kv_step;
pub mod limits;
pub(crate) mod linear;
pub(crate) mod logit_transform;
pub(crate) mod norm;
pub(crate) mod panels;
pub(crate) mod parallel;
pub(crate) mod placement;
mod portable;
pub(crate) mod projection_norm;
pub(crate) mod quantized;
pub(crate) mod rope;
pub(crate) mod simd;
mod team;
pub(crate) mod unwritten;
