//! Which tensors a model has, by name and shape, as checkpoints hold them.

use std::collections::BTreeMap;

use super::choices::{
    Bias, ExpertNames, Head, LayerChoices, LayerMlp, MlpKind, NormKind, NormPlacement, QkNorm,
    QkvProjection,
};
use super::spec::{ModelSpec, Shape};

pub(super) const EMBEDDING: &str = "model.embed_tokens";
pub(super) const FINAL_NORM: &str = "model.norm";
pub(super) const HEAD: &str = "lm_head";

pub(super) const INPUT_NORM: &str = "input_layernorm";
pub(super) const POST_ATTENTION_NORM: &str = "post_attention_layernorm";
pub(super) const PRE_MLP_NORM: &str = "pre_feedforward_layernorm";
pub(super) const POST_MLP_NORM: &str = "post_feedforward_layernorm";
pub(super) const QUERY: &str = "self_attn.q_proj";
pub(super) const KEY: &str = "self_attn.k_proj";
pub(super) const VALUE: &str = "self_attn.v_proj";
pub(super) const QKV: &str = "self_attn.qkv_proj";
pub(super) const QUERY_NORM: &str = "self_attn.q_norm";
pub(super) const KEY_NORM: &str = "self_attn.k_norm";
pub(super) const ATTENTION_OUTPUT: &str = "self_attn.o_proj";
pub(super) const GATE: &str = "mlp.gate_proj";
pub(super) const UP: &str = "mlp.up_proj";
pub(super) const GATE_UP: &str = "mlp.gate_up_proj";
pub(super) const DOWN: &str = "mlp.down_proj";
const PLAIN_UP: &str = "mlp.c_fc";
const PLAIN_DOWN: &str = "mlp.c_proj";

/// A module in a layer.
pub(super) fn of_layer(layer: usize, module: &str) -> String {
    format!("model.layers.{layer}.{module}")
}

/// The name of a module's weight.
pub(super) fn weight(module: &str) -> String {
    format!("{module}.weight")
}

/// The name of a module's bias.
pub(super) fn bias(module: &str) -> String {
    format!("{module}.bias")
}

/// The modules of an MLP's products: what comes before the activation, in order, and what comes after.
pub(super) fn mlp(kind: MlpKind) -> (&'static [&'static str], &'static str) {
    match kind {
        MlpKind::Gated => (&[GATE, UP], DOWN),
        MlpKind::GatedFused => (&[GATE_UP], DOWN),
        MlpKind::Plain => (&[PLAIN_UP], PLAIN_DOWN),
    }
}

/// The module that scores experts.
pub(super) fn router(names: ExpertNames) -> &'static str {
    match names {
        ExpertNames::Mixtral => "block_sparse_moe.gate",
        ExpertNames::Qwen => "mlp.gate",
    }
}

/// The modules of an expert: gate, up, down.
pub(super) fn expert(names: ExpertNames, expert: usize) -> [String; 3] {
    match names {
        ExpertNames::Mixtral => {
            ["w1", "w3", "w2"].map(|name| format!("block_sparse_moe.experts.{expert}.{name}"))
        }
        ExpertNames::Qwen => ["gate_proj", "up_proj", "down_proj"]
            .map(|name| format!("mlp.experts.{expert}.{name}")),
    }
}

/// The norms of a layer: before attention, after it, before the MLP, after it.
pub(super) fn norms(placement: NormPlacement) -> [Option<&'static str>; 4] {
    match placement {
        NormPlacement::Pre => [Some(INPUT_NORM), None, Some(POST_ATTENTION_NORM), None],
        NormPlacement::Post => [None, Some(POST_ATTENTION_NORM), None, Some(POST_MLP_NORM)],
        NormPlacement::Sandwich => {
            [INPUT_NORM, POST_ATTENTION_NORM, PRE_MLP_NORM, POST_MLP_NORM].map(Some)
        }
    }
}

