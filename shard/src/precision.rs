//! What weights are held in: a type of elements, or fewer bits with scales.

use std::fmt;

use candle_core::quantized::GgmlDType;
use clap::ValueEnum;

use crate::device::{DeviceError, DeviceKind};
use crate::dtype::Dtype;
use crate::ops::cpu::panels::PanelShape;
use crate::ops::cpu::quantized::Format;
use crate::ops::matrix::Packing;
use crate::weights;

/// How the weights of linear layers and of the head are quantized. Norms, biases, embeddings and the routers of
/// experts never are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Quantize {
    /// As the model's files have them: where a GGUF file holds blocks of 4 to 8 bits, these very numbers. With
    /// `float32`, which is for reference runs, not at all.
    #[default]
    #[value(name = "as-stored")]
    AsStored,
    /// Not at all: blocks of GGUF files are widened.
    #[value(name = "none")]
    None,
    /// To 8 bits, with a scale for 32 elements of a row.
    #[value(name = "int8")]
    Int8,
    /// To 4 bits, with a scale for 32 elements of a row.
    #[value(name = "int4")]
    Int4,
    /// To floating-point numbers of 8 bits (e4m3), with a scale for a row of a virtual shard; on GPUs only.
    #[value(name = "fp8")]
    Fp8,
}

/// What weights and KV blocks are held in. A [`Dtype`] alone is one, with weights as they are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Precision {
    /// KV blocks, and weights that are not quantized.
    pub dtype: Dtype,
    /// Weights.
    pub quantize: Quantize,
}

impl From<Dtype> for Precision {
    fn from(dtype: Dtype) -> Self {
        Self { dtype, quantize: Quantize::default() }
    }
}

impl Precision {
    /// Whether weights can be held so on a device.
    ///
    /// # Errors
    /// When only other devices multiply by them.
    pub fn check(self, on: DeviceKind) -> Result<(), DeviceError> {
        match (self.quantize, on) {
            (Quantize::Fp8, DeviceKind::Cpu) => {
                Err(DeviceError::GpusOnly { option: "--quantize fp8", instead: "give int8" })
            }
            (Quantize::Fp8, DeviceKind::Cuda)
            | (Quantize::AsStored | Quantize::None | Quantize::Int8 | Quantize::Int4, _) => Ok(()),
        }
    }

    /// How a matrix of a linear layer is held that is this rank's part of rows of `row` elements, which a GGUF
    /// file holds in blocks of the type `stored`. On all ranks of any group it is the same.
    pub(crate) fn packing(self, (shape, row): (PanelShape, usize), stored: Option<GgmlDType>) -> Packing {
        let elements = Packing::Elements(self.dtype);
        match (self.quantize, self.dtype) {
            (Quantize::None, _) | (Quantize::AsStored, Dtype::Float32) => elements,
            (Quantize::Int8, _) => Packing::Quantized(Format::Bytes),
            (Quantize::Int4, _) => Packing::Quantized(Format::Nibbles),
            (Quantize::Fp8, _) => Packing::Float8,
            (Quantize::AsStored, Dtype::Bfloat16 | Dtype::Float16) => {
                let format = stored.and_then(weights::format_of);
                let segment = shape.inputs / shape.segments;
                // Where a segment ends within a block, there is no part of a row to be had as it is stored.
                let whole = |format: &Format| segment == row || segment.is_multiple_of(format.unit());
                format.filter(whole).map_or(elements, Packing::Quantized)
            }
        }
    }
}

impl fmt::Display for Quantize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AsStored => "as-stored",
            Self::None => "none",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
            Self::Fp8 => "fp8",
        })
    }
}

/// `bfloat16`, or `bfloat16, weights int8`.
impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.quantize {
            Quantize::AsStored | Quantize::None => write!(f, "{}", self.dtype),
            Quantize::Int8 | Quantize::Int4 | Quantize::Fp8 => {
                write!(f, "{}, weights {}", self.dtype, self.quantize)
            }
        }
    }
}
