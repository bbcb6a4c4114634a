//! What a model is: its sizes and its choices among the axes on which families differ.

use lockstep_models::{FileError, ModelFiles};
use lockstep_proto::Tokens;
use thiserror::Error;

use super::families;

/// A decoder, before any weight is read.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    pub(crate) shape: Shape,
    pub(crate) choices: Choices,
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
    /// Width of the MLP.
    pub intermediate: usize,
    /// Entries of the vocabulary.
    pub vocabulary: usize,
    /// Positions a context may have.
    pub max_positions: usize,
    /// What norms add to the mean square.
    pub norm_epsilon: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
}

/// A model's answers to what families do differently. Every family answers every question.
#[derive(Clone, Debug, PartialEq)]
pub struct Choices {
    /// How queries, keys and values are projected.
    pub qkv: QkvProjection,
    /// Whether query and key heads are normed.
    pub qk_norm: QkNorm,
    /// How rotary frequencies are stretched.
    pub rope_scaling: RopeScaling,
    /// What a position sees.
    pub window: Window,
    /// What scores are multiplied by.
    pub score_scale: ScoreScale,
    /// What is multiplied by in a norm.
    pub norm_weight: NormWeight,
    /// Where norms stand.
    pub norm_placement: NormPlacement,
    /// How the MLP's first two products are stored.
    pub gate_up: GateUpProjection,
    /// The MLP's activation.
    pub activation: Activation,
    /// What embeddings are multiplied by.
    pub embedding_scale: EmbeddingScale,
    /// Where the head's weights are.
    pub head: Head,
    /// What bounds scores and logits.
    pub softcap: Softcap,
}

/// How queries, keys and values are projected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkvProjection {
    /// Three tensors, no bias.
    Separate,
}

/// Whether query and key heads are normed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    /// They are not.
    Absent,
}

/// How rotary frequencies are stretched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeScaling {
    /// They are not.
    Absent,
}

/// What a position sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// All positions up to itself.
    Full,
    /// In every layer, this many positions with itself the last.
    EveryLayer(Tokens),
}

/// What scores are multiplied by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ScoreScale {
    /// One over the root of the head's width.
    HeadWidth,
    /// This.
    Scalar(f64),
}

/// What is multiplied by in a norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormWeight {
    /// The weight.
    Plain,
    /// One plus the weight.
    OnePlus,
}

/// Where norms stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormPlacement {
    /// Before attention and before the MLP.
    Pre,
}

/// How the MLP's first two products are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateUpProjection {
    /// Two tensors.
    Separate,
}

/// The MLP's activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + e^-x)`.
    Silu,
}

/// What embeddings are multiplied by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EmbeddingScale {
    /// Nothing.
    One,
    /// The root of the residual stream's width.
    RootOfHidden,
}

/// Where the head's weights are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// They are the embedding's.
    Tied,
    /// A tensor of its own.
    Separate,
}

/// What bounds scores and logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Softcap {
    /// Nothing.
    Absent,
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
    /// Reads config.json.
    ///
    /// # Errors
    /// When it cannot be read, its architecture is unknown, or it asks for what is not implemented.
    pub fn read(files: &ModelFiles) -> Result<Self, SpecError> {
        let spec = families::read(files)?;
        spec.shape.check()?;
        Ok(spec)
    }

    /// The model's sizes.
    pub fn shape(&self) -> &Shape {
        &self.shape
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
    /// Numbers far beyond any model are refused, so that no product of sizes comes near overflow.
    fn check(&self) -> Result<(), SpecError> {
        let sizes = [
            ("hidden_size", self.hidden, 1 << 20),
            ("num_hidden_layers", self.layers, 1 << 12),
            ("num_attention_heads", self.query_heads, 1 << 14),
            ("num_key_value_heads", self.kv_heads, 1 << 14),
            ("head_dim", self.head_width, 1 << 14),
            ("intermediate_size", self.intermediate, 1 << 20),
            ("vocab_size", self.vocabulary, 1 << 26),
            ("max_position_embeddings", self.max_positions, 1 << 26),
        ];
        for (field, size, limit) in sizes {
            if size == 0 || size > limit {
                let expected = format!("a number from 1 to {limit}");
                return Err(SpecError::Invalid { field, found: size.to_string(), expected });
            }
        }
        let numbers = [
            ("rope_theta", self.rope_theta, self.rope_theta > 0.0, "a number above 0 that f32 holds"),
            ("rms_norm_eps", self.norm_epsilon, self.norm_epsilon >= 0.0, "a number from 0 that f32 holds"),
        ];
        for (field, number, holds, expected) in numbers {
            if !holds || !(number as f32).is_finite() {
                let found = number.to_string();
                return Err(SpecError::Invalid { field, found, expected: expected.to_owned() });
            }
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
