//! Qwen 2 and 2.5 (biases on queries, keys and values), Qwen 3 (normed heads instead) and its mixtures.

use serde::Deserialize;

use super::config::Config;
use super::{invalid, llama};
use crate::decoder::choices::{Bias, ExpertChoices, ExpertNames, Head, LayerMlp, QkNorm, RoutingWeights};
use crate::decoder::spec::{ExpertShape, ModelSpec, SpecError};

#[derive(Deserialize)]
struct WindowFields {
    max_window_layers: Option<usize>,
    use_sliding_window: Option<bool>,
}

#[derive(Deserialize)]
struct ExpertFields {
    num_experts: Option<usize>,
    /// What newer files call it.
    num_local_experts: Option<usize>,
    num_experts_per_tok: usize,
    moe_intermediate_size: usize,
    norm_topk_prob: Option<bool>,
    decoder_sparse_step: Option<usize>,
    mlp_only_layers: Option<Vec<usize>>,
}

pub(super) fn qwen2_spec(config: &Config, family: &'static str) -> Result<ModelSpec, SpecError> {
    let mut spec = config.plain(family, Head::Separate)?;
    spec.choices.attention.qkv_bias = Bias::Present;
    slide(config, &mut spec)?;
    Ok(spec)
}

pub(super) fn qwen3_spec(config: &Config, family: &'static str) -> Result<ModelSpec, SpecError> {
    let mut spec = normed_heads(config, family)?;
    slide(config, &mut spec)?;
    Ok(spec)
}

pub(super) fn qwen3_moe_spec(config: &Config, family: &'static str) -> Result<ModelSpec, SpecError> {
    let own: ExpertFields = config.own()?;
    let mut spec = normed_heads(config, family)?;
    let weights = match own.norm_topk_prob {
        Some(true) => RoutingWeights::SoftmaxOfChosen,
        Some(false) | None => RoutingWeights::SoftmaxOfAll,
    };
    spec.choices.mlp.experts = ExpertChoices { names: ExpertNames::Long, weights };
    spec.shape.experts = Some(ExpertShape {
        count: own
            .num_experts
            .or(own.num_local_experts)
            .ok_or_else(|| invalid("num_experts", "null", "a number from 1"))?,
        chosen: own.num_experts_per_tok,
        intermediate: own.moe_intermediate_size,
    });
    let step = own.decoder_sparse_step.unwrap_or(1);
    if step == 0 {
        return Err(invalid("decoder_sparse_step", step, "a number from 1"));
    }
    let dense = own.mlp_only_layers.unwrap_or_default();
    for (index, layer) in spec.layers.iter_mut().enumerate() {
        if (index + 1).is_multiple_of(step) && !dense.contains(&index) {
            layer.mlp = LayerMlp::Experts;
        }
    }
    let uses_window = config.own::<WindowFields>()?.use_sliding_window == Some(true);
    config.slide(&mut spec, |_| uses_window)?;
    Ok(spec)
}

fn normed_heads(config: &Config, family: &'static str) -> Result<ModelSpec, SpecError> {
    let mut spec = llama::spec(config, family)?;
    spec.choices.attention.qk_norm = QkNorm::Head;
    Ok(spec)
}

/// These models name a window whether they use it or not, and only the last layers do.
fn slide(config: &Config, spec: &mut ModelSpec) -> Result<(), SpecError> {
    let own: WindowFields = config.own()?;
    let first = match own.use_sliding_window {
        Some(true) => own.max_window_layers.unwrap_or(0),
        Some(false) | None => usize::MAX,
    };
    config.slide(spec, |layer| layer >= first)
}
