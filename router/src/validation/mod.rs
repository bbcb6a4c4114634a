//! What was asked → what will be done. The first broken rule, in the order clients know, is the answer.

mod defaults;
mod limits;
mod sampling;
mod watermark;

use lockstep_proto::{PromptLogprobs, SamplingParams, Seeded, Selection, TokenId, Tokens};
use lockstep_scheduler::{CacheSalt, RunAhead, Service, Submission};

use crate::chat::Conversation;
use crate::engine::{Assignment, StopStrings, StopText};
use crate::error::ApiError;
use crate::grammar::Grammar;
use crate::tokenizer::SpecialTokens;

pub use defaults::SamplingDefaults;
pub use limits::{Lowered, RequestLimits, UNLIMITED};
pub use sampling::{EVERY_TOKEN, SamplingRequest};
pub use watermark::{OutOfRange, WatermarkRequest, check_watermark};

/// Where the prompt comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum PromptSource {
    /// A text.
    Text {
        /// The text.
        text: String,
        /// Whether the tokenizer's own special tokens go around it.
        special: SpecialTokens,
    },
    /// Its tokens.
    Tokens(Vec<TokenId>),
    /// A conversation for the chat template.
    Chat(Conversation),
}

/// A text of so many bytes is tokenized in less time than another thread takes to wake up for it and back.
const SHORT_TEXT_BYTES: usize = 256;

impl PromptSource {
    /// Whether it is tokens in less time than another thread takes to wake up.
    pub fn is_short(&self) -> bool {
        match self {
            Self::Text { text, .. } => text.len() <= SHORT_TEXT_BYTES,
            Self::Tokens(_) | Self::Chat(_) => false,
        }
    }
}

/// What ends an answer, as asked.
#[derive(Clone, Debug, PartialEq)]
pub struct StoppingRequest {
    /// Any of these texts.
    pub stop: Vec<String>,
    /// What becomes of the text that matched.
    pub stop_text: StopText,
    /// This many tokens; absent means as many as fit.
    pub max_new_tokens: Option<u32>,
    /// The least `max_new_tokens` may be: 1, or 0 where a prompt alone can be an answer.
    pub least_new_tokens: u32,
    /// At most this many where `max_new_tokens` is absent; `None` where as many as fit are usual.
    pub usual_new_tokens: Option<Tokens>,
    /// Whether end-of-sequence tokens end it.
    pub end_tokens: EndOfSequence,
}

/// Whether end-of-sequence tokens end an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndOfSequence {
    /// They do.
    Obey,
    /// They are tokens like others.
    Ignore,
}

/// A request for text as any route understands it, unchecked.
#[derive(Clone, Debug, PartialEq)]
pub struct TextRequest {
    /// What to continue.
    pub prompt: PromptSource,
    /// How tokens are chosen.
    pub sampling: SamplingRequest,
    /// What ends the answer.
    pub stopping: StoppingRequest,
    /// How many of the most probable tokens to report.
    pub top_n_tokens: Option<u32>,
    /// Whether log-probabilities of the prompt are wanted.
    pub prompt_logprobs: PromptLogprobs,
    /// Keep only this many of the prompt's last tokens.
    pub truncate: Option<u32>,
    /// How many answers to compute, at least one. Each is a sequence of its own.
    pub choices: u32,
    /// What the answer's text must be.
    pub grammar: Option<Grammar>,
    /// A mark that the answer's text is generated.
    pub watermark: Option<WatermarkRequest>,
    /// Keeps its keys and values from requests that name another.
    pub cache_salt: Option<String>,
}

/// A request whose parameters keep the rules; its prompt is not tokenized yet.
#[derive(Clone, Debug)]
pub struct CheckedRequest {
    /// What to continue.
    pub prompt: PromptSource,
    rest: Rest,
}

#[derive(Clone, Debug)]
struct Rest {
    sampling: sampling::CheckedSampling,
    stopping: StoppingRequest,
    prompt_logprobs: PromptLogprobs,
    truncate: Option<u32>,
    choices: u32,
    grammar: Option<Grammar>,
}

