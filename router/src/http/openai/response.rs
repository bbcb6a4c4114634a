//! Chat responses out.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::calls::{Said, ToolCall, ToolCallDelta};
use crate::engine::FinishReason;
use crate::journal::Origin;

/// What every answer and chunk says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::http) struct Envelope {
    pub(in crate::http) id: String,
    pub(in crate::http) created: u64,
    pub(in crate::http) model: String,
    pub(in crate::http) system_fingerprint: String,
}

impl Envelope {
    /// Of an answer that begins now, or at its origin; `kind` is what its id begins with.
    pub(in crate::http) fn new(
        kind: &str,
        model: String,
        system_fingerprint: String,
        origin: Option<&Origin>,
    ) -> Self {
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let (answer, created) = match origin {
            Some(origin) => (origin.answer, origin.created),
            None => (uuid::Uuid::new_v4(), now()),
        };
        Self { id: format!("{kind}-{}", answer.simple()), created, model, system_fingerprint }
    }
}

/// Tokens that were counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(in crate::http) struct Usage {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u32,
    prompt_tokens_details: PromptTokensDetails,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct PromptTokensDetails {
    cached_tokens: u32,
}

impl Usage {
    pub(in crate::http) fn new(prompt_tokens: u32, cached_tokens: u32, completion_tokens: u32) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens.saturating_add(completion_tokens),
            prompt_tokens_details: PromptTokensDetails { cached_tokens },
        }
    }
}

/// An answer that comes whole.
#[derive(Serialize)]
pub(in crate::http) struct ChatCompletion {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    system_fingerprint: String,
    choices: Vec<Choice>,
    usage: Usage,
}

/// One of the answers.
#[derive(Serialize)]
pub(in crate::http) struct Choice {
    index: u32,
    message: Message,
    logprobs: Option<ChoiceLogprobs>,
    finish_reason: &'static str,
}

#[derive(Serialize)]
struct Message {
    role: &'static str,
    /// Null where there are calls and no text.
    content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall>,
}

/// The log-probabilities of an answer or a chunk.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(in crate::http) struct ChoiceLogprobs {
    pub(in crate::http) content: Vec<LogprobEntry>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(in crate::http) struct LogprobEntry {
    #[serde(flatten)]
    pub(in crate::http) token: TokenLogprob,
    pub(in crate::http) top_logprobs: Vec<TokenLogprob>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(in crate::http) struct TokenLogprob {
    pub(in crate::http) token: String,
    pub(in crate::http) logprob: f32,
    pub(in crate::http) bytes: Vec<u8>,
}

impl ChatCompletion {
    pub(in crate::http) fn new(envelope: Envelope, choices: Vec<Choice>, usage: Usage) -> Self {
        let Envelope { id, created, model, system_fingerprint } = envelope;
        Self { id, object: "chat.completion", created, model, system_fingerprint, choices, usage }
    }
}

impl Choice {
    pub(in crate::http) fn new(index: u32, said: Said, logprobs: Option<ChoiceLogprobs>) -> Self {
        let Said { content, calls, finish_reason } = said;
        let message = Message { role: "assistant", content, tool_calls: calls };
        Self { index, message, logprobs, finish_reason }
    }
}

/// A piece of a streamed answer.
#[derive(Debug, PartialEq, Serialize)]
pub(in crate::http) struct Chunk {
    pub(super) id: String,
    pub(super) object: &'static str,
    pub(super) created: u64,
    pub(super) model: String,
    pub(super) system_fingerprint: String,
    pub(super) choices: Vec<ChunkChoice>,
    /// Absent unless the client asked for usage; null in chunks that have none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) usage: Option<Option<Usage>>,
}

#[derive(Debug, PartialEq, Serialize)]
pub(super) struct ChunkChoice {
    pub(super) index: u32,
    pub(super) delta: Delta,
    pub(super) logprobs: Option<ChoiceLogprobs>,
    pub(super) finish_reason: Option<&'static str>,
}

impl ChunkChoice {
    pub(super) fn new(
        choice: usize,
        delta: Delta,
        logprobs: Option<ChoiceLogprobs>,
        finish_reason: Option<&'static str>,
    ) -> Self {
        Self { index: u32::try_from(choice).unwrap_or(u32::MAX), delta, logprobs, finish_reason }
    }
}

#[derive(Debug, Default, PartialEq, Serialize)]
pub(super) struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) tool_calls: Vec<ToolCallDelta>,
}

impl Delta {
    pub(super) fn of_content(text: String) -> Self {
        Self { content: Some(text), ..Self::default() }
    }

    pub(super) fn of_call(call: ToolCallDelta) -> Self {
        Self { tool_calls: vec![call], ..Self::default() }
    }
}

/// OpenAI's word for why an answer of text ended.
pub(super) fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Length => "length",
        FinishReason::EndOfSequence | FinishReason::StopSequence => "stop",
    }
}
