//! What keys and values are held in.

use std::fmt;

use candle_core::DType;
use clap::ValueEnum;

use super::layout::KvLayout;
use crate::device::{DeviceError, DeviceKind};
use crate::dtype::Dtype;
use crate::ops::cpu::kv_element::KvElement;

/// What is asked for. Attention computes with f32 accumulators in all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KvCacheDtype {
    /// The element type of the weights.
    #[value(name = "auto")]
    Auto,
    /// 16 bits with the exponent of an f32.
    #[value(name = "bf16")]
    Bfloat16,
    /// 16 bits with three more of the mantissa, for numbers up to 65,504.
    #[value(name = "f16")]
    Float16,
    /// 8 bits, and a scale for each token and head: about half the memory of 16 bits.
    #[value(name = "int8")]
    Int8,
    /// Floating-point numbers of 8 bits (e4m3), and a scale for each token and head; on GPUs alone.
    #[value(name = "fp8")]
    Float8,
}

/// What is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KvDtype {
    Float32,
    Bfloat16,
    Float16,
    Int8,
    Float8,
}

impl KvCacheDtype {
    /// Whether devices of this kind hold keys and values so.
    ///
    /// # Errors
    /// When they do not.
    pub fn check_on(self, kind: DeviceKind) -> Result<(), DeviceError> {
        match (self, kind) {
            (Self::Float8, DeviceKind::Cpu) => {
                Err(DeviceError::GpusOnly { option: "--kv-cache-dtype fp8", instead: "give int8" })
            }
            (Self::Float8, DeviceKind::Cuda)
            | (
                Self::Auto | Self::Bfloat16 | Self::Float16 | Self::Int8,
                DeviceKind::Cpu | DeviceKind::Cuda,
            ) => Ok(()),
        }
    }

    pub(crate) fn beside(self, weights: Dtype) -> KvDtype {
        match (self, weights) {
            (Self::Int8, _) => KvDtype::Int8,
            (Self::Float8, _) => KvDtype::Float8,
            (Self::Bfloat16, _) | (Self::Auto, Dtype::Bfloat16) => KvDtype::Bfloat16,
            (Self::Float16, _) | (Self::Auto, Dtype::Float16) => KvDtype::Float16,
            (Self::Auto, Dtype::Float32) => KvDtype::Float32,
        }
    }

    /// What it adds to the arithmetic's name, where it is not what the weights' type implies.
    pub(crate) fn arithmetic(self, weights: Dtype) -> &'static str {
        let held = self.beside(weights);
        match held {
            _ if held == Self::Auto.beside(weights) => "",
            KvDtype::Float32 => "/kv-f32",
            KvDtype::Bfloat16 => "/kv-bf16",
            KvDtype::Float16 => "/kv-f16",
            KvDtype::Int8 => "/kv-int8",
            KvDtype::Float8 => "/kv-fp8",
        }
    }
}

impl fmt::Display for KvCacheDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Bfloat16 => "bf16",
            Self::Float16 => "f16",
            Self::Int8 => "int8",
            Self::Float8 => "fp8",
        })
    }
}

impl KvDtype {
    /// Elements of a tile, and the bytes of each.
    fn tile(self, layout: KvLayout) -> (usize, usize) {
        match self {
            Self::Float32 => (f32::tile_elements(layout), size_of::<f32>()),
            Self::Bfloat16 => (half::bf16::tile_elements(layout), size_of::<half::bf16>()),
            Self::Float16 => (half::f16::tile_elements(layout), size_of::<half::f16>()),
            Self::Int8 | Self::Float8 => (u8::tile_elements(layout), size_of::<u8>()),
        }
    }

    /// As tensors on a device have it: of 8 bits with the scales among the elements.
    pub(super) fn elements(self) -> DType {
        match self {
            Self::Float32 => DType::F32,
            Self::Bfloat16 => DType::BF16,
            Self::Float16 => DType::F16,
            Self::Int8 => DType::U8,
            Self::Float8 => DType::F8E4M3,
        }
    }

    /// What tensors of such elements hold.
    ///
    /// # Errors
    /// When KV blocks have no such elements.
    #[cfg(feature = "cuda")]
    pub(crate) fn of_elements(elements: DType) -> candle_core::Result<Self> {
        let all = [Self::Float32, Self::Bfloat16, Self::Float16, Self::Int8, Self::Float8];
        let unknown =
            || candle_core::Error::msg(format!("read KV blocks of {elements:?}: none are held so"));
        all.into_iter().find(|held| held.elements() == elements).ok_or_else(unknown)
    }

    pub(super) fn tile_elements(self, layout: KvLayout) -> usize {
        self.tile(layout).0
    }

    pub(crate) fn tile_bytes(self, layout: KvLayout) -> usize {
        let (elements, bytes) = self.tile(layout);
        elements * bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_of_eight_bits_are_refused_on_the_cpu_alone() {
        let all = KvCacheDtype::value_variants();
        let refused = |kind| -> Vec<KvCacheDtype> {
            all.iter().copied().filter(|held| held.check_on(kind).is_err()).collect()
        };
        assert_eq!(refused(DeviceKind::Cpu), [KvCacheDtype::Float8]);
        assert_eq!(refused(DeviceKind::Cuda), []);
        let error = KvCacheDtype::Float8.check_on(DeviceKind::Cpu).unwrap_err().to_string();
        assert!(error.contains("--kv-cache-dtype fp8") && error.contains("give int8"), "{error}");
    }

    #[test]
    fn what_is_typed_is_what_is_told() {
        for held in KvCacheDtype::value_variants() {
            let typed = held.to_possible_value().map(|value| value.get_name().to_owned());
            assert_eq!(typed.as_deref(), Some(held.to_string().as_str()));
        }
    }

    #[test]
    fn eight_bits_have_a_byte_and_a_share_of_a_scale() {
        let layout = KvLayout { kv_heads: 1, head_width: 128 };
        let bytes = |held: KvDtype| held.tile_bytes(layout) / KvLayout::SLOTS;
        assert_eq!(bytes(KvDtype::Float32), 512);
        assert_eq!((bytes(KvDtype::Bfloat16), bytes(KvDtype::Float16)), (256, 256));
        assert_eq!((bytes(KvDtype::Int8), bytes(KvDtype::Float8)), (132, 132));
    }
}