/// A prompt, tokenized.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// Its text.
    pub text: String,
    /// Its tokens.
    pub tokens: Vec<TokenId>,
}

/// A request that keeps every rule.
#[derive(Clone, Debug)]
pub struct ValidRequest {
    /// The prompt's tokens that are kept.
    pub prompt_tokens: Vec<TokenId>,
    /// What is computed and watched: a sequence for each choice.
    pub assignments: Vec<Assignment>,
    /// The prompt's text.
    pub prompt_text: String,
    /// The seed, when sampling.
    pub seed: Option<u64>,
    /// What the answer's text must be; to be compiled into the assignment.
    pub grammar: Option<Grammar>,
}

impl TextRequest {
    /// Checks everything that needs no tokenizer.
    ///
    /// # Errors
    /// The first broken rule.
    pub fn check(self, limits: &RequestLimits) -> Result<CheckedRequest, ApiError> {
        self.sampling.check_ranges(limits.vocabulary_size)?;
        if self.stopping.max_new_tokens.is_some_and(|tokens| tokens < self.stopping.least_new_tokens) {
            return Err(ApiError::invalid("max_new_tokens", "`max_new_tokens` must be strictly positive"));
        }
        check_stops(&self.stopping.stop, limits)?;
        let top_n_tokens = self.top_n_tokens.unwrap_or(0);
        if top_n_tokens > limits.max_top_n_tokens {
            let max = limits.max_top_n_tokens;
            let message = format!("`top_n_tokens` must be >= 0 and <= {max}. Given: {top_n_tokens}");
            return Err(ApiError::invalid("top_n_tokens", message));
        }
        if let PromptSource::Text { text, .. } = &self.prompt
            && text.is_empty()
        {
            return Err(ApiError::invalid("inputs", "`inputs` cannot be empty"));
        }
        let max_input = limits.max_input_tokens.0;
        if let Some(truncate) = self.truncate.filter(|truncate| *truncate == 0 || *truncate > max_input) {
            let message = format!(
                "`truncate` must be strictly positive and less than {max_input}. Given: {truncate}"
            );
            return Err(ApiError::invalid("truncate", message));
        }
        if self.grammar.is_some() && self.stopping.end_tokens == EndOfSequence::Ignore {
            let message =
                "`ignore_eos` cannot be set together with `grammar`, whose end is an end-of-sequence token";
            return Err(ApiError::invalid("ignore_eos", message));
        }
        let mut sampling = self.sampling.check(top_n_tokens)?;
        sampling.params.watermark =
            self.watermark.map(|asked| asked.check(limits.watermark)).transpose()?;
        let Self { prompt, stopping, prompt_logprobs, truncate, choices, grammar, .. } = self;
        let rest = Rest { sampling, stopping, prompt_logprobs, truncate, choices, grammar };
        Ok(CheckedRequest { prompt, rest })
    }
}

impl CheckedRequest {
    /// Takes the prompt out, to be tokenized elsewhere.
    pub fn split(self) -> (PromptSource, AwaitingPrompt) {
        (self.prompt, AwaitingPrompt(self.rest))
    }
}

/// A checked request without its prompt.
#[derive(Clone, Debug)]
pub struct AwaitingPrompt(Rest);

