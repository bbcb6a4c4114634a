//! Attention of a batch's rows over their sequences' KV blocks.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape};
use half::{bf16, f16};

use super::contiguous;
use super::cpu::attention::{AttentionInput, attend};
use super::cpu::isa::Isa;
use super::cpu::kv_element::KvElement;
use super::placed::Placed;
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
    /// What scores stay below, of either sign: a score becomes `cap * tanh(score / cap)`.
    pub(crate) softcap: Option<f32>,
}

impl AttentionShape {
    /// Elements of a row of queries.
    pub(crate) fn query_elements(self) -> usize {
        self.query_heads * self.kv.head_width
    }

    /// Elements of a row of keys, or of values.
    pub(crate) fn kv_elements(self) -> usize {
        self.kv.kv_heads * self.kv.head_width
    }

    /// Elements of a row of queries, keys and values, in this order.
    pub(crate) fn row_elements(self) -> usize {
        self.query_elements() + 2 * self.kv_elements()
    }
}

/// (rows, all heads, head width), keys, values → (rows, query heads * head width). The rows' own keys and
/// values were written before.
pub(crate) struct Attention<'a> {
    pub(crate) shape: AttentionShape,
    pub(crate) rows: &'a Placed<'a>,
    pub(crate) isa: Isa,
}

impl Attention<'_> {
    fn on_cpu<K: KvElement>(&self, qkv: &[f32], keys: &[K], values: &[K]) -> Vec<f32> {
        let shape = self.shape;
        let rows = qkv.len() / shape.row_elements();
        let mut output = vec![0.0; rows * shape.query_elements()];
        attend(
            self.isa,
            AttentionInput { shape, sequences: self.rows.sequences, qkv, keys, values },
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
        let (keys_of, values_of) = (keys_layout, values_layout);
        let output = if keys.dtype() == DType::U8 {
            self.on_cpu::<u8>(qkv, contiguous(keys, keys_of)?, contiguous(values, values_of)?)
        } else if keys.dtype() == DType::BF16 {
            self.on_cpu::<bf16>(qkv, contiguous(keys, keys_of)?, contiguous(values, values_of)?)
        } else if keys.dtype() == DType::F16 {
            self.on_cpu::<f16>(qkv, contiguous(keys, keys_of)?, contiguous(values, values_of)?)
        } else {
            self.on_cpu::<f32>(qkv, contiguous(keys, keys_of)?, contiguous(values, values_of)?)
        };
        let columns = self.shape.query_elements();
        let rows = output.len() / columns;
        Ok((CpuStorage::F32(output), Shape::from((rows, columns))))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        qkv: &CudaStorage,
        qkv_layout: &Layout,
        keys: &CudaStorage,
        keys_layout: &Layout,
        values: &CudaStorage,
        values_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let of = (self.shape, self.rows.on_device()?);
        super::cuda::attention::forward(of, (qkv, qkv_layout), (keys, keys_layout), (values, values_layout))
    }
}
