//! Granite: Llama with constants along the residual stream.

use serde::Deserialize;

use super::{above_zero, config::Config, llama};
use crate::decoder::choices::{Scales, ScoreScale};
use crate::decoder::spec::{ModelSpec, SpecError};

#[derive(Deserialize)]
struct Fields {
    embedding_multiplier: Option<f64>,
    residual_multiplier: Option<f64>,
    attention_multiplier: Option<f64>,
    logits_scaling: Option<f64>,
}

pub(super) fn spec(config: &Config, family: &'static str) -> Result<ModelSpec, SpecError> {
    let own: Fields = config.own()?;
    let mut spec = llama::spec(config, family)?;
    spec.choices.scales = Scales {
        embedding: own.embedding_multiplier.unwrap_or(1.0),
        residual: own.residual_multiplier.unwrap_or(1.0),
        logits_divisor: above_zero("logits_scaling", own.logits_scaling.or(Some(1.0)))?,
        logits_softcap: None,
    };
    spec.choices.attention.score_scale = ScoreScale::Scalar(own.attention_multiplier.unwrap_or(1.0));
    Ok(spec)
}
