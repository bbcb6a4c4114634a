//! Runs steps on a slice of the model: weights, KV blocks, kernels, sampling, collectives.
//!
//! A shard's life is `serve`: it reads [`args`] and [`config`], has `load` join the group and read the
//! weights, and listens. A step's path is `grpc` (wire messages) → `worker` (the one thread that owns the
//! model) → [`engine`] (checks the step, lays it out as a [`batch`]) → [`decoder`] (with `ops` over
//! `weights` and [`kv`], and the other ranks through [`comm`]) → [`sampling`].

pub mod args;
pub mod batch;
pub mod comm;
pub mod config;
pub mod decoder;
pub mod device;
mod dtype;
pub mod engine;
mod error;
pub mod forecast;
mod grpc;
pub mod kv;
mod lifeline;
mod load;
mod ops;
pub mod plan;
mod precision;
pub mod sampling;
mod serve;
#[doc(hidden)]
pub mod testing;
mod traces;
mod weights;
mod worker;

pub use error::{ShardError, StreamEnd};
pub use lifeline::Patience;
pub use load::{LoadError, Loaded};
#[doc(hidden)]
pub use ops::attention_probe::AttentionProbe;
pub use ops::cpu::heap::keep_freed_memory;
#[doc(hidden)]
pub use ops::cpu::isa::use_instruction_set;
#[doc(hidden)]
pub use ops::cpu::limits;
#[cfg(feature = "cuda")]
#[doc(hidden)]
pub use ops::cuda::checks as gpu_checks;
#[cfg(feature = "cuda")]
#[doc(hidden)]
pub use ops::cuda::limits as gpu_limits;
pub use serve::{run, serve};
