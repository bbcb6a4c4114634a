//! The layers' parts of loading.

use std::ops::Range;

use candle_core::{Device, Tensor};

use super::{Loader, Part, names, rope};
use crate::decoder::LoadError;
use crate::decoder::choices::{
    Bias, LayerChoices, LayerMlp, LayerRope, MlpKind, QkNorm, QkvProjection, ScoreScale,
};
use crate::decoder::layer::{Layer, LayerAttention, LayerNorms, LayerQkNorm};
use crate::decoder::mlp::{DenseMlp, Expert, Experts, Inner, Mlp};
use crate::decoder::spec::ExpertShape;
use crate::ops::attention::AttentionShape;
use crate::ops::cpu::panels::COLUMNS;
use crate::ops::experts::Routing;

/// The tables of angles a model's layers share.
struct RopeTables {
    global: Tensor,
    local: Option<Tensor>,
}

impl Loader<'_> {
    pub(super) fn layers(&self) -> Result<Vec<Layer>, LoadError> {
        let (choices, positions) = (&self.spec.choices, self.spec.shape.max_positions);
        let tables = RopeTables {
            global: rope::table(&choices.rope, positions)?,
            local: choices.local_rope.as_ref().map(|rope| rope::table(rope, positions)).transpose()?,
        };
        let layer = |(index, choices)| self.layer(index, choices, &tables);
        self.spec.layers.iter().enumerate().map(layer).collect()
    }

    fn layer(&self, index: usize, choices: &LayerChoices, tables: &RopeTables) -> Result<Layer, LoadError> {
        let norm = |module: Option<&str>| {
            module.map(|module| self.norm(&names::of_layer(index, module))).transpose()
        };
        let [before_attention, after_attention, before_mlp, after_mlp] =
            names::norms(self.spec.choices.norms.placement);
        Ok(Layer {
            attention: self.attention(index, choices, tables)?,
            mlp: match (choices.mlp, self.spec.shape.experts) {
                (LayerMlp::Experts, Some(shape)) => Mlp::Experts(self.experts(index, shape)?),
                (LayerMlp::Experts | LayerMlp::Dense, _) => Mlp::Dense(self.dense_mlp(index)?),
            },
            norms: LayerNorms {
                before_attention: norm(before_attention)?,
                after_attention: norm(after_attention)?,
                before_mlp: norm(before_mlp)?,
                after_mlp: norm(after_mlp)?,
            },
        })
    }

    fn attention(
        &self,
        index: usize,
        layer: &LayerChoices,
        tables: &RopeTables,
    ) -> Result<LayerAttention, LoadError> {
        let choices = &self.spec.choices.attention;
        let hidden = 0..self.spec.shape.hidden;
        let queries = self.slice.elements(&self.slice.query_heads);
        let output =
            [Part { module: names::of_layer(index, names::ATTENTION_OUTPUT), rows: hidden.clone() }];
        Ok(LayerAttention {
            shape: AttentionShape {
                query_heads: self.slice.query_heads.len(),
                kv: self.slice.kv_layout(),
                scale: match choices.score_scale {
                    ScoreScale::HeadWidth => (1.0 / (self.slice.head_width as f64).sqrt()) as f32,
                    ScoreScale::Scalar(scale) => scale as f32,
                },
                window: layer.window.map(|window| window.len()),
                softcap: choices.softcap.map(|cap| cap as f32),
            },
            qkv: self.projection(self.products.qkv, (&self.qkv_parts(index), hidden), choices.qkv_bias)?,
            qk_norm: self.qk_norm(index)?,
            rope_table: match layer.rope {
                LayerRope::Global => Some(tables.global.clone()),
                LayerRope::Local => Some(tables.local.as_ref().unwrap_or(&tables.global).clone()),
                LayerRope::Absent => None,
            },
            output: self.projection(self.products.output, (&output, queries), choices.output_bias)?,
        })
    }

    fn qkv_parts(&self, index: usize) -> [Part; 3] {
        let (shape, slice) = (&self.spec.shape, &self.slice);
        let (queries, keys) = (slice.elements(&slice.query_heads), slice.elements(&slice.kv_heads));
        let module = |name| names::of_layer(index, name);
        match self.spec.choices.attention.qkv {
            QkvProjection::Separate => [
                Part { module: module(names::QUERY), rows: queries },
                Part { module: module(names::KEY), rows: keys.clone() },
                Part { module: module(names::VALUE), rows: keys },
            ],
            QkvProjection::Fused => {
                let (all_queries, all_keys) =
                    (shape.query_heads * shape.head_width, shape.kv_heads * shape.head_width);
                let after = |first: usize| first + keys.start..first + keys.end;
                [queries.clone(), after(all_queries), after(all_queries + all_keys)]
                    .map(|rows| Part { module: module(names::QKV), rows })
            }
        }
    }

    fn qk_norm(&self, index: usize) -> Result<LayerQkNorm, LoadError> {
        let (shape, slice) = (&self.spec.shape, &self.slice);
        let kind = self.spec.choices.attention.qk_norm;
        let head = 0..shape.head_width;
        let elements = match kind {
            QkNorm::Absent => None,
            QkNorm::Head => Some((head.clone(), head)),
            QkNorm::Projection => {
                Some((slice.elements(&slice.query_heads), slice.elements(&slice.kv_heads)))
            }
        };
        let mut weights = Vec::new();
        if let Some((queries, keys)) = elements {
            weights = self.norm_weight(&names::of_layer(index, names::QUERY_NORM), queries)?;
            weights.extend(self.norm_weight(&names::of_layer(index, names::KEY_NORM), keys)?);
        }
        let count = weights.len();
        let weights = match kind {
            QkNorm::Head => Tensor::from_vec(weights, (2, shape.head_width), &Device::Cpu)?,
            QkNorm::Absent | QkNorm::Projection => Tensor::from_vec(weights, count, &Device::Cpu)?,
        };
        let widths = (shape.query_heads * shape.head_width, shape.kv_heads * shape.head_width);
        Ok(LayerQkNorm { kind, weights, epsilon: self.epsilon(), segments: slice.segments, widths })
    }

    fn dense_mlp(&self, index: usize) -> Result<DenseMlp, LoadError> {
        let choices = self.spec.choices.mlp;
        let (hidden, columns) = (0..self.spec.shape.hidden, self.slice.intermediate.clone());
        let (before, after) = names::mlp(choices.kind);
        let module = |name: &str| names::of_layer(index, name);
        let stored = match choices.kind {
            MlpKind::Gated | MlpKind::Plain => vec![columns.clone(); before.len()],
            MlpKind::GatedFused => {
                let up = self.spec.shape.intermediate;
                vec![columns.clone(), up + columns.start..up + columns.end]
            }
        };
        let parts: Vec<Part> = before
            .iter()
            .cycle()
            .zip(stored)
            .map(|(name, rows)| Part { module: module(name), rows })
            .collect();
        let down = [Part { module: module(after), rows: hidden.clone() }];
        Ok(DenseMlp {
            inner: self.inner(&parts, hidden)?,
            down: self.projection(self.products.down, (&down, columns), choices.bias)?,
        })
    }

    /// What comes before an MLP's last product. A bias comes between product and activation, so that with one
    /// they are two operators.
    fn inner(&self, parts: &[Part], hidden: Range<usize>) -> Result<Inner, LoadError> {
        let (choices, shape) = (self.spec.choices.mlp, self.products.inner);
        let activation = choices.activation;
        let projection = || self.projection(shape, (parts, hidden.clone()), choices.bias);
        Ok(match (choices.kind, choices.bias) {
            (MlpKind::Gated | MlpKind::GatedFused, Bias::Absent)
                if shape.outputs.is_multiple_of(COLUMNS) =>
            {
                Inner::Gated(self.gated(shape, (parts, hidden.clone()), activation)?)
            }
            (MlpKind::Gated | MlpKind::GatedFused, _) => Inner::ThenGated(projection()?, activation),
            (MlpKind::Plain, _) => Inner::ThenActivated(projection()?, activation),
        })
    }

    fn experts(&self, index: usize, shape: ExpertShape) -> Result<Experts, LoadError> {
        let choices = self.spec.choices.mlp;
        let module = |name: &str| names::of_layer(index, name);
        let router = Part { module: module(names::router(choices.experts.names)), rows: 0..shape.count };
        let mine: Vec<usize> = self.slice.experts.clone().collect();
        let group =
            |experts: &[usize]| experts.iter().map(|expert| self.expert(index, *expert, shape)).collect();
        let length = (mine.len() / self.slice.segments).max(1);
        Ok(Experts {
            router: self.linear(self.products.router, &[router], 0..self.spec.shape.hidden)?,
            routing: Routing {
                experts: shape.count,
                chosen: shape.chosen,
                weights: choices.experts.weights,
            },
            first: self.slice.experts.start,
            groups: mine.chunks(length).map(group).collect::<Result<_, LoadError>>()?,
            activation: choices.activation,
        })
    }

    fn expert(&self, index: usize, expert: usize, shape: ExpertShape) -> Result<Expert, LoadError> {
        let [gate, up, down] = names::expert(self.spec.choices.mlp.experts.names, expert)
            .map(|name| names::of_layer(index, &name));
        let (hidden, width) = (0..self.spec.shape.hidden, 0..shape.intermediate);
        let gate_up = [gate, up].map(|module| Part { module, rows: width.clone() });
        let down = [Part { module: down, rows: hidden.clone() }];
        Ok(Expert {
            gate_up: self.linear(self.products.expert_gate_up, &gate_up, hidden)?,
            down: self.linear(self.products.expert_down, &down, width)?,
        })
    }
}