/// Every tensor the model has, with its shape.
pub(super) fn expected(spec: &ModelSpec) -> BTreeMap<String, Vec<usize>> {
    let shape = &spec.shape;
    let mut tensors = Tensors { spec, found: BTreeMap::new() };
    tensors.matrix(EMBEDDING, shape.vocabulary, shape.hidden, Bias::Absent);
    tensors.norm(FINAL_NORM);
    match spec.choices.head {
        Head::Tied => {}
        Head::Separate => tensors.matrix(HEAD, shape.vocabulary, shape.hidden, Bias::Absent),
    }
    for (layer, choices) in spec.layers.iter().enumerate() {
        let mut in_layer = Tensors { spec, found: BTreeMap::new() };
        in_layer.attention();
        in_layer.mlp(choices);
        for norm in norms(spec.choices.norms.placement).into_iter().flatten() {
            in_layer.norm(norm);
        }
        tensors.found.extend(in_layer.found.into_iter().map(|(name, shape)| (of_layer(layer, &name), shape)));
    }
    tensors.found
}

struct Tensors<'a> {
    spec: &'a ModelSpec,
    found: BTreeMap<String, Vec<usize>>,
}

impl Tensors<'_> {
    fn matrix(&mut self, module: &str, outputs: usize, inputs: usize, with: Bias) {
        self.found.insert(weight(module), vec![outputs, inputs]);
        match with {
            Bias::Absent => {}
            Bias::Present => {
                self.found.insert(bias(module), vec![outputs]);
            }
        }
    }

    fn norm(&mut self, module: &str) {
        let hidden = self.spec.shape.hidden;
        self.found.insert(weight(module), vec![hidden]);
        match self.spec.choices.norms.kind {
            NormKind::RootMeanSquare => {}
            NormKind::Layer => {
                self.found.insert(bias(module), vec![hidden]);
            }
        }
    }

    fn attention(&mut self) {
        let (shape, choices) = (&self.spec.shape, self.spec.choices.attention);
        let Shape { hidden, head_width, .. } = *shape;
        let (queries, keys) = (shape.query_heads * head_width, shape.kv_heads * head_width);
        match choices.qkv {
            QkvProjection::Separate => {
                self.matrix(QUERY, queries, hidden, choices.qkv_bias);
                self.matrix(KEY, keys, hidden, choices.qkv_bias);
                self.matrix(VALUE, keys, hidden, choices.qkv_bias);
            }
            QkvProjection::Fused => self.matrix(QKV, queries + 2 * keys, hidden, choices.qkv_bias),
        }
        self.matrix(ATTENTION_OUTPUT, hidden, queries, choices.output_bias);
        let norms = match choices.qk_norm {
            QkNorm::Absent => return,
            QkNorm::Head => [head_width, head_width],
            QkNorm::Projection => [queries, keys],
        };
        for (module, width) in [QUERY_NORM, KEY_NORM].into_iter().zip(norms) {
            self.found.insert(weight(module), vec![width]);
        }
    }

    fn mlp(&mut self, layer: &LayerChoices) {
        let (shape, choices) = (&self.spec.shape, self.spec.choices.mlp);
        let (hidden, intermediate) = (shape.hidden, shape.intermediate);
        match (layer.mlp, shape.experts) {
            (LayerMlp::Experts, Some(experts)) => {
                self.matrix(router(choices.experts.names), experts.count, hidden, Bias::Absent);
                for index in 0..experts.count {
                    let [gate, up, down] = expert(choices.experts.names, index);
                    self.matrix(&gate, experts.intermediate, hidden, Bias::Absent);
                    self.matrix(&up, experts.intermediate, hidden, Bias::Absent);
                    self.matrix(&down, hidden, experts.intermediate, Bias::Absent);
                }
            }
            (LayerMlp::Experts | LayerMlp::Dense, _) => {
                let (before, after) = mlp(choices.kind);
                let outputs = intermediate * choices.kind.inner_products() / before.len();
                for module in before {
                    self.matrix(module, outputs, hidden, choices.bias);
                }
                self.matrix(after, hidden, intermediate, choices.bias);
            }
        }
    }
}
