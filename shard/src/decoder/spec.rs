//! What a model is: its sizes, its choices among the axes on which families differ, and its layers.

use std::collections::BTreeMap;

use candle_core::quantized::GgmlDType;
use lockstep_models::{FileError, ModelFiles};
use lockstep_proto::Tokens;
use thiserror::Error;

use super::choices::{Choices, LayerChoices, LayerMlp};
use super::{families, names};
use crate::weights;

/// A decoder, before any weight is read.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    pub(crate) family: &'static str,
    pub(crate) shape: Shape,
    pub(crate) choices: Choices,
    /// As many as the shape has layers.
    pub(crate) layers: Vec<LayerChoices>,
    /// Its weights that a GGUF file holds in blocks, by name.
    pub(crate) stored: BTreeMap<String, GgmlDType>,
}

/// A model's sizes.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// Width of the residual stream.
    pub hidden: usize,
    /// How many layers.
    pub layers: usize,
    /// Query heads, a multiple of the KV heads.
    pub query_heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements of a head; even.
    pub head_width: usize,
    /// Width of the MLP, in layers that have one for all tokens.
    pub intermediate: usize,
    /// Those of the layers that have experts.
    pub experts: Option<ExpertShape>,
    /// Entries of the vocabulary.
    pub vocabulary: usize,
    /// Positions a context may have.
    pub max_positions: usize,
    /// What norms add to the mean square.
    pub norm_epsilon: f64,
}

/// The sizes of a layer's experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertShape {
    /// How many there are.
    pub count: usize,
    /// How many of them a token chooses.
    pub chosen: usize,
    /// Width of one.
    pub intermediate: usize,
}

/// A config.json that cannot be served.
#[derive(Debug, Error)]
pub enum SpecError {
    /// It cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// It names an architecture of no family here.
    #[error("serve architecture {found}: known are {known}")]
    Architecture {
        /// What it names.
        found: String,
        /// What it might name.
        known: String,
    },
    /// A feature that is not implemented.
    #[error("serve a model with {field} = {found} in config.json: supported is {supported}")]
    Unsupported {
        /// The field.
        field: &'static str,
        /// Its value.
        found: String,
        /// The values that work.
        supported: &'static str,
    },
    /// Numbers that make no model.
    #[error("serve a model with {field} = {found} in config.json: expected {expected}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// Its value.
        found: String,
        /// What it should be.
        expected: String,
    },
}

impl ModelSpec {
    /// Reads config.json, and how a GGUF file holds the weights.
    ///
    /// # Errors
    /// When it cannot be read, its architecture is unknown, or it asks for what is not implemented.
    pub fn read(files: &ModelFiles) -> Result<Self, SpecError> {
        let spec = families::read(files)?;
        Ok(Self { stored: weights::stored_blocks(files)?, ..spec })
    }

    /// The architecture's name, as config.json gives it.
    pub fn family(&self) -> &'static str {
        self.family
    }

    /// Elements that are kept as f32 beside the packed matrices: norms, biases, and the angles of positions.
    pub(crate) fn unpacked_elements(&self) -> usize {
        let vectors = names::expected(self).into_values().filter(|shape| shape.len() == 1).flatten();
        let local = self.choices.local_rope.as_ref().map_or(0, |rope| rope.width);
        vectors.sum::<usize>() + self.shape.max_positions * (self.choices.rope.width + local)
    }

    /// Whether any layer has one MLP for all tokens.
    pub(crate) fn has_dense_layers(&self) -> bool {
        self.layers.iter().any(|layer| layer.mlp == LayerMlp::Dense)
    }

    /// The model's sizes.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The layers, first to last.
    pub fn layers(&self) -> &[LayerChoices] {
        &self.layers
    }

    /// Elements of all its tensors.
    pub fn parameters(&self) -> u64 {
        names::expected(self).values().map(|shape| shape.iter().product::<usize>() as u64).sum()
    }

    /// The most ranks it can be split over; every power of two below works too.
    pub fn max_ranks(&self) -> usize {
        self.virtual_shards()
    }

    /// Entries of the vocabulary.
    pub fn vocabulary_size(&self) -> u32 {
        u32::try_from(self.shape.vocabulary).unwrap_or(u32::MAX)
    }

    /// Positions a context may have.
    pub fn max_positions(&self) -> Tokens {
        Tokens::of_len(self.shape.max_positions)
    }
}

