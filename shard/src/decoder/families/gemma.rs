//! Gemma 1, 2 and 3: scaled embeddings and norms that multiply by one plus the weight; from 2 on norms after
//! attention and MLP as well, and layers that see a window between those that see all.

use serde::Deserialize;

use super::config::Config;
use super::{above_zero, unsupported};
use crate::decoder::choices::{Head, NormPlacement, NormWeight, QkNorm, ScoreScale};
use crate::decoder::spec::{ModelSpec, SpecError};
use crate::ops::activation::Activation;

#[derive(Deserialize)]
struct Fields {
    hidden_activation: Option<String>,
    query_pre_attn_scalar: Option<f64>,
    sliding_window_pattern: Option<usize>,
}

/// Bases of the rotary frequencies where Gemma 3's config.json says nothing.
const GLOBAL_THETA: f64 = 1_000_000.0;
const LOCAL_THETA: f64 = 10_000.0;

/// What bounds scores and logits where Gemma 2's config.json says nothing.
const SCORES_SOFTCAP: f64 = 50.0;
const LOGITS_SOFTCAP: f64 = 30.0;

/// Of how many layers of Gemma 3 one sees all.
const PATTERN: usize = 6;

pub(super) fn gemma1_spec(config: &Config, family: &'static str) -> Result<ModelSpec, SpecError> {
    let own: Fields = config.own()?;
    // `hidden_act` says "gelu" in the first files and means the approximation.
    if let Some(other) = own.hidden_activation.filter(|name| name != "gelu_pytorch_tanh") {
        return Err(unsupported("hidden_activation", other, "gelu_pytorch_tanh"));
    }
    let mut spec = config.plain_with(family, Head::Tied, Activation::GeluTanh)?;
    spec.choices.scales.embedding = (spec.shape.hidden as f64).sqrt();
    spec.choices.norms.weight = NormWeight::OnePlus;
    spec.choices.attention.qkv_bias = config.attention_bias();
    spec.choices.attention.output_bias = config.attention_bias();
    Ok(spec)
}

pub(super) fn gemma2_spec(config: &Config, family: &'static str) -> Result<ModelSpec, SpecError> {
    sandwiched(config, family, (Some(SCORES_SOFTCAP), Some(LOGITS_SOFTCAP)))
}

/// What Gemma 2 and 3 share; `softcaps` of scores and logits where config.json does not name them.
fn sandwiched(
    config: &Config,
    family: &'static str,
    softcaps: (Option<f64>, Option<f64>),
) -> Result<ModelSpec, SpecError> {
    let own: Fields = config.own()?;
    let mut spec = gemma1_spec(config, family)?;
    let (scores, logits) = config.softcaps()?;
    let or_default = |field, named: Option<f64>, default| {
        if config.names(field) { named } else { default }
    };
    let (default_scores, default_logits) = softcaps;
    spec.choices.attention.softcap = or_default("attn_logit_softcapping", scores, default_scores);
    spec.choices.scales.logits_softcap = or_default("final_logit_softcapping", logits, default_logits);
    spec.choices.norms.placement = NormPlacement::Sandwich;
    if let Some(scalar) = own.query_pre_attn_scalar {
        let scalar = above_zero("query_pre_attn_scalar", Some(scalar))?;
        spec.choices.attention.score_scale = ScoreScale::Scalar(scalar.powf(-0.5));
    }
    config.slide(&mut spec, |layer| layer.is_multiple_of(2))?;
    Ok(spec)
}

pub(super) fn gemma3_spec(config: &Config, family: &'static str) -> Result<ModelSpec, SpecError> {
    let own: Fields = config.own()?;
    let mut spec = sandwiched(config, family, (None, None))?;
    spec.choices.attention.qk_norm = QkNorm::Head;
    let rope = &config.fields.rope;
    // Its files name the context that the scaling already stretched.
    spec.shape.max_positions = config.fields.sizes.max_position_embeddings;
    spec.choices.rope = rope.read(spec.shape.head_width, spec.shape.max_positions, GLOBAL_THETA)?.0;
    let pattern = own.sliding_window_pattern.unwrap_or(PATTERN).max(1);
    config.slide(&mut spec, |layer| !(layer + 1).is_multiple_of(pattern))?;
    config.turn_windows_otherwise(&mut spec, LOCAL_THETA)?;
    Ok(spec)
}
