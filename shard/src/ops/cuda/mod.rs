//! The operators on CUDA devices: what each custom operator's `cuda_fwd` calls.
//!
//! Activations are f32 and on the device's one stream, as they are f32 on the CPU. Weights are bf16 or f32, rows of plain
//! numbers, or quantized ones in tiles; KV blocks are bf16, f32, or eight bits with scales. Every operator has its kernel's
//! parameters, the shape of its launch, and what ties both to candle's storage; the kernels are in `kernels/`.

pub(crate) mod attention;
pub mod checks;
pub(crate) mod copies;
pub(crate) mod emulation;
pub(crate) mod exchange;
pub(crate) mod experts;
pub(crate) mod gpu;
pub(crate) mod heads;
pub(crate) mod kernel;
pub mod limits;
pub(crate) mod logits;
pub(crate) mod norm;
pub(crate) mod product;
pub(crate) mod recent;
pub(crate) mod recording;
pub(crate) mod rows;
pub(crate) mod sampling;
pub(crate) mod storage;
pub(crate) mod words;
