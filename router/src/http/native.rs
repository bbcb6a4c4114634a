//! The native dialect: requests in, responses out, as the reference server shapes them.

use lockstep_proto::{LogitBias, PromptLogprobs, TokenId, TokenLogprobs};
use serde::Serialize;
use serde_json::{Map, Value};

use super::excerpt::excerpt;
use super::fields::Fields;
use super::grammar;
use crate::engine::{FinishReason, GeneratedToken, StopText};
use crate::error::{ApiError, ErrorKind};
use crate::tokenizer::{SpecialTokens, Vocabulary};
use crate::validation::{
    EndOfSequence, PromptSource, SamplingRequest, StoppingRequest, TextRequest, WatermarkRequest,
};

/// Whether an answer repeats its prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FullText {
    Include,
    Omit,
}

/// A native request.
pub(super) struct GenerateRequest {
    pub(super) text: TextRequest,
    pub(super) full_text: FullText,
    pub(super) wants_details: bool,
}

impl GenerateRequest {
    /// Reads a body; `default` is what the route does where `return_full_text` is absent.
    pub(super) fn parse(body: &mut Fields, default: FullText) -> Result<Self, ApiError> {
        let inputs: String = body.require("inputs")?;
        let mut parameters = body.object("parameters")?;
        let sampling = sampling(&mut parameters)?;
        let choices = sampling.best_of.unwrap_or(1);
        let prompt_logprobs = match parameters.flag("decoder_input_details")? {
            true => PromptLogprobs::Return,
            false => PromptLogprobs::Skip,
        };
        let ends = if parameters.flag("ignore_eos")? { EndOfSequence::Ignore } else { EndOfSequence::Obey };
        let text = TextRequest {
            prompt: PromptSource::Text { text: inputs, special: SpecialTokens::Add },
            sampling,
            stopping: StoppingRequest {
                stop: parameters.take("stop")?.unwrap_or_default(),
                stop_text: StopText::Keep,
                max_new_tokens: parameters.take("max_new_tokens")?,
                least_new_tokens: 1,
                usual_new_tokens: None,
                end_tokens: ends,
            },
            top_n_tokens: parameters.take("top_n_tokens")?,
            prompt_logprobs,
            truncate: parameters.take("truncate")?,
            choices,
            grammar: grammar::native(&mut parameters)?,
            watermark: watermark(&mut parameters)?,
            cache_salt: None,
        };
        let full_text = match parameters.take::<bool>("return_full_text")? {
            Some(true) => FullText::Include,
            Some(false) => FullText::Omit,
            None => default,
        };
        let wants_details = parameters.flag("details")? || prompt_logprobs == PromptLogprobs::Return;
        unknown_adapter(parameters.take("adapter_id")?)?;
        parameters.refuse_rest()?;
        body.refuse_rest()?;
        Ok(Self { text, full_text, wants_details })
    }
}

fn sampling(parameters: &mut Fields) -> Result<SamplingRequest, ApiError> {
    Ok(SamplingRequest {
        do_sample: parameters.take("do_sample")?,
        temperature: parameters.take("temperature")?,
        top_k: parameters.take("top_k")?,
        top_p: parameters.take("top_p")?,
        typical_p: parameters.take("typical_p")?,
        min_p: parameters.take("min_p")?,
        repetition_penalty: parameters.take("repetition_penalty")?,
        frequency_penalty: parameters.take("frequency_penalty")?,
        presence_penalty: parameters.take("presence_penalty")?,
        logit_bias: logit_bias(parameters)?,
        seed: parameters.take("seed")?,
        best_of: parameters.take("best_of")?,
    })
}

/// `{"token id": bias}`.
pub(super) fn logit_bias(fields: &mut Fields) -> Result<Vec<LogitBias>, ApiError> {
    const NAME: &str = "logit_bias";
    let entries: Map<String, Value> = fields.take(NAME)?.unwrap_or_default();
    let entry = |(token, bias): (String, Value)| {
        let token = token.parse().ok().map(TokenId);
        let bias = bias.as_f64().map(|bias| bias as f32);
        let entry = token.zip(bias).map(|(token, bias)| LogitBias { token, bias });
        entry.ok_or_else(|| ApiError::invalid(NAME, "`logit_bias` must map token ids to numbers"))
    };
    entries.into_iter().map(entry).collect()
}

