//! Chat requests in: string or list, null or absent, honoured or refused.

use lockstep_proto::PromptLogprobs;
use serde_json::{Map, Value};

use crate::chat::{Conversation, RESERVED_VARIABLES, parse_arguments};
use crate::engine::StopText;
use crate::error::ApiError;
use crate::http::fields::Fields;
use crate::http::grammar;
use crate::http::models::take_name;
use crate::http::native::{logit_bias, unknown_adapter, watermark};
use crate::validation::{
    EVERY_TOKEN, EndOfSequence, PromptSource, SamplingRequest, StoppingRequest, TextRequest,
};

use super::foreign::{refuse_foreign, refuse_other_endings};
use super::stream::Logprobs;
use super::tools::{ToolRequest, check_message};
use crate::model::Model;

/// Which chunks of a stream carry usage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::http) struct Usage {
    /// One more chunk at the end.
    pub(in crate::http) at_end: bool,
    /// Every chunk.
    pub(in crate::http) always: bool,
}

/// How an answer is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum Delivery {
    Whole,
    Stream(Usage),
}

/// A chat request.
pub(in crate::http) struct ChatRequest {
    pub(in crate::http) text: TextRequest,
    /// The name the client gave the model.
    pub(in crate::http) model: Option<String>,
    pub(in crate::http) logprobs: Logprobs,
    pub(in crate::http) delivery: Delivery,
    pub(in crate::http) tools: ToolRequest,
}

impl ChatRequest {
    pub(in crate::http) fn parse(body: &mut Fields) -> Result<Self, ApiError> {
        let conversation = conversation(body)?;
        refuse_other_endings(body, &conversation)?;
        let logprobs = if body.flag("logprobs")? { Logprobs::Report } else { Logprobs::Omit };
        let top_logprobs: Option<u32> = body.take("top_logprobs")?;
        if logprobs == Logprobs::Omit && top_logprobs.is_some_and(|top| top > 0) {
            return Err(ApiError::invalid("top_logprobs", "`top_logprobs` needs `logprobs` to be true"));
        }
        let ends = if body.flag("ignore_eos")? { EndOfSequence::Ignore } else { EndOfSequence::Obey };
        let text = TextRequest {
            prompt: PromptSource::Chat(conversation),
            sampling: sampling(body)?,
            stopping: StoppingRequest {
                stop: string_or_list(body, "stop")?,
                stop_text: StopText::Cut,
                max_new_tokens: max_tokens(body)?,
                least_new_tokens: 1,
                usual_new_tokens: None,
                end_tokens: ends,
            },
            top_n_tokens: top_logprobs,
            prompt_logprobs: PromptLogprobs::Skip,
            truncate: None,
            choices: body.take("n")?.unwrap_or(1),
            grammar: grammar::openai(body)?,
            watermark: watermark(body)?,
            cache_salt: cache_salt(body)?,
        };
        let tools = ToolRequest::parse(body)?;
        refuse_what_tools_exclude(&text, &tools)?;
        let (model, delivery) = (take_name(body)?, delivery(body)?);
        let request = Self { text, model, logprobs, delivery, tools };
        refuse_what_is_not_served(body)?;
        refuse_foreign(body, &request.text.stopping)?;
        body.pass_over(&[
            "user",
            "metadata",
            "safety_identifier",
            "prompt_cache_key",
            "parallel_tool_calls",
        ]);
        body.refuse_rest()?;
        Ok(request)
    }

    /// Completes what depends on the model: what its template is given, and what answers are held to.
    pub(in crate::http) fn fit(&mut self, model: &Model) -> Result<(), ApiError> {
        if let PromptSource::Chat(conversation) = &mut self.text.prompt {
            self.tools.tell(conversation, &model.calls)?;
        }
        if let Some(grammar) = self.tools.grammar(&model.calls) {
            self.text.grammar = Some(grammar);
        }
        self.text.sampling.fill(&model.sampling_defaults);
        Ok(())
    }
}

