//! One layer: attention and MLP, each with its norms and an addition to the residual stream.

use candle_core::Tensor;

use super::choices::QkNorm;
use super::mlp::Mlp;
use super::stream::{ForwardResult, Norm, Pass};
use crate::kv::LayerKv;
use crate::ops::add_bias::AddBias;
use crate::ops::attention::{Attention, AttentionShape};
use crate::ops::linear::Linear;
use crate::ops::placed::Placed;
use crate::ops::projection_norm::{ProjectionNorm, ProjectionSquares};
use crate::ops::write_heads::WriteHeads;

/// One rank's part of one layer.
pub(super) struct Layer {
    pub(super) attention: LayerAttention,
    pub(super) mlp: Mlp,
    pub(super) norms: LayerNorms,
}

/// The norms a layer has.
pub(super) struct LayerNorms {
    pub(super) before_attention: Option<Norm>,
    pub(super) after_attention: Option<Norm>,
    pub(super) before_mlp: Option<Norm>,
    pub(super) after_mlp: Option<Norm>,
}

/// One rank's heads of one layer.
pub(super) struct LayerAttention {
    pub(super) shape: AttentionShape,
    /// (rows, hidden) → (rows, query, key and value heads)
    pub(super) qkv: Projection,
    pub(super) qk_norm: LayerQkNorm,
    /// (positions, elements turned), where positions turn anything.
    pub(super) rope_table: Option<Tensor>,
    /// (rows, query heads) → (rows, hidden), to be summed over ranks
    pub(super) output: Projection,
}

/// A product and what is added to it.
pub(super) struct Projection {
    pub(super) linear: Linear,
    /// (outputs)
    pub(super) bias: Option<Tensor>,
}

/// The norms of queries and keys.
pub(super) struct LayerQkNorm {
    pub(super) kind: QkNorm,
    /// Of each head: (2, head width), queries first. Of the projection: this rank's queries, then keys. Empty
    /// where there is none.
    pub(super) weights: Tensor,
    pub(super) epsilon: f32,
    /// Parts this rank's heads are summed in.
    pub(super) segments: usize,
    /// Elements of all ranks' queries and of all ranks' keys in a row.
    pub(super) widths: (usize, usize),
}

impl Projection {
    /// (rows, inputs) → (rows, outputs), for products whose outputs are this rank's own.
    pub(super) fn apply(&self, input: &Tensor) -> candle_core::Result<Tensor> {
        let output = input.apply_op1_no_bwd(&self.linear)?;
        self.add_bias(&output)?;
        Ok(output)
    }

    fn add_bias(&self, output: &Tensor) -> candle_core::Result<()> {
        match &self.bias {
            Some(bias) => output.inplace_op2(bias, &AddBias),
            None => Ok(()),
        }
    }

    /// (rows, inputs of this rank) → (rows, outputs), summed over the ranks. The bias comes after the sum, so
    /// that the number of ranks does not show in it.
    pub(super) fn apply_and_sum(&self, pass: &Pass<'_>, input: &Tensor) -> ForwardResult<Tensor> {
        let output = input.apply_op1_no_bwd(&self.linear)?;
        pass.all_reduce(&output)?;
        self.add_bias(&output)?;
        Ok(output)
    }
}

impl LayerAttention {
    /// (rows, hidden) → (rows, query, key and value heads), with keys and values written to their blocks.
    pub(super) fn write_kv(&self, pass: &Pass<'_>, input: &Tensor, kv: &LayerKv) -> ForwardResult<Tensor> {
        let qkv = self.qkv.apply(input)?;
        self.norm_projections(pass, &qkv)?;
        let (weights, epsilon) = (&self.qk_norm.weights, self.qk_norm.epsilon);
        let heads = WriteHeads {
            shape: self.shape,
            rows: &pass.rows,
            norm: (self.qk_norm.kind == QkNorm::Head).then_some((weights, epsilon)),
            rope_table: self.rope_table.as_ref(),
            kv,
            isa: pass.isa,
        };
        heads.apply(&qkv)?;
        Ok(qkv)
    }

    /// (rows, query, key and value heads) → (rows, hidden), summed over the ranks. The rows are those of
    /// `qkv`.
    pub(super) fn attend(
        &self,
        pass: &Pass<'_>,
        qkv: Tensor,
        (rows, kv): (&Placed<'_>, &LayerKv),
    ) -> ForwardResult<Tensor> {
        let attention = Attention { shape: self.shape, rows, isa: pass.isa };
        let attended = qkv.apply_op3_no_bwd(&kv.keys, &kv.values, &attention)?;
        drop(qkv);
        self.output.apply_and_sum(pass, &attended)
    }

    /// Norms whole projections, of all ranks together, where they are.
    fn norm_projections(&self, pass: &Pass<'_>, qkv: &Tensor) -> ForwardResult<()> {
        let LayerQkNorm { kind, weights, epsilon, segments, widths } = &self.qk_norm;
        let (shape, epsilon, isa) = (self.shape, *epsilon, pass.isa);
        match kind {
            QkNorm::Absent | QkNorm::Head => {}
            QkNorm::Projection => {
                let parts = ProjectionSquares { shape, segments: *segments, isa };
                let squares = qkv.apply_op1_no_bwd(&parts)?;
                pass.all_reduce(&squares)?;
                let (query_width, key_width) = *widths;
                let norm = ProjectionNorm { shape, epsilon, query_width, key_width, isa };
                qkv.inplace_op3(&squares, weights, &norm)?;
            }
        }
        Ok(())
    }
}
