//! How a token is chosen from a row of logits, as both sides understand it.

use crate::{TokenId, Watermark};

/// Everything that decides a sequence's tokens besides its context and the model.
///
/// The order of the chain is fixed: watermark, logit bias, repetition, frequency and presence penalties,
/// grammar mask, temperature, top-k, top-p, typical-p, min-p, choice.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Greedy, or seeded sampling.
    pub selection: Selection,
    /// Divides positive and multiplies negative logits of every token of prompt and output; 1 is off
    /// (Keskar et al. 2019, CTRL).
    pub repetition_penalty: f32,
    /// Subtracted for each occurrence in the output; 0 is off.
    pub frequency_penalty: f32,
    /// Subtracted once for each token that occurs in the output; 0 is off.
    pub presence_penalty: f32,
    /// Added to single logits.
    pub logit_bias: Vec<LogitBias>,
    /// How many of the most probable tokens to report at each position.
    pub top_logprobs: u32,
    /// Which distribution reported log-probabilities are of.
    pub logprobs_of: LogprobsOf,
    /// A mark that the text is generated; `None` is off.
    pub watermark: Option<Watermark>,
}

/// How the token is chosen in the end.
#[derive(Clone, Debug, PartialEq)]
pub enum Selection {
    /// The most probable token; the lowest id among equals.
    Greedy,
    /// Drawn from the warped distribution.
    Seeded(Seeded),
}

/// Parameters of a draw. Output position *i* uses a counter-based generator keyed by (seed, choice, i).
#[derive(Clone, Debug, PartialEq)]
pub struct Seeded {
    /// The request's seed.
    pub seed: u64,
    /// Which of several answers to one request this is.
    pub choice: u32,
    /// Divides the logits; above 0.
    pub temperature: f32,
    /// Keep the k most probable; 0 is off.
    pub top_k: u32,
    /// Keep the most probable until their mass reaches p; 1 is off.
    pub top_p: f32,
    /// Keep those nearest the expected surprise until their mass reaches p; 1 is off
    /// (Meister et al. 2022, locally typical sampling).
    pub typical_p: f32,
    /// Keep those at least this share of the most probable; 0 is off.
    pub min_p: f32,
}

/// A value added to one token's logit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogitBias {
    /// The token.
    pub token: TokenId,
    /// What is added.
    pub bias: f32,
}

/// Which distribution reported log-probabilities are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogprobsOf {
    /// The model's own, before bias, penalties and warpers.
    Model,
    /// The one that is sampled from. Tokens that are given, not sampled, have the model's.
    Warped,
}

impl SamplingParams {
    /// The most probable token at every position, nothing else changed.
    pub fn greedy() -> Self {
        Self {
            selection: Selection::Greedy,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: Vec::new(),
            top_logprobs: 0,
            logprobs_of: LogprobsOf::Model,
            watermark: None,
        }
    }

    /// A plain draw at temperature 1.
    pub fn seeded(seed: u64) -> Self {
        let seeded =
            Seeded { seed, choice: 0, temperature: 1.0, top_k: 0, top_p: 1.0, typical_p: 1.0, min_p: 0.0 };
        Self { selection: Selection::Seeded(seeded), ..Self::greedy() }
    }
}
