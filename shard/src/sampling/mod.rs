//! Chooses a token from a row of logits. Pure: the same parameters, context and logits give the same token.

mod candidates;
mod chain;
mod draw;
mod grammar_mask;
mod greedy;
mod logit_bias;
mod logprobs;
mod min_p;
#[cfg(feature = "cuda")]
pub(crate) mod on_device;
mod order;
mod penalties;
mod rng;
mod scan;
mod softmax;
mod temperature;
mod top_k;
mod top_p;
mod typical_p;
mod watermark;

use lockstep_proto::{
    LogitBias, SamplingParams, Seeded, Selection, TokenId, TokenLogprobs, Tokens, Watermark,
};
use thiserror::Error;

use self::penalties::Occurrences;

pub use self::logprobs::of_known_token;

/// How one sequence's tokens are chosen, and what it has said so far.
///
/// The state is a pure function of prompt and output: [`Sampler::new`] builds from a whole context what
/// [`Sampler::on_emitted`] builds token by token.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampler {
    params: SamplingParams,
    occurrences: Occurrences,
    /// The last token of the context.
    previous: Option<TokenId>,
}

/// What is asked of a row of logits.
#[derive(Clone, Copy, Debug)]
pub enum RowAsk<'a> {
    /// The log-probabilities of a token that is known and of the most probable ones.
    Known {
        /// The token.
        token: TokenId,
        /// How many others.
        top: usize,
    },
    /// A token that follows.
    Sample {
        /// How it is chosen.
        sampler: &'a Sampler,
        /// The grammar's mask.
        allowed: Option<&'a [u8]>,
        /// How many tokens were emitted before.
        output_position: Tokens,
        /// In which of the wanted rows of the step before the last of those is chosen, where the sampler does not know it yet.
        fed: Option<usize>,
    },
}

/// Rivals that a device tells at most.
pub const MOST_RIVALS: usize = 32;

/// Whether a device can choose tokens so: it knows no watermarks, and tells of few rivals.
pub fn is_for_devices(params: &SamplingParams) -> bool {
    params.watermark.is_none() && params.top_logprobs as usize <= MOST_RIVALS
}

/// What was found in a row of logits.
pub type RowFound = Result<TokenLogprobs, SamplingError>;

impl RowAsk<'_> {
    /// The answer, from a row in main memory: (vocabulary). The sampler knows every token that was emitted.
    ///
    /// # Errors
    /// When the logits are not numbers or nothing is left to choose from.
    pub fn answer(self, logits: &[f32]) -> RowFound {
        match self {
            Self::Known { token, top } => of_known_token(logits, token, top),
            Self::Sample { sampler, allowed, output_position, fed: _ } => {
                sampler.sample(logits, allowed, output_position)
            }
        }
    }

    /// Whether a device can tell.
    pub fn is_for_devices(self) -> bool {
        match self {
            Self::Known { token: _, top } => top <= MOST_RIVALS,
            Self::Sample { sampler, .. } => is_for_devices(&sampler.params),
        }
    }
}

/// Logits from which nothing can be chosen.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum SamplingError {
    /// The model computed no number: the rank cannot go on.
    #[error("choose a token: the model's logits hold {found}; its weights or the context are broken")]
    NotFinite {
        /// NaN or infinity.
        found: &'static str,
    },
    /// Nothing has a probability above zero: the sequence cannot go on.
    #[error("choose a token: the grammar and the penalties leave none of the vocabulary")]
    NothingLeft,
}

/// Parameters that no router of this release sends.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum ParamsError {
    /// A number outside its range.
    #[error("sample with {name} {found}: expected {expected}")]
    OutOfRange {
        /// The parameter.
        name: &'static str,
        /// Its value.
        found: f32,
        /// What it may be.
        expected: &'static str,
    },
    /// A bias for a token that does not exist.
    #[error("bias token {token}: the vocabulary has {vocabulary} tokens")]
    UnknownToken {
        /// The token.
        token: TokenId,
        /// The vocabulary's size.
        vocabulary: usize,
    },
    /// More rivals than there are tokens.
    #[error("report {found} top log-probabilities: the vocabulary has {vocabulary} tokens")]
    TooManyTop {
        /// How many were asked for.
        found: u32,
        /// The vocabulary's size.
        vocabulary: usize,
    },
}

