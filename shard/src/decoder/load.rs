//! Reads and packs a rank's part of the weights.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use lockstep_models::ModelFiles;

use super::embedding::Embedding;
use super::layer::Layer;
use super::spec::{Activation, EmbeddingScale, Head, ModelSpec, NormWeight, ScoreScale, Window};
use super::split::{Slice, Split};
use super::{Decoder, Dtype, LoadError, names, rope};
use crate::comm::Communicator;
use crate::ops::attention::AttentionShape;
use crate::ops::cpu::isa::Isa;
use crate::ops::cpu::panels::Panels;
use crate::ops::linear::Linear;
use crate::plan::{MemoryPlan, Products};
use crate::weights::{Checkpoint, StackedRows, WeightsError};

pub(super) fn load(
    files: &ModelFiles,
    spec: &ModelSpec,
    dtype: Dtype,
    communicator: Arc<dyn Communicator>,
) -> Result<Decoder, LoadError> {
    let split = Split { rank: communicator.rank(), world_size: communicator.world_size() };
    let slice = Slice::of(&spec.shape, split)?;
    let plan = MemoryPlan::of(spec, dtype, split)?;
    let checkpoint = Checkpoint::open(files)?;
    let tolerated: &[&str] = match spec.choices.head {
        // Some writers store the head again although it is the embedding.
        Head::Tied => &[names::HEAD],
        Head::Separate => &[],
    };
    checkpoint.check(&names::expected(spec), tolerated)?;
    let products = Products::of(&spec.shape, &slice);
    let loader =
        Loader { checkpoint: &checkpoint, spec, slice, products, dtype, isa: Isa::of_this_machine() };
    Ok(Decoder {
        spec: spec.clone(),
        plan,
        dtype,
        isa: loader.isa,
        communicator,
        embedding: loader.embedding()?,
        layers: (0..spec.shape.layers).map(|layer| loader.layer(layer)).collect::<Result<_, _>>()?,
        final_norm: loader.norm(names::FINAL_NORM)?,
        rope_table: rope::table(&spec.shape, spec.choices.rope_scaling)?,
        head: loader.head()?,
        attention: loader.attention(),
    })
}

struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    spec: &'a ModelSpec,
    slice: Slice,
    products: Products,
    dtype: Dtype,
    isa: Isa,
}

impl Loader<'_> {
    fn layer(&self, layer: usize) -> Result<Layer, LoadError> {
        let name = |name| names::of_layer(layer, name);
        let hidden = 0..self.spec.shape.hidden;
        let queries = self.slice.elements(&self.slice.query_heads);
        let keys = self.slice.elements(&self.slice.kv_heads);
        let intermediate = self.slice.intermediate.clone();
        let qkv = self.rows(
            &[
                (&name(names::QUERY), queries.clone()),
                (&name(names::KEY), keys.clone()),
                (&name(names::VALUE), keys),
            ],
            hidden.clone(),
        )?;
        let gates = [(&name(names::GATE), intermediate.clone()), (&name(names::UP), intermediate.clone())];
        let gate_up =
            self.rows(&gates.each_ref().map(|(name, rows)| (name.as_str(), rows.clone())), hidden.clone())?;
        let output = self.rows(&[(&name(names::ATTENTION_OUTPUT), hidden.clone())], queries)?;
        let down = self.rows(&[(&name(names::DOWN), hidden)], intermediate)?;
        Ok(Layer {
            input_norm: self.norm(&name(names::INPUT_NORM))?,
            qkv: self.linear(self.products.qkv, &qkv)?,
            output: self.linear(self.products.output, &output)?,
            post_norm: self.norm(&name(names::POST_NORM))?,
            gate_up: self.linear(self.products.gate_up, &gate_up)?,
            down: self.linear(self.products.down, &down)?,
            activation: match self.spec.choices.activation {
                Activation::Silu => Activation::Silu,
            },
        })
    }

    fn embedding(&self) -> Result<Embedding, LoadError> {
        let hidden = self.spec.shape.hidden;
        let scale = match self.spec.choices.embedding_scale {
            EmbeddingScale::One => None,
            EmbeddingScale::RootOfHidden => Some((hidden as f32).sqrt()),
        };
        Ok(Embedding { table: self.checkpoint.tensor(names::EMBEDDING)?, hidden, scale })
    }

    fn head(&self) -> Result<Linear, LoadError> {
        let name = match self.spec.choices.head {
            Head::Tied => names::EMBEDDING,
            Head::Separate => names::HEAD,
        };
        let rows = self.rows(&[(name, self.slice.vocabulary.clone())], 0..self.spec.shape.hidden)?;
        self.linear(self.products.head, &rows)
    }

    fn attention(&self) -> AttentionShape {
        let choices = &self.spec.choices;
        AttentionShape {
            query_heads: self.slice.query_heads.len(),
            kv: self.slice.kv_layout(),
            scale: match choices.score_scale {
                ScoreScale::HeadWidth => (1.0 / (self.slice.head_width as f64).sqrt()) as f32,
                ScoreScale::Scalar(scale) => scale as f32,
            },
            window: match choices.window {
                Window::Full => None,
                Window::EveryLayer(window) => Some(window.len()),
            },
        }
    }

    /// A norm's factors: (hidden).
    fn norm(&self, name: &str) -> Result<Tensor, LoadError> {
        let mut weight = self.checkpoint.tensor(name)?.row(0);
        match self.spec.choices.norm_weight {
            NormWeight::Plain => {}
            NormWeight::OnePlus => weight.iter_mut().for_each(|weight| *weight += 1.0),
        }
        let width = weight.len();
        Ok(Tensor::from_vec(weight, width, &Device::Cpu)?)
    }

    fn rows(
        &self,
        parts: &[(&str, Range<usize>)],
        columns: Range<usize>,
    ) -> Result<StackedRows, WeightsError> {
        let part = |(name, rows): &(&str, Range<usize>)| Ok((self.checkpoint.tensor(name)?, rows.clone()));
        Ok(StackedRows::new(parts.iter().map(part).collect::<Result<_, WeightsError>>()?, columns))
    }

    fn linear(
        &self,
        shape: crate::ops::cpu::panels::PanelShape,
        rows: &StackedRows,
    ) -> Result<Linear, LoadError> {
        Ok(Linear { panels: Arc::new(Panels::pack(shape, self.dtype, rows)?), isa: self.isa })
    }
}
