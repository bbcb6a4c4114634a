//! The forward pass: tokens in, logits out.

use super::stream::{ForwardResult, Pass, Stream};
use super::{Decoder, ForwardError, Logits};
use crate::batch::Batch;
use crate::kv::KvPool;
use crate::ops::gather_vocabulary::GatherVocabulary;
use crate::ops::logit_transform::LogitTransform;
use crate::ops::select_rows::SelectRows;

/// Runs a batch that was checked.
pub(super) fn forward(decoder: &Decoder, batch: &Batch, kv: &mut KvPool) -> ForwardResult<Logits> {
    let vocabulary = decoder.spec.shape.vocabulary;
    if batch.token_ids.is_empty() {
        return Ok(Logits::new(Vec::new(), vocabulary));
    }
    let pass = Pass { batch, communicator: decoder.communicator.as_ref(), isa: decoder.isa };
    let scale = decoder.spec.choices.scales.residual as f32;
    let before_layer = |index: usize| match decoder.layers.get(index) {
        Some(layer) => layer.norms.before_attention.as_ref(),
        None => Some(&decoder.final_norm),
    };
    let mut stream = Stream::begin(decoder, &pass, before_layer(0))?;
    for (index, (layer, kv)) in decoder.layers.iter().zip(&kv.layers).enumerate() {
        let norms = &layer.norms;
        let attended = layer.attention.forward(&pass, &stream.normed, kv)?;
        let around = (norms.after_attention.as_ref(), norms.before_mlp.as_ref());
        stream = stream.add(&pass, attended, scale, around)?;
        let output = layer.mlp.forward(&pass, &stream.normed)?;
        let around = (norms.after_mlp.as_ref(), before_layer(index + 1));
        stream = stream.add(&pass, output, scale, around)?;
    }
    if batch.logit_rows.is_empty() {
        return Ok(Logits::new(Vec::new(), vocabulary));
    }
    let wanted = stream.normed.apply_op1_no_bwd(&SelectRows { rows: &batch.logit_rows })?;
    head(decoder, &wanted)
}

/// (rows, hidden) → the logits of all ranks' parts of the vocabulary.
fn head(decoder: &Decoder, wanted: &candle_core::Tensor) -> ForwardResult<Logits> {
    let (vocabulary, scales) = (decoder.spec.shape.vocabulary, decoder.spec.choices.scales);
    let mine = wanted.apply_op1_no_bwd(&decoder.head)?;
    if scales.logits_divisor != 1.0 || scales.logits_softcap.is_some() {
        mine.inplace_op1(&LogitTransform {
            divide_by: scales.logits_divisor as f32,
            softcap: scales.logits_softcap.map(|cap| cap as f32),
            isa: decoder.isa,
        })?;
    }
    let gather = GatherVocabulary::over(decoder.communicator.as_ref(), vocabulary);
    match mine.apply_op1_no_bwd(&gather).and_then(|all| all.flatten_all()?.to_vec1()) {
        Ok(values) => Ok(Logits::new(values, vocabulary)),
        Err(error) => Err(gather.into_failure().map_or(error.into(), ForwardError::Comm)),
    }
}
