//! One layer: attention and MLP, each between a norm and an addition to the residual stream.

use candle_core::{Result, Tensor};

use super::spec::Activation;
use crate::batch::Batch;
use crate::kv::LayerKv;
use crate::ops::attention::{Attention, AttentionShape};
use crate::ops::cpu::isa::Isa;
use crate::ops::linear::Linear;
use crate::ops::rope::Rope;
use crate::ops::silu_gate::SiluGate;
use crate::ops::write_kv::{Pool, WriteKv};

/// One rank's part of one layer.
pub(super) struct Layer {
    /// (hidden)
    pub(super) input_norm: Tensor,
    /// (rows, hidden) → (rows, query, key and value heads)
    pub(super) qkv: Linear,
    /// (rows, query heads) → (rows, hidden), to be summed over ranks
    pub(super) output: Linear,
    /// (hidden)
    pub(super) post_norm: Tensor,
    /// (rows, hidden) → (rows, gate and up)
    pub(super) gate_up: Linear,
    /// (rows, MLP) → (rows, hidden), to be summed over ranks
    pub(super) down: Linear,
    pub(super) activation: Activation,
}

/// What all layers of a pass share.
pub(super) struct Pass<'a> {
    pub(super) batch: &'a Batch,
    pub(super) attention: AttentionShape,
    /// (positions, head width)
    pub(super) rope_table: &'a Tensor,
    pub(super) isa: Isa,
}

impl Layer {
    /// (rows, hidden) → this rank's part of (rows, hidden).
    pub(super) fn attend(&self, pass: &Pass<'_>, normed: &Tensor, kv: &LayerKv) -> Result<Tensor> {
        let (shape, sequences, isa) = (pass.attention, pass.batch.sequences.as_slice(), pass.isa);
        let qkv = normed.apply_op1_no_bwd(&self.qkv)?;
        qkv.inplace_op2(pass.rope_table, &Rope { shape, sequences, isa })?;
        kv.keys.inplace_op2(&qkv, &WriteKv { pool: Pool::Keys, shape, sequences })?;
        kv.values.inplace_op2(&qkv, &WriteKv { pool: Pool::Values, shape, sequences })?;
        let attended = qkv.apply_op3_no_bwd(&kv.keys, &kv.values, &Attention { shape, sequences, isa })?;
        attended.apply_op1_no_bwd(&self.output)
    }

    /// (rows, hidden) → this rank's part of (rows, hidden).
    pub(super) fn mlp(&self, pass: &Pass<'_>, normed: &Tensor) -> Result<Tensor> {
        let gate_up = normed.apply_op1_no_bwd(&self.gate_up)?;
        let gated = match self.activation {
            Activation::Silu => gate_up.apply_op1_no_bwd(&SiluGate { isa: pass.isa })?,
        };
        gated.apply_op1_no_bwd(&self.down)
    }
}
