//! Makes a batch's queries ready for attention, and writes its keys and values to their blocks.

#[cfg(feature = "cuda")]
use candle_core::{CpuStorage, CudaStorage, Device, InplaceOp1, Layout, bail};
use candle_core::{Result, Tensor};

use super::attention::AttentionShape;
use super::cpu::isa::Isa;
use super::head_norm::HeadNorm;
use super::placed::Placed;
use super::rope::Rope;
use super::write_kv::WriteKv;
use crate::kv::LayerKv;
use crate::kv::layout::Pool;

/// Norms and turns query and key heads and writes keys and values to their slots: on the CPU one operator after the
/// other, on a device by one kernel.
pub(crate) struct WriteHeads<'a> {
    pub(crate) shape: AttentionShape,
    pub(crate) rows: &'a Placed<'a>,
    /// Weights (2, head width) and epsilon, where each head is normed.
    pub(crate) norm: Option<(&'a Tensor, f32)>,
    /// (positions, elements turned), where positions turn anything.
    pub(crate) rope_table: Option<&'a Tensor>,
    pub(crate) kv: &'a LayerKv,
    pub(crate) isa: Isa,
}

impl WriteHeads<'_> {
    /// Of (rows, all heads * head width), where queries are afterwards what attention takes them for. What keys and values
    /// are then is said of their blocks alone.
    ///
    /// # Errors
    /// When a tensor's shape is wrong, or the device fails.
    pub(crate) fn apply(&self, qkv: &Tensor) -> Result<()> {
        #[cfg(feature = "cuda")]
        if let Device::Cuda(_) = qkv.device() {
            return qkv.inplace_op1(self);
        }
        let Self { shape, rows, norm, rope_table, kv, isa } = *self;
        if let Some((weights, epsilon)) = norm {
            qkv.inplace_op2(weights, &HeadNorm { shape, epsilon, isa })?;
        }
        if let Some(table) = rope_table {
            qkv.inplace_op2(table, &Rope { shape, rows, isa })?;
        }
        kv.keys.inplace_op2(qkv, &WriteKv { pool: Pool::Keys, shape, rows })?;
        kv.values.inplace_op2(qkv, &WriteKv { pool: Pool::Values, shape, rows })
    }

    /// How many elements of each head turn by a table of this layout.
    #[cfg(feature = "cuda")]
    pub(crate) fn rotary_width(&self, table: &Layout) -> Result<usize> {
        Rope { shape: self.shape, rows: self.rows, isa: self.isa }.rotary_width(table)
    }
}

#[cfg(feature = "cuda")]
impl InplaceOp1 for WriteHeads<'_> {
    fn name(&self) -> &'static str {
        "write_heads"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> Result<()> {
        bail!("write heads on the CPU: each operator is called by itself there")
    }

    fn cuda_fwd(&self, qkv: &mut CudaStorage, layout: &Layout) -> Result<()> {
        super::cuda::heads::forward(self, (qkv, layout))
    }
}
