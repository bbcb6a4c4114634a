//! Llama in all its versions, SmolLM, and Mistral, which adds a window.

use super::config::Config;
use crate::decoder::choices::Head;
use crate::decoder::spec::{ModelSpec, SpecError};

pub(super) fn spec(config: &Config, family: &'static str) -> Result<ModelSpec, SpecError> {
    let mut spec = config.plain(family, Head::Separate)?;
    spec.choices.attention.qkv_bias = config.attention_bias();
    spec.choices.attention.output_bias = config.attention_bias();
    spec.choices.mlp.bias = config.mlp_bias();
    Ok(spec)
}

pub(super) fn mistral_spec(config: &Config, family: &'static str) -> Result<ModelSpec, SpecError> {
    let mut spec = config.plain(family, Head::Separate)?;
    config.slide(&mut spec, |_| true)?;
    Ok(spec)
}
