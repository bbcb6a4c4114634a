//! StarCoder 2: layer norms, an MLP without a gate, biases everywhere, a window.

use serde::Deserialize;

use super::config::Config;
use crate::decoder::choices::{Bias, Head, MlpKind, NormKind};
use crate::decoder::spec::{ModelSpec, SpecError};

#[derive(Deserialize)]
struct Fields {
    use_bias: Option<bool>,
}

pub(super) fn spec(config: &Config, family: &'static str) -> Result<ModelSpec, SpecError> {
    let mut spec = config.plain(family, Head::Tied)?;
    let bias = match config.own::<Fields>()?.use_bias {
        Some(false) => Bias::Absent,
        Some(true) | None => Bias::Present,
    };
    spec.choices.attention.qkv_bias = bias;
    spec.choices.attention.output_bias = bias;
    spec.choices.mlp.kind = MlpKind::Plain;
    spec.choices.mlp.bias = bias;
    spec.choices.norms.kind = NormKind::Layer;
    config.slide(&mut spec, |_| true)?;
    Ok(spec)
}
