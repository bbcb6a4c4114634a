//! The residual stream, its norms, and what all layers of a pass share.

use candle_core::Tensor;

use super::{Decoder, ForwardError};
use crate::batch::Batch;
use crate::comm::Communicator;
use crate::ops::add_norm::AddNorm;
use crate::ops::all_reduce::AllReduce;
use crate::ops::cpu::isa::Isa;
use crate::ops::norm::{Norm as NormOp, NormKind};
use crate::ops::placed::Placed;
use crate::ops::select_rows::SelectRows;

pub(super) type ForwardResult<T> = Result<T, ForwardError>;

/// What all layers of a pass share.
pub(super) struct Pass<'a> {
    pub(super) batch: &'a Batch,
    /// The batch's rows.
    pub(super) rows: Placed<'a>,
    pub(super) communicator: &'a dyn Communicator,
    pub(super) isa: Isa,
}

impl Pass<'_> {
    /// Replaces a tensor by its sum over the ranks.
    pub(super) fn all_reduce(&self, part: &Tensor) -> ForwardResult<()> {
        let reduce = AllReduce::over(self.communicator);
        match part.inplace_op1(&reduce) {
            Ok(()) => Ok(()),
            Err(error) => Err(reduce.into_failure().map_or(error.into(), ForwardError::Comm)),
        }
    }

    /// Returns once a copy from the device need not wait: it would wait for a lost peer for ever.
    #[cfg(feature = "cuda")]
    pub(super) fn wait(&self) -> ForwardResult<()> {
        self.communicator.nccl().map_or(Ok(()), |nccl| nccl.wait().map_err(ForwardError::Comm))
    }

    /// Main memory is there at once.
    #[cfg(not(feature = "cuda"))]
    #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "as its twin on devices")]
    pub(super) fn wait(&self) -> ForwardResult<()> {
        Ok(())
    }
}

/// A norm of rows.
pub(super) struct Norm {
    /// (1, hidden): the weight; or (2, hidden): the weight, then the bias.
    pub(super) parameters: Tensor,
    pub(super) kind: NormKind,
    pub(super) epsilon: f32,
}

impl Norm {
    fn apply(&self, rows: &Tensor, isa: Isa) -> candle_core::Result<Tensor> {
        rows.apply_op2_no_bwd(&self.parameters, &NormOp { kind: self.kind, epsilon: self.epsilon, isa })
    }
}

/// The residual stream and what the next product reads of it, both (rows, hidden), the same on every rank.
pub(super) struct Stream {
    residual: Tensor,
    pub(super) normed: Tensor,
}

impl Stream {
    /// Embeds the batch's tokens.
    pub(super) fn begin(decoder: &Decoder, pass: &Pass<'_>, norm: Option<&Norm>) -> ForwardResult<Self> {
        let residual = decoder.embedding.rows(&pass.batch.token_ids, &pass.rows)?;
        let normed = match norm {
            Some(norm) => norm.apply(&residual, pass.isa)?,
            None => residual.clone(),
        };
        Ok(Self { residual, normed })
    }

    /// Keeps some rows.
    pub(super) fn select(self, rows: &SelectRows<'_>) -> candle_core::Result<Self> {
        Ok(Self {
            residual: self.residual.apply_op1_no_bwd(rows)?,
            normed: self.normed.apply_op1_no_bwd(rows)?,
        })
    }

    /// Adds a layer's output, normed by `after` and scaled, and norms the sum by `before` for the next product.
    pub(super) fn add(
        self,
        pass: &Pass<'_>,
        output: Tensor,
        scale: f32,
        (after, before): (Option<&Norm>, Option<&Norm>),
    ) -> ForwardResult<Self> {
        let output = match after {
            Some(norm) => norm.apply(&output, pass.isa)?,
            None => output,
        };
        let Some(norm) = before else {
            let scaled = if scale == 1.0 { output } else { output.affine(scale.into(), 0.0)? };
            let residual = (self.residual + scaled)?;
            return Ok(Self { normed: residual.clone(), residual });
        };
        let Norm { parameters, kind, epsilon } = norm;
        let add = AddNorm { kind: *kind, epsilon: *epsilon, delta_scale: scale, isa: pass.isa };
        let both = self.residual.apply_op3_no_bwd(&output, parameters, &add)?;
        Ok(Self { residual: both.get(0)?, normed: both.get(1)? })
    }
}
