//! Attention of a batch's rows over their sequences' KV blocks.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape};
use half::bf16;

use super::contiguous;
use super::cpu::attention::{AttentionInput, attend};
use super::cpu::isa::Isa;
use super::cpu::kv_element::KvElement;
use crate::batch::BatchSequence;
use crate::kv::layout::KvLayout;

/// The sizes of one layer's attention on one rank.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct AttentionShape {
    /// Query heads on this rank, a multiple of its KV heads.
    pub(crate) query_heads: usize,
    pub(crate) kv: KvLayout,
    /// What scores are multiplied by.
    pub(crate) scale: f32,
    /// How many positions, its own included, a row sees; all where there is none.
    pub(crate) window: Option<usize>,
}

/// (rows, all heads, head width), keys, values → (rows, query heads * head width). The rows' own keys and
/// values were written before.
pub(crate) struct Attention<'a> {
    pub(crate) shape: AttentionShape,
    pub(crate) sequences: &'a [BatchSequence],
    pub(crate) isa: Isa,
}

impl Attention<'_> {
    fn on_cpu<K: KvElement>(&self, qkv: &[f32], keys: &[K], values: &[K]) -> Vec<f32> {
        let shape = self.shape;
        let width = shape.kv.head_width;
        let rows = qkv.len() / ((shape.query_heads + 2 * shape.kv.kv_heads) * width);
        let mut output = vec![0.0; rows * shape.query_heads * width];
        attend(
            self.isa,
            AttentionInput { shape, sequences: self.sequences, qkv, keys, values },
            &mut output,
        );
        output
    }
}

impl CustomOp3 for Attention<'_> {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        qkv: &CpuStorage,
        qkv_layout: &Layout,
        keys: &CpuStorage,
        keys_layout: &Layout,
        values: &CpuStorage,
        values_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let qkv = contiguous::<f32>(qkv, qkv_layout)?;
        let output = if keys.dtype() == DType::BF16 {
            self.on_cpu::<bf16>(qkv, contiguous(keys, keys_layout)?, contiguous(values, values_layout)?)
        } else {
            self.on_cpu::<f32>(qkv, contiguous(keys, keys_layout)?, contiguous(values, values_layout)?)
        };
        let columns = self.shape.query_heads * self.shape.kv.head_width;
        let rows = output.len() / columns;
        Ok((CpuStorage::F32(output), Shape::from((rows, columns))))
    }
}
