//! The layers' parts of loading.

use candle_core::Tensor;

use super::{Loader, names, rope};
use crate::decoder::LoadError;
use crate::decoder::choices::{Bias, LayerChoices, LayerMlp, LayerRope, MlpKind, QkNorm, ScoreScale};
use crate::decoder::layer::{Layer, LayerAttention, LayerNorms, LayerQkNorm};
use crate::decoder::mlp::{DenseMlp, Expert, Experts, ExpertsOneByOne, HeldExperts, Inner, Mlp};
use crate::decoder::spec::ExpertShape;
use crate::decoder::stacks::Stack;
use crate::ops::attention::AttentionShape;
use crate::ops::experts::Routing;

/// The tables of angles a model's layers share.
struct RopeTables {
    global: Tensor,
    local: Option<Tensor>,
}

impl Loader<'_> {
    pub(super) fn layers(&self) -> Result<Vec<Layer>, LoadError> {
        let (choices, positions) = (&self.spec.choices, self.spec.shape.max_positions);
        let table = |rope| rope::table(rope, positions)?.to_device(&self.target.device);
        let tables = RopeTables {
            global: table(&choices.rope)?,
            local: choices.local_rope.as_ref().map(table).transpose()?,
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
            qkv: self.projection(&self.stacks.qkv(index), choices.qkv_bias)?,
            qk_norm: self.qk_norm(index)?,
            rope_table: match layer.rope {
                LayerRope::Global => Some(tables.global.clone()),
                LayerRope::Local => Some(tables.local.as_ref().unwrap_or(&tables.global).clone()),
                LayerRope::Absent => None,
            },
            output: self.projection(&self.stacks.output(index), choices.output_bias)?,
        })
    }

    fn qk_norm(&self, index: usize) -> Result<LayerQkNorm, LoadError> {
        let (shape, slice) = (&self.spec.shape, self.slice);
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
            QkNorm::Head => self.tensor(weights, (2, shape.head_width))?,
            QkNorm::Absent | QkNorm::Projection => self.tensor(weights, count)?,
        };
        let widths = (shape.query_heads * shape.head_width, shape.kv_heads * shape.head_width);
        Ok(LayerQkNorm { kind, weights, epsilon: self.epsilon(), segments: slice.segments, widths })
    }

    fn dense_mlp(&self, index: usize) -> Result<DenseMlp, LoadError> {
        let choices = self.spec.choices.mlp;
        Ok(DenseMlp {
            inner: self.inner(&self.stacks.inner(index))?,
            down: self.projection(&self.stacks.down(index), choices.bias)?,
        })
    }

    /// What comes before an MLP's last product. A bias comes between product and activation, so that with one
    /// they are two operators.
    fn inner(&self, stack: &Stack) -> Result<Inner, LoadError> {
        let choices = self.spec.choices.mlp;
        let activation = choices.activation;
        let gated = match (choices.kind, choices.bias) {
            (MlpKind::Gated | MlpKind::GatedFused, Bias::Absent) => self.gated(stack, activation)?,
            (MlpKind::Gated | MlpKind::GatedFused | MlpKind::Plain, _) => None,
        };
        if let Some(gated) = gated {
            return Ok(Inner::Gated(gated));
        }
        let projection = self.projection(stack, choices.bias)?;
        Ok(match choices.kind {
            MlpKind::Gated | MlpKind::GatedFused => Inner::ThenGated(projection, activation),
            MlpKind::Plain => Inner::ThenActivated(projection, activation),
        })
    }

    fn experts(&self, index: usize, shape: ExpertShape) -> Result<Experts, LoadError> {
        let choices = self.spec.choices.mlp;
        let routing =
            Routing { experts: shape.count, chosen: shape.chosen, weights: choices.experts.weights };
        let router = self.router(&self.stacks.router(index))?;
        if let Some(held) = self.grouped_experts(index, (routing, choices.activation))? {
            return Ok(Experts { router, held });
        }
        let mine: Vec<usize> = self.slice.experts.clone().collect();
        let group = |experts: &[usize]| experts.iter().map(|expert| self.expert(index, *expert)).collect();
        let groups = mine.chunks(self.experts_of_a_group()).map(group).collect::<Result<_, LoadError>>()?;
        let held = HeldExperts::OneByOne(ExpertsOneByOne {
            routing,
            first: self.slice.experts.start,
            groups,
            activation: choices.activation,
        });
        Ok(Experts { router, held })
    }

    pub(super) fn experts_of_a_group(&self) -> usize {
        (self.slice.experts.len() / self.slice.segments).max(1)
    }

    fn expert(&self, index: usize, expert: usize) -> Result<Expert, LoadError> {
        let [gate_up, down] = self.stacks.expert(index, expert);
        Ok(Expert { gate_up: self.linear(&gate_up)?, down: self.linear(&down)? })
    }
}
