//! Phi-3, 3.5-mini and 4: queries, keys and values in one tensor, gate and up in another.

use super::config::Config;
use crate::decoder::choices::{Head, MlpKind, QkvProjection};
use crate::decoder::spec::{ModelSpec, SpecError};

pub(super) fn spec(config: &Config, family: &'static str) -> Result<ModelSpec, SpecError> {
    let mut spec = config.plain(family, Head::Separate)?;
    spec.choices.attention.qkv = QkvProjection::Fused;
    spec.choices.mlp.kind = MlpKind::GatedFused;
    config.slide(&mut spec, |_| true)?;
    Ok(spec)
}
