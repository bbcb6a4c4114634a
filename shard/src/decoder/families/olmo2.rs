//! OLMo 2: norms after attention and MLP only, and over whole queries and keys.

use super::{config::Config, llama};
use crate::decoder::choices::{NormPlacement, QkNorm};
use crate::decoder::spec::{ModelSpec, SpecError};

pub(super) fn spec(config: &Config, family: &'static str) -> Result<ModelSpec, SpecError> {
    let mut spec = llama::spec(config, family)?;
    spec.choices.norms.placement = NormPlacement::Post;
    spec.choices.attention.qk_norm = QkNorm::Projection;
    Ok(spec)
}
