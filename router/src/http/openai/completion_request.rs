//! Completion requests in: a prompt or a list of them, as texts or as token ids.

use lockstep_proto::{PromptLogprobs, TokenId, Tokens};
use serde_json::Value;

use super::super::grammar;
use super::foreign::refuse_foreign;
use super::request::{Delivery, cache_salt, delivery, in_words, sampling, string_or_list};
use crate::engine::StopText;
use crate::error::{ApiError, ErrorKind};
use crate::http::fields::Fields;
use crate::http::models::take_name;
use crate::http::native::{unknown_adapter, watermark};
use crate::tokenizer::SpecialTokens;
use crate::validation::{EndOfSequence, PromptSource, StoppingRequest, TextRequest};

/// Tokens of output where none are asked for, as OpenAI's interface says.
const USUAL_NEW_TOKENS: Tokens = Tokens(16);

/// Whether answers begin with their prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum Echo {
    Prompt,
    Nothing,
}

/// A completion request.
pub(in crate::http) struct CompletionRequest {
    /// One for each prompt, at least one.
    pub(in crate::http) texts: Vec<TextRequest>,
    /// The name the client gave the model.
    pub(in crate::http) model: Option<String>,
    pub(in crate::http) delivery: Delivery,
    pub(in crate::http) echo: Echo,
    /// Whether log-probabilities are reported.
    pub(in crate::http) logprobs: bool,
    /// Answers to each prompt: the best of those that are computed.
    pub(in crate::http) answers: u32,
}

/// How many prompts and candidates one request may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) struct CompletionLimits {
    pub(in crate::http) prompts: usize,
    pub(in crate::http) best_of: u32,
}

impl CompletionRequest {
    pub(in crate::http) fn parse(body: &mut Fields, limits: CompletionLimits) -> Result<Self, ApiError> {
        let prompts = prompts(body, limits.prompts)?;
        let echo = if body.flag("echo")? { Echo::Prompt } else { Echo::Nothing };
        let top_logprobs: Option<u32> = body.take("logprobs")?;
        let delivery = delivery(body)?;
        let answers = body.take("n")?.unwrap_or(1);
        let choices = candidates(body, answers, (delivery, limits.best_of))?;
        let ends = if body.flag("ignore_eos")? { EndOfSequence::Ignore } else { EndOfSequence::Obey };
        let first = TextRequest {
            prompt: PromptSource::Tokens(Vec::new()),
            sampling: sampling(body)?,
            stopping: StoppingRequest {
                stop: string_or_list(body, "stop")?,
                stop_text: StopText::Cut,
                max_new_tokens: body.take("max_tokens")?,
                least_new_tokens: 0,
                usual_new_tokens: Some(USUAL_NEW_TOKENS),
                end_tokens: ends,
            },
            top_n_tokens: top_logprobs,
            prompt_logprobs: match (echo, top_logprobs) {
                (Echo::Prompt, Some(_)) => PromptLogprobs::Return,
                (Echo::Prompt, None) | (Echo::Nothing, _) => PromptLogprobs::Skip,
            },
            truncate: None,
            choices,
            grammar: grammar::openai(body)?,
            watermark: watermark(body)?,
            cache_salt: cache_salt(body)?,
        };
        refuse_what_is_not_served(body)?;
        refuse_foreign(body, &first.stopping)?;
        let model = take_name(body)?;
        body.pass_over(&["user"]);
        body.refuse_rest()?;
        let texts = prompts.into_iter().map(|prompt| TextRequest { prompt, ..first.clone() }).collect();
        let logprobs = top_logprobs.is_some();
        Ok(Self { texts, model, delivery, echo, logprobs, answers })
    }
}

/// A text, texts, token ids or lists of them.
fn prompts(body: &mut Fields, most: usize) -> Result<Vec<PromptSource>, ApiError> {
    const NAME: &str = "prompt";
    let prompts = match body.require(NAME)? {
        Value::String(text) => vec![of_text(text)],
        Value::Array(items) if items.first().is_some_and(Value::is_number) => {
            vec![of_ids(Value::Array(items))?]
        }
        Value::Array(items) => items.into_iter().map(one_prompt).collect::<Result<_, _>>()?,
        other @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_)) => {
            vec![one_prompt(other)?]
        }
    };
    if prompts.is_empty() {
        return Err(ApiError::invalid(NAME, "`prompt` cannot be empty"));
    }
    if prompts.len() > most {
        let message = format!("Number of prompts exceeds the maximum allowed batch size of {most}");
        return Err(ApiError { param: Some(NAME), ..ApiError::new(ErrorKind::BatchSize, message) });
    }
    Ok(prompts)
}

fn one_prompt(value: Value) -> Result<PromptSource, ApiError> {
    match value {
        Value::String(text) => Ok(of_text(text)),
        ids @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
            of_ids(ids)
        }
    }
}

fn of_text(text: String) -> PromptSource {
    PromptSource::Text { text, special: SpecialTokens::Add }
}

fn of_ids(value: Value) -> Result<PromptSource, ApiError> {
    let ids: Option<Vec<u32>> = serde_json::from_value(value).ok();
    let message = "`prompt` must be a text, a list of texts, a list of token ids or a list of such lists";
    let ids = ids.ok_or_else(|| ApiError::invalid("prompt", message))?;
    Ok(PromptSource::Tokens(ids.into_iter().map(TokenId).collect()))
}

/// How many answers are computed for the `answers` that are sent.
fn candidates(
    body: &mut Fields,
    answers: u32,
    (delivery, max_best_of): (Delivery, u32),
) -> Result<u32, ApiError> {
    const NAME: &str = "best_of";
    // 1 is what clients send that mean nothing by it.
    let Some(best_of) = body.take::<u32>(NAME)?.filter(|best_of| *best_of != 1) else { return Ok(answers) };
    if best_of < answers {
        let message = format!("`best_of` must be >= `n`. Given: {best_of} and {answers}");
        return Err(ApiError::invalid(NAME, message));
    }
    let most = max_best_of.max(answers);
    if best_of == 0 || best_of > most {
        let message = format!("`best_of` must be > 0 and <= {most}. Given: {best_of}");
        return Err(ApiError::invalid(NAME, message));
    }
    if best_of > answers && delivery != Delivery::Whole {
        let message = "`best_of` > `n` is not supported when streaming tokens";
        return Err(ApiError::invalid(NAME, message));
    }
    Ok(best_of)
}

/// What is refused unless it changes nothing. `user` is a mark for the operator's side: no answer depends on it.
fn refuse_what_is_not_served(body: &mut Fields) -> Result<(), ApiError> {
    let suffix: Option<String> = body.take("suffix")?;
    if suffix.is_some_and(|suffix| !suffix.is_empty()) {
        let message = "Suffix is not supported and can be removed from the request.";
        return Err(ApiError { param: Some("suffix"), ..ApiError::new(ErrorKind::Suffix, message) });
    }
    unknown_adapter(body.take("adapter_id")?)
}

/// The same error with the names this dialect has for its fields.
pub(in crate::http) fn in_completion_words(error: ApiError) -> ApiError {
    let words = [
        ("inputs", "prompt"),
        ("max_new_tokens", "max_tokens"),
        ("top_n_tokens", "logprobs"),
        ("grammar", "response_format"),
    ];
    in_words(error, &words)
}
