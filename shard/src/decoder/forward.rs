//! The forward pass: tokens in, and the rows whose logits are wanted out; then a slice of those rows in, and
//! their logits out.

use std::ops::Range;

#[cfg(feature = "cuda")]
use super::ForwardError;
#[cfg(feature = "cuda")]
use super::fed::FedTokens;
#[cfg(feature = "cuda")]
use super::replay::replayed;
use super::stream::{ForwardResult, Pass, Stream};
use super::wanted::Wanted;
use super::{ChosenOnDevice, Decoder, Hidden, Logits};
use crate::batch::Batch;
use crate::device::DeviceKind;
use crate::kv::{KvPool, LayerKv};
use crate::ops::cpu::logit_transform::transform;
#[cfg(feature = "cuda")]
use crate::ops::cuda::logits::FinishLogits;
use crate::ops::gather_vocabulary::gather_vocabulary;
use crate::ops::placed::Placed;
use crate::ops::select_rows::SelectRows;

/// Runs a batch that was checked.
pub(super) fn forward(
    decoder: &Decoder,
    (batch, chosen): (&Batch, Option<ChosenOnDevice>),
    kv: &mut KvPool,
) -> ForwardResult<Hidden> {
    if batch.token_ids.is_empty() {
        return Ok(Hidden::none());
    }
    if let Some(hidden) = replayed(decoder, (batch, chosen), kv)? {
        return Ok(hidden);
    }
    by_itself(decoder, (batch, chosen), &kv.layers)
}

/// A pass of which nothing is recorded.
#[cfg(not(feature = "cuda"))]
fn by_itself(
    decoder: &Decoder,
    (batch, _): (&Batch, Option<ChosenOnDevice>),
    layers: &[LayerKv],
) -> ForwardResult<Hidden> {
    through_layers(decoder, batch, (decoder.place(&batch.sequences)?, layers))
}

/// A pass of which nothing is recorded.
#[cfg(feature = "cuda")]
pub(super) fn by_itself(
    decoder: &Decoder,
    (batch, chosen): (&Batch, Option<ChosenOnDevice>),
    layers: &[LayerKv],
) -> ForwardResult<Hidden> {
    let rows = decoder.place(&batch.sequences)?;
    let Some(tokens) = FedTokens::new(decoder, (batch, chosen))? else {
        return through_layers(decoder, batch, (rows, layers));
    };
    through_layers(decoder, batch, (rows.with_tokens(tokens.address()), layers))
}

/// The last layer computes keys and values of every row, and the rest of the wanted rows alone.
pub(super) fn through_layers(
    decoder: &Decoder,
    batch: &Batch,
    (rows, kv): (Placed<'_>, &[LayerKv]),
) -> ForwardResult<Hidden> {
    let pass = Pass { batch, rows, communicator: decoder.communicator.as_ref(), isa: decoder.isa };
    let scale = decoder.spec.choices.scales.residual as f32;
    let before_layer = |index: usize| match decoder.layers.get(index) {
        Some(layer) => layer.norms.before_attention.as_ref(),
        None => Some(&decoder.final_norm),
    };
    let mut stream = Stream::begin(decoder, &pass, before_layer(0))?;
    for (index, (layer, kv)) in decoder.layers.iter().zip(kv).enumerate() {
        let norms = &layer.norms;
        let mut qkv = layer.attention.write_kv(&pass, &stream.normed, kv)?;
        let is_last = index + 1 == decoder.layers.len();
        let wanted = if is_last { Wanted::of(batch) } else { Wanted::Every };
        let runs;
        let rows = match &wanted {
            Wanted::Nothing => return Ok(Hidden::none()),
            Wanted::Every => &pass.rows,
            Wanted::Runs(sequences) => {
                let select = SelectRows { rows: &batch.logit_rows };
                qkv = qkv.apply_op1_no_bwd(&select)?;
                stream = stream.select(&select)?;
                runs = decoder.place(sequences)?;
                &runs
            }
        };
        let attended = layer.attention.attend(&pass, qkv, (rows, kv))?;
        let around = (norms.after_attention.as_ref(), norms.before_mlp.as_ref());
        stream = stream.add(&pass, attended, scale, around)?;
        let output = layer.mlp.forward(&pass, &stream.normed)?;
        let around = (norms.after_mlp.as_ref(), before_layer(index + 1));
        stream = stream.add(&pass, output, scale, around)?;
    }
    Ok(Hidden::new(stream.normed))
}

/// The logits of some of the wanted rows, from all ranks' parts of the vocabulary.
pub(super) fn logits(decoder: &Decoder, hidden: &Hidden, rows: Range<usize>) -> ForwardResult<Logits> {
    let (vocabulary, scales) = (decoder.spec.shape.vocabulary, decoder.spec.choices.scales);
    let count = rows.len();
    let Some(wanted) = hidden.slice(rows)? else { return Ok(Logits::new(Vec::new(), vocabulary)) };
    if decoder.target.kind() == DeviceKind::Cuda {
        return on_device(decoder, &wanted);
    }
    let mut mine = decoder.head.product(&wanted)?;
    if scales.logits_divisor != 1.0 || scales.logits_softcap.is_some() {
        let softcap = scales.logits_softcap.map(|cap| cap as f32);
        transform(decoder.isa, scales.logits_divisor as f32, softcap, &mut mine);
    }
    let values = gather_vocabulary(decoder.communicator.as_ref(), vocabulary, mine, count)?;
    Ok(Logits::new(values, vocabulary))
}

#[cfg(not(feature = "cuda"))]
#[expect(clippy::unnecessary_wraps, reason = "its twin of binaries that know GPUs may fail")]
fn replayed(
    _: &Decoder,
    _: (&Batch, Option<ChosenOnDevice>),
    _: &mut KvPool,
) -> ForwardResult<Option<Hidden>> {
    Ok(None)
}

#[cfg(not(feature = "cuda"))]
fn on_device(_: &Decoder, _: &candle_core::Tensor) -> ForwardResult<Logits> {
    Err(candle_core::Error::msg("compute logits on a device: this binary knows none").into())
}

/// Logits that stay where they were computed.
#[cfg(feature = "cuda")]
fn on_device(decoder: &Decoder, wanted: &candle_core::Tensor) -> ForwardResult<Logits> {
    let scales = decoder.spec.choices.scales;
    let finish = FinishLogits::new(
        decoder.communicator.as_ref(),
        decoder.spec.shape.vocabulary,
        (scales.logits_divisor as f32, scales.logits_softcap.map(|cap| cap as f32)),
    );
    let mine = wanted.apply_op1_no_bwd(&decoder.head)?;
    match mine.apply_op1_no_bwd(&finish) {
        Ok(rows) => Ok(Logits::on_device(rows, decoder.communicator.clone())),
        Err(error) => Err(finish.into_failure().map_or(error.into(), ForwardError::Comm)),
    }
}
