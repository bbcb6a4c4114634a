//! The element type weights and KV blocks are held in.

use std::fmt;

use clap::ValueEnum;

/// The element type weights and KV blocks are held in. Activations and accumulators are f32 in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Dtype {
    /// 16 bits with the exponent of an f32. What is served with.
    #[value(name = "bfloat16")]
    Bfloat16,
    /// 32 bits. For reference runs.
    #[value(name = "float32")]
    Float32,
}

impl Dtype {
    /// Bytes one element takes.
    pub fn bytes(self) -> usize {
        match self {
            Self::Bfloat16 => 2,
            Self::Float32 => 4,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bfloat16 => "bfloat16",
            Self::Float32 => "float32",
        })
    }
}