/// Refuses parameters that would give no distribution, for a model of `vocabulary` tokens.
///
/// # Errors
/// Names the first parameter that is out of its range.
pub fn check(params: &SamplingParams, vocabulary: usize) -> Result<(), ParamsError> {
    let range = |name, found: f32, holds: fn(f32) -> bool, expected| match holds(found) {
        true => Ok(()),
        false => Err(ParamsError::OutOfRange { name, found, expected }),
    };
    let positive = |value: f32| value > 0.0 && value.is_finite();
    range("repetition_penalty", params.repetition_penalty, positive, "a number above 0")?;
    range("frequency_penalty", params.frequency_penalty, f32::is_finite, "a number")?;
    range("presence_penalty", params.presence_penalty, f32::is_finite, "a number")?;
    if let Some(Watermark { gamma, delta }) = params.watermark {
        range("watermark gamma", gamma, |gamma| gamma > 0.0 && gamma < 1.0, "a number between 0 and 1")?;
        range("watermark delta", delta, f32::is_finite, "a number")?;
    }
    for LogitBias { token, bias } in &params.logit_bias {
        range("logit_bias", *bias, |bias| !bias.is_nan() && bias < f32::INFINITY, "a number")?;
        if token.index() >= vocabulary {
            return Err(ParamsError::UnknownToken { token: *token, vocabulary });
        }
    }
    if params.top_logprobs as usize > vocabulary {
        return Err(ParamsError::TooManyTop { found: params.top_logprobs, vocabulary });
    }
    let Selection::Seeded(seeded) = &params.selection else { return Ok(()) };
    let Seeded { seed: _, choice: _, temperature, top_k: _, top_p, typical_p, min_p } = seeded;
    let share = |value: f32| value > 0.0 && value <= 1.0;
    range("temperature", *temperature, positive, "a number above 0")?;
    range("top_p", *top_p, share, "a number above 0, at most 1")?;
    range("typical_p", *typical_p, share, "a number above 0, at most 1")?;
    range("min_p", *min_p, |value| (0.0..=1.0).contains(&value), "a number from 0 to 1")
}

impl Sampler {
    /// Of a sequence whose first `prompt_tokens` of `context` are the prompt and whose others were emitted.
    pub fn new(params: SamplingParams, context: &[TokenId], prompt_tokens: Tokens) -> Self {
        let (prompt, output) = context.split_at(prompt_tokens.len().min(context.len()));
        let previous = prompt.last().copied();
        let mut sampler = Self { params, occurrences: Occurrences::default(), previous };
        if sampler.counts_tokens() {
            sampler.occurrences = Occurrences::of(prompt);
        }
        for token in output {
            sampler.on_emitted(*token);
        }
        sampler
    }

    /// Takes note of a token that was emitted.
    pub fn on_emitted(&mut self, token: TokenId) {
        self.previous = Some(token);
        if self.counts_tokens() {
            self.occurrences.on_emitted(token);
        }
    }

    /// How the tokens are chosen.
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// The token at output position `output_position`, from `logits` (vocabulary). `allowed` is a grammar's
    /// mask, one bit a token, least significant bit first.
    ///
    /// # Errors
    /// When the logits are not numbers or nothing is left to choose from.
    pub fn sample(
        &self,
        logits: &[f32],
        allowed: Option<&[u8]>,
        output_position: Tokens,
    ) -> Result<TokenLogprobs, SamplingError> {
        let row = chain::Row { logits, allowed, output_position, previous: self.previous };
        chain::run(&self.params, &self.occurrences, row)
    }

    /// Counting costs memory for every distinct token; without penalties nobody asks.
    fn counts_tokens(&self) -> bool {
        penalties::are_on(&self.params)
    }
}