impl Shape {
    /// Layers beyond what any model has.
    pub(super) const MAX_LAYERS: usize = 1 << 12;

    /// Sizes that are each possible may still make a model that is not.
    fn check_products(&self) -> Result<(), SpecError> {
        /// Far more than any model has: a hundred million million parameters, a million tensors, and as many
        /// elements of keys for one token.
        const MOST_PARAMETERS: f64 = 1e14;
        const MOST_TENSORS: usize = 1 << 20;
        const MOST_KEYS: usize = 1 << 30;
        let experts = self.experts.unwrap_or(ExpertShape { count: 0, chosen: 0, intermediate: 0 });
        let widths = [
            4 * self.query_heads * self.head_width,
            3 * self.intermediate,
            3 * experts.count * experts.intermediate,
        ];
        let in_layers = self.layers as f64 * widths.into_iter().map(|width| width as f64).sum::<f64>();
        let parameters = self.hidden as f64 * (in_layers + 2.0 * self.vocabulary as f64);
        let tensors = self.layers * (20 + 3 * experts.count);
        let keys = self.layers * self.kv_heads * self.head_width;
        if parameters > MOST_PARAMETERS || tensors > MOST_TENSORS || keys > MOST_KEYS {
            let found = format!("{} beside the other sizes", self.layers);
            let expected =
                format!("a model of at most {MOST_PARAMETERS:e} parameters in {MOST_TENSORS} tensors");
            return Err(SpecError::Invalid { field: "num_hidden_layers", found, expected });
        }
        Ok(())
    }

    /// Numbers far beyond any model are refused, so that no product of sizes comes near overflow.
    pub(super) fn check(&self) -> Result<(), SpecError> {
        let experts = self.experts.unwrap_or(ExpertShape { count: 1, chosen: 1, intermediate: 1 });
        let sizes = [
            ("hidden_size", self.hidden, 1 << 20),
            ("num_hidden_layers", self.layers, Self::MAX_LAYERS),
            ("num_attention_heads", self.query_heads, 1 << 14),
            ("num_key_value_heads", self.kv_heads, 1 << 14),
            ("head_dim", self.head_width, 1 << 14),
            ("intermediate_size", self.intermediate, 1 << 20),
            ("num_experts", experts.count, 1 << 13),
            ("num_experts_per_tok", experts.chosen, experts.count),
            ("moe_intermediate_size", experts.intermediate, 1 << 20),
            ("vocab_size", self.vocabulary, 1 << 26),
            ("max_position_embeddings", self.max_positions, 1 << 26),
        ];
        for (field, size, limit) in sizes {
            if size == 0 || size > limit {
                let expected = format!("a number from 1 to {limit}");
                return Err(SpecError::Invalid { field, found: size.to_string(), expected });
            }
        }
        self.check_products()?;
        let epsilon = self.norm_epsilon;
        if epsilon < 0.0 || !(epsilon as f32).is_finite() {
            let expected = "a number from 0 that f32 holds".to_owned();
            return Err(SpecError::Invalid { field: "rms_norm_eps", found: epsilon.to_string(), expected });
        }
        if !self.query_heads.is_multiple_of(self.kv_heads) {
            return Err(SpecError::Invalid {
                field: "num_key_value_heads",
                found: self.kv_heads.to_string(),
                expected: format!("a divisor of num_attention_heads, {}", self.query_heads),
            });
        }
        if !self.head_width.is_multiple_of(2) {
            let expected = "an even number".to_owned();
            return Err(SpecError::Invalid {
                field: "head_dim",
                found: self.head_width.to_string(),
                expected,
            });
        }
        Ok(())
    }
}