/// `true` is a mark of the server's strength; an object names its own `gamma`, `delta` or both.
pub(super) fn watermark(fields: &mut Fields) -> Result<Option<WatermarkRequest>, ApiError> {
    const NAME: &str = "watermark";
    match fields.take_value(NAME) {
        None | Some(Value::Bool(false)) => Ok(None),
        Some(Value::Bool(true)) => Ok(Some(WatermarkRequest::default())),
        Some(Value::Object(strength)) => {
            let mut strength = fields.inside(NAME, strength);
            let request =
                WatermarkRequest { gamma: strength.take("gamma")?, delta: strength.take("delta")? };
            strength.refuse_rest()?;
            Ok(Some(request))
        }
        Some(Value::Null | Value::Number(_) | Value::String(_) | Value::Array(_)) => {
            let message = "`watermark` must be a boolean, or an object of `gamma` and `delta`";
            Err(ApiError::invalid(NAME, message))
        }
    }
}

/// No adapter is loaded, and the base model never answers in an adapter's place.
pub(super) fn unknown_adapter(adapter: Option<String>) -> Result<(), ApiError> {
    let Some(adapter) = adapter else { return Ok(()) };
    let message = format!("The adapter {} is not loaded", excerpt(&adapter));
    Err(ApiError { param: Some("adapter_id"), ..ApiError::new(ErrorKind::NotFound, message) })
}

/// An answer that comes whole.
#[derive(Serialize)]
pub(super) struct GenerateResponse {
    pub(super) generated_text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) details: Option<Details>,
}

#[derive(Serialize)]
pub(super) struct Details {
    pub(super) finish_reason: &'static str,
    pub(super) generated_tokens: u32,
    pub(super) seed: Option<u64>,
    pub(super) prefill: Vec<PrefillToken>,
    pub(super) tokens: Vec<Token>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) top_tokens: Vec<Vec<Token>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) best_of_sequences: Vec<OtherSequence>,
}

/// One of the answers that `best_of` did not choose.
#[derive(Serialize)]
pub(super) struct OtherSequence {
    pub(super) generated_text: String,
    #[serde(flatten)]
    pub(super) details: Details,
}

/// A token of the prompt; the first has no log-probability.
#[derive(Serialize)]
pub(super) struct PrefillToken {
    id: u32,
    text: String,
    logprob: Option<f32>,
}

#[derive(Serialize)]
pub(super) struct Token {
    id: u32,
    text: String,
    logprob: Option<f32>,
    special: bool,
}

/// One event of a stream.
#[derive(Serialize)]
pub(super) struct StreamResponse {
    pub(super) index: u32,
    pub(super) token: Token,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) top_tokens: Vec<Token>,
    pub(super) generated_text: Option<String>,
    pub(super) details: Option<StreamDetails>,
}

#[derive(Serialize)]
pub(super) struct StreamDetails {
    pub(super) finish_reason: &'static str,
    pub(super) generated_tokens: u32,
    pub(super) seed: Option<u64>,
    pub(super) input_length: u32,
}

impl Token {
    pub(super) fn of(generated: &GeneratedToken) -> Self {
        let TokenLogprobs { token, logprob, .. } = &generated.token;
        Self {
            id: token.0,
            text: generated.text.clone(),
            logprob: finite(*logprob),
            special: generated.special,
        }
    }

    /// The most probable tokens of the same position.
    pub(super) fn top_of(generated: &GeneratedToken, vocabulary: &Vocabulary) -> Vec<Self> {
        let rival = |rival: &lockstep_proto::TokenLogprob| Self {
            id: rival.token.0,
            text: vocabulary.text(rival.token),
            logprob: finite(rival.logprob),
            special: vocabulary.is_special(rival.token),
        };
        generated.token.top.iter().map(rival).collect()
    }
}

/// The prompt's tokens with their log-probabilities: null for the first.
pub(super) fn prefill(
    prompt: &[TokenId],
    known: &[TokenLogprobs],
    vocabulary: &Vocabulary,
) -> Vec<PrefillToken> {
    let logprobs = std::iter::once(None).chain(known.iter().map(|token| finite(token.logprob)));
    let tokens = prompt.iter().zip(logprobs.chain(std::iter::repeat(None)));
    tokens
        .map(|(token, logprob)| PrefillToken { id: token.0, text: vocabulary.text(*token), logprob })
        .collect()
}

/// JSON has no infinity: a token of probability 0 has no log-probability.
fn finite(logprob: f32) -> Option<f32> {
    logprob.is_finite().then_some(logprob)
}

/// The native word for why an answer ended.
pub(super) fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Length => "length",
        FinishReason::EndOfSequence => "eos_token",
        FinishReason::StopSequence => "stop_sequence",
    }
}