impl AwaitingPrompt {
    /// Checks what needs the prompt's tokens: lengths and ids.
    ///
    /// # Errors
    /// The first broken rule.
    pub fn with_prompt(
        self,
        prompt: Prompt,
        limits: &RequestLimits,
        end_tokens: &[TokenId],
    ) -> Result<ValidRequest, ApiError> {
        let Rest { sampling, stopping, prompt_logprobs, truncate, choices, grammar } = self.0;
        let mut tokens = prompt.tokens;
        if let Some(keep) = truncate {
            tokens.drain(..tokens.len().saturating_sub(keep as usize));
        }
        if tokens.is_empty() {
            return Err(ApiError::invalid("inputs", "`inputs` cannot be empty"));
        }
        let input = Tokens::of_len(tokens.len());
        let max_new_tokens = match stopping.usual_new_tokens {
            Some(usual) if stopping.max_new_tokens.is_none() => {
                max_new_tokens(input, None, limits)?.min(usual)
            }
            Some(_) | None => max_new_tokens(input, stopping.max_new_tokens, limits)?,
        };
        check_known(&tokens, limits.vocabulary_size)?;
        let stop_tokens = match stopping.end_tokens {
            EndOfSequence::Obey => end_tokens.to_vec(),
            EndOfSequence::Ignore => Vec::new(),
        };
        let assignment = |choice| Assignment {
            submission: Submission {
                prompt: tokens.clone(),
                forced: Vec::new(),
                sampling: of_choice(&sampling.params, choice),
                max_new_tokens,
                stop_tokens: stop_tokens.clone(),
                // The prompt is the same for all of them.
                prompt_logprobs: if choice == 0 { prompt_logprobs } else { PromptLogprobs::Skip },
                cache_salt: CacheSalt(0),
                run_ahead: RunAhead::Allowed,
                service: Service::default(),
            },
            stops: StopStrings::new(&stopping.stop, stopping.stop_text),
            grammar: None,
            trace: None,
        };
        let assignments = (0..choices).map(assignment).collect();
        Ok(ValidRequest {
            prompt_tokens: tokens,
            assignments,
            prompt_text: prompt.text,
            seed: sampling.seed,
            grammar,
        })
    }
}

/// Choices of a request draw from one seed, each its own numbers, whatever their count.
fn of_choice(params: &SamplingParams, choice: u32) -> SamplingParams {
    let selection = match &params.selection {
        Selection::Greedy => Selection::Greedy,
        Selection::Seeded(seeded) => Selection::Seeded(Seeded { choice, ..seeded.clone() }),
    };
    SamplingParams { selection, ..params.clone() }
}

/// The whole request is checked once: it keeps its place for its life.
fn max_new_tokens(input: Tokens, asked: Option<u32>, limits: &RequestLimits) -> Result<Tokens, ApiError> {
    let (max_total, max_input) = (limits.max_total_tokens.0, limits.max_input_tokens.0);
    let too_long = || {
        let message = format!("`inputs` must have less than {max_input} tokens. Given: {input}");
        ApiError::invalid("inputs", message)
    };
    let Some(asked) = asked else {
        if input.0 > max_input || input.0 >= max_total {
            return Err(too_long());
        }
        let left = limits.max_total_tokens.saturating_sub(input);
        return Ok(left.min(limits.default_max_new_tokens));
    };
    if input.0.checked_add(asked).is_none_or(|total| total > max_total) {
        let message = format!(
            "`inputs` tokens + `max_new_tokens` must be <= {max_total}. Given: {input} `inputs` tokens and {asked} \
             `max_new_tokens`"
        );
        return Err(ApiError::invalid("max_new_tokens", message));
    }
    if input.0 > max_input {
        return Err(too_long());
    }
    Ok(Tokens(asked))
}

/// An id the model does not know would fail the step it is in, and with it the whole group.
fn check_known(tokens: &[TokenId], vocabulary_size: u32) -> Result<(), ApiError> {
    match tokens.iter().find(|token| token.0 >= vocabulary_size) {
        None => Ok(()),
        Some(unknown) => {
            let message =
                format!("`inputs` has token {unknown}, the model's ids end before {vocabulary_size}");
            Err(ApiError::invalid("inputs", message))
        }
    }
}

fn check_stops(stops: &[String], limits: &RequestLimits) -> Result<(), ApiError> {
    let (max, given) = (limits.max_stop_sequences, stops.len());
    if given > max {
        let message = format!("`stop` supports up to {max} stop sequences. Given: {given}");
        return Err(ApiError::invalid("stop", message));
    }
    if stops.iter().any(String::is_empty) {
        return Err(ApiError::invalid("stop", "`stop` sequences cannot be empty"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
