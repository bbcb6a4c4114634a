//! The axes on which families differ, and a model's place on each.

use lockstep_proto::Tokens;

use super::rope::Rope;
use crate::ops::activation::Activation;

/// A model's answers to what families do differently, the same in all its layers.
#[derive(Clone, Debug, PartialEq)]
pub struct Choices {
    /// What attention does.
    pub attention: AttentionChoices,
    /// What the MLP does.
    pub mlp: MlpChoices,
    /// What norms are and where they stand.
    pub norms: NormChoices,
    /// How positions turn queries and keys.
    pub rope: Rope,
    /// How they do in layers of [`LayerRope::Local`].
    pub local_rope: Option<Rope>,
    /// Constants along the residual stream.
    pub scales: Scales,
    /// Where the head's weights are.
    pub head: Head,
}

/// What attention does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionChoices {
    /// How queries, keys and values are projected.
    pub qkv: QkvProjection,
    /// Of the projections of queries, keys and values.
    pub qkv_bias: Bias,
    /// Of the projection back to the residual stream.
    pub output_bias: Bias,
    /// Whether queries and keys are normed.
    pub qk_norm: QkNorm,
    /// What scores are multiplied by.
    pub score_scale: ScoreScale,
    /// `c` where scores become `c tanh(score / c)`.
    pub softcap: Option<f64>,
}

/// What the MLP does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MlpChoices {
    /// Its products.
    pub kind: MlpKind,
    /// Its activation.
    pub activation: Activation,
    /// Of its products.
    pub bias: Bias,
    /// Where there are experts, how they are named and weighed.
    pub experts: ExpertChoices,
}

/// How experts are named and weighed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertChoices {
    /// Their tensors' names.
    pub names: ExpertNames,
    /// What a chosen expert's output is multiplied by.
    pub weights: RoutingWeights,
}

/// What norms are and where they stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NormChoices {
    /// What a norm does with a row.
    pub kind: NormKind,
    /// What is multiplied by after it.
    pub weight: NormWeight,
    /// Where norms stand.
    pub placement: NormPlacement,
}

/// Constants along the residual stream.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scales {
    /// What embeddings are multiplied by.
    pub embedding: f64,
    /// What a layer's output is multiplied by before it is added.
    pub residual: f64,
    /// What logits are divided by.
    pub logits_divisor: f64,
    /// `c` where logits become `c tanh(logit / c)`.
    pub logits_softcap: Option<f64>,
}

impl Scales {
    /// All of them one, no cap.
    pub const NONE: Self =
        Self { embedding: 1.0, residual: 1.0, logits_divisor: 1.0, logits_softcap: None };
}

/// What may differ from layer to layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerChoices {
    /// How many positions a position sees, itself the last; all before it where there is none.
    pub window: Option<Tokens>,
    /// Which angles turn queries and keys.
    pub rope: LayerRope,
    /// What its MLP is.
    pub mlp: LayerMlp,
}

/// Which angles turn a layer's queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerRope {
    /// The model's.
    Global,
    /// Those for layers that see a window.
    Local,
    /// None: positions do not show.
    Absent,
}

/// What a layer's MLP is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerMlp {
    /// One for all tokens.
    Dense,
    /// Several, of which each token chooses some.
    Experts,
}

/// How queries, keys and values are projected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkvProjection {
    /// By three tensors.
    Separate,
    /// By one: queries, keys, values.
    Fused,
}

/// Whether a product adds a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bias {
    /// It does not.
    Absent,
    /// It does.
    Present,
}

/// Whether queries and keys are normed, by root mean square.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    /// They are not.
    Absent,
    /// Each head by itself.
    Head,
    /// All heads of a row together.
    Projection,
}

/// What scores are multiplied by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ScoreScale {
    /// One over the root of the head's width.
    HeadWidth,
    /// This.
    Scalar(f64),
}

/// What a norm does with a row.
pub use crate::ops::norm::NormKind;

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
    /// After each, before its output is added to the residual stream.
    Post,
    /// Before and after each.
    Sandwich,
}

/// An MLP's products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MlpKind {
    /// Gate, up and down, stored as three tensors.
    Gated,
    /// Gate and up stored as one tensor, gate first; down.
    GatedFused,
    /// Up and down, nothing gated.
    Plain,
}

/// The names of experts' tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpertNames {
    /// `block_sparse_moe.experts.N.w1`, `w3` and `w2`.
    Mixtral,
    /// `mlp.experts.N.gate_proj`, `up_proj` and `down_proj`.
    Qwen,
}

/// What a chosen expert's output is multiplied by.
pub use crate::ops::experts::RoutingWeights;

/// Where the head's weights are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// They are the embedding's.
    Tied,
    /// A tensor of its own.
    Separate,
}

impl MlpKind {
    /// How many times its width the products before the activation have.
    pub(crate) fn inner_products(self) -> usize {
        match self {
            Self::Gated | Self::GatedFused => 2,
            Self::Plain => 1,
        }
    }
}
