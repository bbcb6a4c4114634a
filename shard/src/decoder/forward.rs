//! The forward pass: residual stream in, logits out.

use candle_core::Tensor;

use super::layer::Pass;
use super::{Decoder, ForwardError, Logits};
use crate::batch::Batch;
use crate::kv::KvPool;
use crate::ops::add_rms_norm::AddRmsNorm;
use crate::ops::all_reduce::AllReduce;
use crate::ops::gather_vocabulary::GatherVocabulary;
use crate::ops::rms_norm::RmsNorm;
use crate::ops::select_rows::SelectRows;

/// Runs a batch that was checked.
pub(super) fn forward(decoder: &Decoder, batch: &Batch, kv: &mut KvPool) -> Result<Logits, ForwardError> {
    let vocabulary = decoder.spec.shape.vocabulary;
    if batch.token_ids.is_empty() {
        return Ok(Logits::new(Vec::new(), vocabulary));
    }
    let pass =
        Pass { batch, attention: decoder.attention, rope_table: &decoder.rope_table, isa: decoder.isa };
    let mut stream = Stream::begin(decoder, batch)?;
    for (index, (layer, kv)) in decoder.layers.iter().zip(&kv.layers).enumerate() {
        let attended = layer.attend(&pass, &stream.normed, kv)?;
        stream = stream.add(decoder, attended, &layer.post_norm)?;
        let next_norm = decoder.layers.get(index + 1).map_or(&decoder.final_norm, |next| &next.input_norm);
        let activated = layer.mlp(&pass, &stream.normed)?;
        stream = stream.add(decoder, activated, next_norm)?;
    }
    if batch.logit_rows.is_empty() {
        return Ok(Logits::new(Vec::new(), vocabulary));
    }
    let wanted = stream.normed.apply_op1_no_bwd(&SelectRows { rows: &batch.logit_rows })?;
    let mine = wanted.apply_op1_no_bwd(&decoder.head)?;
    let gather = GatherVocabulary::over(decoder.communicator.as_ref(), vocabulary);
    match mine.apply_op1_no_bwd(&gather).and_then(|all| all.flatten_all()?.to_vec1()) {
        Ok(values) => Ok(Logits::new(values, vocabulary)),
        Err(error) => Err(gather.into_failure().map_or(error.into(), ForwardError::Comm)),
    }
}

/// The residual stream and its norm, both (rows, hidden), the same on every rank.
struct Stream {
    residual: Tensor,
    normed: Tensor,
}

impl Stream {
    fn begin(decoder: &Decoder, batch: &Batch) -> Result<Self, ForwardError> {
        let residual = decoder.embedding.rows(&batch.token_ids)?;
        let norm = RmsNorm { epsilon: epsilon(decoder), isa: decoder.isa };
        let first_norm = decoder.layers.first().map_or(&decoder.final_norm, |layer| &layer.input_norm);
        let normed = residual.apply_op2_no_bwd(first_norm, &norm)?;
        Ok(Self { residual, normed })
    }

    /// Adds the ranks' parts of a layer's output and norms the sum.
    fn add(self, decoder: &Decoder, part: Tensor, norm: &Tensor) -> Result<Self, ForwardError> {
        let reduce = AllReduce::over(decoder.communicator.as_ref());
        if let Err(error) = part.inplace_op1(&reduce) {
            return Err(reduce.into_failure().map_or(error.into(), ForwardError::Comm));
        }
        let add = AddRmsNorm { epsilon: epsilon(decoder), isa: decoder.isa };
        let both = self.residual.apply_op3_no_bwd(&part, norm, &add)?;
        Ok(Self { residual: both.get(0)?, normed: both.get(1)? })
    }
}

fn epsilon(decoder: &Decoder) -> f32 {
    decoder.spec.shape.norm_epsilon as f32
}