fn refuse_what_tools_exclude(text: &TextRequest, tools: &ToolRequest) -> Result<(), ApiError> {
    if tools.rules.is_none() {
        return Ok(());
    }
    if text.grammar.is_some() {
        let message = "`response_format` cannot be set together with `tools`";
        return Err(ApiError::invalid("response_format", message));
    }
    if text.stopping.end_tokens == EndOfSequence::Ignore {
        let message =
            "`ignore_eos` cannot be set together with `tools`: the end of a call is the end of the answer";
        return Err(ApiError::invalid("ignore_eos", message));
    }
    Ok(())
}

/// `temperature: 0` is greedy; otherwise chat samples, as OpenAI's does.
pub(super) fn sampling(body: &mut Fields) -> Result<SamplingRequest, ApiError> {
    let temperature: Option<f32> = body.take("temperature")?;
    let is_greedy = temperature == Some(0.0);
    Ok(SamplingRequest {
        do_sample: Some(!is_greedy),
        temperature: temperature.filter(|_| !is_greedy),
        top_k: top_k(body)?,
        top_p: body.take("top_p")?,
        typical_p: body.take("typical_p")?,
        min_p: body.take("min_p")?,
        repetition_penalty: body.take("repetition_penalty")?,
        frequency_penalty: body.take("frequency_penalty")?,
        presence_penalty: body.take("presence_penalty")?,
        logit_bias: logit_bias(body)?,
        seed: body.take("seed")?,
        best_of: None,
    })
}

/// Other servers' 0 and -1 are off, whatever the model's authors would have.
fn top_k(body: &mut Fields) -> Result<Option<i64>, ApiError> {
    let top_k = body.take("top_k")?;
    Ok(top_k.map(|k| if matches!(k, -1 | 0) { EVERY_TOKEN } else { k }))
}

/// Whom the prompt's keys and values are kept for, beside the key.
pub(super) fn cache_salt(body: &mut Fields) -> Result<Option<String>, ApiError> {
    const NAME: &str = "cache_salt";
    let salt: Option<String> = body.take(NAME)?;
    match salt.as_deref() {
        Some("") => Err(ApiError::invalid(NAME, format_args!("`{NAME}` cannot be empty"))),
        Some(_) | None => Ok(salt),
    }
}

fn max_tokens(body: &mut Fields) -> Result<Option<u32>, ApiError> {
    let old: Option<u32> = body.take("max_tokens")?;
    let new: Option<u32> = body.take("max_completion_tokens")?;
    if old.is_some() && new.is_some() && old != new {
        let message = "`max_tokens` and `max_completion_tokens` must be equal when both are set";
        return Err(ApiError::invalid("max_tokens", message));
    }
    Ok(new.or(old))
}

pub(super) fn delivery(body: &mut Fields) -> Result<Delivery, ApiError> {
    let mut options = body.object("stream_options")?;
    let usage =
        Usage { at_end: options.flag("include_usage")?, always: options.flag("continuous_usage_stats")? };
    // Whether events are padded against eavesdroppers: ours never are.
    options.refuse_unless("include_obfuscation", |value| value == &Value::Bool(false))?;
    options.refuse_rest()?;
    Ok(if body.flag("stream")? { Delivery::Stream(usage) } else { Delivery::Whole })
}

pub(super) fn string_or_list(body: &mut Fields, name: &'static str) -> Result<Vec<String>, ApiError> {
    match body.take_value(name) {
        None => Ok(Vec::new()),
        Some(Value::String(one)) => Ok(vec![one]),
        Some(list) => serde_json::from_value(list).map_err(|_| {
            ApiError::invalid(name, format_args!("`{name}` must be a string or a list of strings"))
        }),
    }
}

/// Messages go to the template as they are, but for their content: parts of text become one text.
fn conversation(body: &mut Fields) -> Result<Conversation, ApiError> {
    let messages: Vec<Map<String, Value>> = body.require("messages")?;
    if messages.is_empty() {
        return Err(ApiError::invalid("messages", "`messages` cannot be empty"));
    }
    let messages = messages.into_iter().map(message).collect::<Result<_, _>>()?;
    let documents = body.take("documents")?.unwrap_or_default();
    Ok(Conversation {
        messages,
        documents,
        variables: template_variables(body)?,
        ..Conversation::default()
    })
}

