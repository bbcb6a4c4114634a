//! Which tensors a model has, by name and shape, as checkpoints hold them.

use std::collections::BTreeMap;

use super::spec::{GateUpProjection, Head, ModelSpec, NormPlacement, QkNorm, QkvProjection, Softcap};

pub(super) const EMBEDDING: &str = "model.embed_tokens.weight";
pub(super) const FINAL_NORM: &str = "model.norm.weight";
pub(super) const HEAD: &str = "lm_head.weight";

pub(super) const INPUT_NORM: &str = "input_layernorm.weight";
pub(super) const POST_NORM: &str = "post_attention_layernorm.weight";
pub(super) const QUERY: &str = "self_attn.q_proj.weight";
pub(super) const KEY: &str = "self_attn.k_proj.weight";
pub(super) const VALUE: &str = "self_attn.v_proj.weight";
pub(super) const ATTENTION_OUTPUT: &str = "self_attn.o_proj.weight";
pub(super) const GATE: &str = "mlp.gate_proj.weight";
pub(super) const UP: &str = "mlp.up_proj.weight";
pub(super) const DOWN: &str = "mlp.down_proj.weight";

/// The name of a layer's tensor.
pub(super) fn of_layer(layer: usize, name: &str) -> String {
    format!("model.layers.{layer}.{name}")
}

/// Every tensor the model has, with its shape.
pub(super) fn expected(spec: &ModelSpec) -> BTreeMap<String, Vec<usize>> {
    let (shape, choices) = (&spec.shape, &spec.choices);
    let (hidden, intermediate) = (shape.hidden, shape.intermediate);
    let queries = shape.query_heads * shape.head_width;
    let keys = shape.kv_heads * shape.head_width;
    let mut in_layer = vec![(ATTENTION_OUTPUT, vec![hidden, queries]), (DOWN, vec![hidden, intermediate])];
    match choices.norm_placement {
        NormPlacement::Pre => in_layer.extend([(INPUT_NORM, vec![hidden]), (POST_NORM, vec![hidden])]),
    }
    match (choices.qkv, choices.qk_norm, choices.softcap) {
        (QkvProjection::Separate, QkNorm::Absent, Softcap::Absent) => in_layer.extend([
            (QUERY, vec![queries, hidden]),
            (KEY, vec![keys, hidden]),
            (VALUE, vec![keys, hidden]),
        ]),
    }
    match choices.gate_up {
        GateUpProjection::Separate => {
            in_layer.extend([(GATE, vec![intermediate, hidden]), (UP, vec![intermediate, hidden])]);
        }
    }
    let mut tensors = BTreeMap::from([
        (EMBEDDING.to_owned(), vec![shape.vocabulary, hidden]),
        (FINAL_NORM.to_owned(), vec![hidden]),
    ]);
    match choices.head {
        Head::Tied => {}
        Head::Separate => {
            tensors.insert(HEAD.to_owned(), vec![shape.vocabulary, hidden]);
        }
    }
    for layer in 0..shape.layers {
        tensors.extend(in_layer.iter().map(|(name, shape)| (of_layer(layer, name), shape.clone())));
    }
    tensors
}
