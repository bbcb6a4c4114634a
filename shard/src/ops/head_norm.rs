//! Norms query and key heads, each by itself, in place.

use candle_core::{CpuStorage, InplaceOp2, Layout, Result, bail};

use super::attention::AttentionShape;
use super::cpu::head_norm::{HeadWeights, norm_heads};
use super::cpu::isa::Isa;
use super::{contiguous, contiguous_mut};

/// (rows, all heads * head width), weights (2, head width): the root mean square norm of every query head
/// with the first row of the weights and of every key head with the second. Values stay.
pub(crate) struct HeadNorm {
    pub(crate) shape: AttentionShape,
    pub(crate) epsilon: f32,
    pub(crate) isa: Isa,
}

impl InplaceOp2 for HeadNorm {
    fn name(&self) -> &'static str {
        "head_norm"
    }

    fn cpu_fwd(
        &self,
        qkv: &mut CpuStorage,
        qkv_layout: &Layout,
        weights: &CpuStorage,
        weights_layout: &Layout,
    ) -> Result<()> {
        let width = self.shape.kv.head_width;
        if weights_layout.shape().dims() != [2, width] {
            bail!("norm heads of {width} elements: the weights are of shape {:?}", weights_layout.shape());
        }
        let (query, key) = contiguous::<f32>(weights, weights_layout)?.split_at(width);
        let weights = HeadWeights { query, key, epsilon: self.epsilon };
        norm_heads(self.isa, self.shape, weights, contiguous_mut(qkv, qkv_layout)?);
        Ok(())
    }
}
