//! Llama, and what follows its layout to the letter.

use serde::Deserialize;

use super::{RopeConfig, must_be_off};
use crate::decoder::spec::{
    Activation, Choices, EmbeddingScale, GateUpProjection, Head, NormPlacement, NormWeight, QkNorm,
    QkvProjection, ScoreScale, Shape, Softcap, SpecError, Window,
};

#[derive(Deserialize)]
pub(super) struct LlamaConfig {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    max_position_embeddings: usize,
    rms_norm_eps: f64,
    #[serde(flatten)]
    rope: RopeConfig,
    #[serde(flatten)]
    switches: LlamaSwitches,
}

#[derive(Deserialize)]
struct LlamaSwitches {
    hidden_act: Option<String>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    tie_word_embeddings: Option<bool>,
}

pub(super) fn shape(config: &LlamaConfig) -> Result<Shape, SpecError> {
    let query_heads = config.num_attention_heads;
    Ok(Shape {
        hidden: config.hidden_size,
        layers: config.num_hidden_layers,
        query_heads,
        kv_heads: config.num_key_value_heads.unwrap_or(query_heads),
        head_width: config.head_dim.or(config.hidden_size.checked_div(query_heads)).unwrap_or(0),
        intermediate: config.intermediate_size,
        vocabulary: config.vocab_size,
        max_positions: config.max_position_embeddings,
        norm_epsilon: config.rms_norm_eps,
        rope_theta: config.rope.theta(),
    })
}

pub(super) fn choices(config: &LlamaConfig) -> Result<Choices, SpecError> {
    let switches = &config.switches;
    must_be_off("attention_bias", switches.attention_bias)?;
    must_be_off("mlp_bias", switches.mlp_bias)?;
    if let Some(found) = switches.hidden_act.clone().filter(|name| name != "silu") {
        return Err(SpecError::Unsupported { field: "hidden_act", found, supported: "silu" });
    }
    Ok(Choices {
        qkv: QkvProjection::Separate,
        qk_norm: QkNorm::Absent,
        rope_scaling: config.rope.scaling()?,
        window: Window::Full,
        score_scale: ScoreScale::HeadWidth,
        norm_weight: NormWeight::Plain,
        norm_placement: NormPlacement::Pre,
        gate_up: GateUpProjection::Separate,
        activation: Activation::Silu,
        embedding_scale: EmbeddingScale::One,
        head: match switches.tie_word_embeddings {
            Some(true) => Head::Tied,
            Some(false) | None => Head::Separate,
        },
        softcap: Softcap::Absent,
    })
}
