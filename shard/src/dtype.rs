//! The element type weights and KV blocks are held in.

use std::fmt;

#[cfg(feature = "cuda")]
use candle_core::{DType, bail};
use clap::ValueEnum;
use half::f16;
use thiserror::Error;

/// The element type weights and KV blocks are held in. Activations and accumulators are f32 in all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Dtype {
    /// 16 bits with the exponent of an f32. What is served with.
    #[value(name = "bfloat16")]
    Bfloat16,
    /// 16 bits with three more of the mantissa, and numbers up to 65,504: for models that are stored so.
    #[value(name = "float16")]
    Float16,
    /// 32 bits. For reference runs.
    #[value(name = "float32")]
    Float32,
}

impl Dtype {
    /// Bytes one element takes.
    pub fn bytes(self) -> usize {
        match self {
            Self::Bfloat16 | Self::Float16 => 2,
            Self::Float32 => 4,
        }
    }
}

#[cfg(feature = "cuda")]
impl Dtype {
    /// As tensors have it.
    pub(crate) fn elements(self) -> DType {
        match self {
            Self::Bfloat16 => DType::BF16,
            Self::Float16 => DType::F16,
            Self::Float32 => DType::F32,
        }
    }

    /// What a tensor of weights holds.
    ///
    /// # Errors
    /// When weights are not held so.
    pub(crate) fn of_elements(elements: DType) -> candle_core::Result<Self> {
        let held = Self::value_variants().iter().copied().find(|held| held.elements() == elements);
        let Some(held) = held else {
            bail!("read weights of {}: they are bf16, f16 or f32", elements.as_str())
        };
        Ok(held)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bfloat16 => "bfloat16",
            Self::Float16 => "float16",
            Self::Float32 => "float32",
        })
    }
}

/// A number that is too large for the type it is to be held in.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("a weight is beyond 65504, the largest number of float16: bfloat16 holds it")]
pub struct Overflow;

/// The nearest f16.
///
/// # Errors
/// When a number becomes none.
pub(crate) fn as_f16(value: f32) -> Result<f16, Overflow> {
    let nearest = f16::from_f32(value);
    if nearest.is_infinite() && value.is_finite() { Err(Overflow) } else { Ok(nearest) }
}