/// Switches of the model's template, such as `enable_thinking`.
fn template_variables(body: &mut Fields) -> Result<Map<String, Value>, ApiError> {
    const NAME: &str = "chat_template_kwargs";
    let variables: Map<String, Value> = body.take(NAME)?.unwrap_or_default();
    match RESERVED_VARIABLES.into_iter().find(|name| variables.contains_key(*name)) {
        None => Ok(variables),
        Some(reserved) => {
            Err(ApiError::invalid(NAME, format_args!("`{NAME}` cannot replace `{reserved}`")))
        }
    }
}

fn message(mut message: Map<String, Value>) -> Result<Value, ApiError> {
    if !message.get("role").is_some_and(Value::is_string) {
        return Err(ApiError::invalid("messages", "each of `messages` needs a `role`"));
    }
    let content = match message.remove("content") {
        None | Some(Value::Null) => Value::from(""),
        Some(Value::String(text)) => Value::String(text),
        Some(Value::Array(parts)) => Value::String(parts.iter().map(part).collect::<Result<_, _>>()?),
        Some(Value::Bool(_) | Value::Number(_) | Value::Object(_)) => {
            let message = "`content` of each of `messages` must be a text or a list of parts";
            return Err(ApiError::invalid("messages", message));
        }
    };
    message.insert("content".to_owned(), content);
    check_message(&message)?;
    parse_arguments(&mut message);
    Ok(Value::Object(message))
}

fn part(part: &Value) -> Result<&str, ApiError> {
    let kind = part.get("type").and_then(Value::as_str).unwrap_or("untyped");
    let text = part.get("text").and_then(Value::as_str).filter(|_| kind == "text");
    text.ok_or_else(|| ApiError::invalid("messages", format_args!("{kind} modality is not supported")))
}

/// What is refused unless it changes nothing. `user`, `metadata`, `safety_identifier` and
/// `prompt_cache_key` are marks for the operator's side: no answer depends on them.
fn refuse_what_is_not_served(body: &mut Fields) -> Result<(), ApiError> {
    fn is_empty(value: &Value) -> bool {
        value.as_array().is_some_and(Vec::is_empty)
    }
    fn is_one_of(value: &Value, words: &[&str]) -> bool {
        value.as_str().is_some_and(|word| words.contains(&word))
    }
    body.refuse_unless("best_of", |value| value.as_u64() == Some(1))?;
    body.refuse_unless("functions", is_empty)?;
    body.refuse_unless("function_call", |value| is_one_of(value, &["none", "auto"]))?;
    for name in ["audio", "prediction", "web_search_options", "reasoning_effort"] {
        body.refuse_unless(name, Value::is_null)?;
    }
    body.refuse_unless("modalities", |value| value == &Value::from(vec!["text"]))?;
    body.refuse_unless("verbosity", |value| is_one_of(value, &["medium"]))?;
    body.refuse_unless("service_tier", |value| is_one_of(value, &["auto", "default"]))?;
    body.refuse_unless("store", |value| value == &Value::Bool(false))?;
    body.refuse_unless("echo", |value| value == &Value::Bool(false))?;
    unknown_adapter(body.take("adapter_id")?)
}

/// The same error with the names this dialect has for its fields.
pub(in crate::http) fn in_openai_words(error: ApiError) -> ApiError {
    let words = [
        ("inputs", "messages"),
        ("max_new_tokens", "max_tokens"),
        ("top_n_tokens", "top_logprobs"),
        ("grammar", "response_format"),
    ];
    in_words(error, &words)
}

/// The same error with other names for the fields it speaks of.
pub(super) fn in_words(mut error: ApiError, words: &[(&str, &'static str)]) -> ApiError {
    for (native, ours) in words {
        error.message = error.message.replace(&format!("`{native}`"), &format!("`{ours}`"));
        if error.param == Some(native) {
            error.param = Some(ours);
        }
    }
    error
}
