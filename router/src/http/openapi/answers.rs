//! What answers, events and errors consist of.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::schema::{Field, always, answer, constant, list, named, named_or_null, optional};
use crate::error::{ALL_KINDS, ErrorKind};

/// Every schema of answers by its name.
pub(super) fn schemas() -> Map<String, Value> {
    let schemas = native().into_iter().chain(openai()).chain(small());
    schemas.map(|(name, schema)| (name.to_owned(), schema)).collect()
}

/// The answers to what a client did wrong or the server cannot do, by status; from the one table of errors.
pub(super) fn errors() -> Map<String, Value> {
    let mut by_status: BTreeMap<u16, Vec<ErrorKind>> = BTreeMap::new();
    for kind in ALL_KINDS {
        by_status.entry(kind.status()).or_default().push(kind);
    }
    let error = |(status, kinds): (u16, Vec<ErrorKind>)| {
        let types: Vec<String> = kinds.iter().map(|kind| format!("`{}`", kind.error_type())).collect();
        let mut headers = json!({"x-request-id": {"$ref": "#/components/headers/x-request-id"}});
        if kinds.iter().any(|kind| is_temporary(*kind)) {
            headers["retry-after"] = json!({"$ref": "#/components/headers/retry-after"});
        }
        if kinds.contains(&ErrorKind::Unauthorized) {
            headers["www-authenticate"] = json!({"$ref": "#/components/headers/www-authenticate"});
        }
        let body = json!({"anyOf": [named("Error"), named("OpenAiError")]});
        let response = json!({
            "description": format!("`error_type` is {}", types.join(", ")),
            "headers": headers,
            "content": {"application/json": {"schema": body}},
        });
        (status.to_string(), response)
    };
    by_status.into_iter().map(error).collect()
}

fn is_temporary(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Overloaded | ErrorKind::Loading | ErrorKind::GroupLost | ErrorKind::Draining)
}

fn native() -> Vec<Field> {
    let reason = json!({"type": "string", "enum": ["length", "eos_token", "stop_sequence"]});
    let seed = || json!({"type": ["integer", "null"], "description": "Null where nothing was drawn"});
    let details = || -> Vec<Field> {
        vec![
            ("finish_reason", reason.clone()),
            ("generated_tokens", always("integer", "")),
            ("seed", seed()),
            ("prefill", list("The prompt, with decoder_input_details", named("PrefillToken"))),
            ("tokens", list("The answer", named("Token"))),
            ("top_tokens", list("The most probable tokens of each position", list("", named("Token")))),
        ]
    };
    let mut whole = details();
    whole.push(("best_of_sequences", list("The answers that were not chosen", named("OtherSequence"))));
    let mut other = details();
    other.push(("generated_text", always("string", "")));
    let last = vec![
        ("finish_reason", reason.clone()),
        ("generated_tokens", always("integer", "")),
        ("seed", seed()),
        ("input_length", always("integer", "Tokens of the prompt")),
    ];
    let event = vec![
        ("index", always("integer", "Counts from 1")),
        ("token", named("Token")),
        ("top_tokens", list("The most probable tokens of this position", named("Token"))),
        ("generated_text", optional("string", "The whole answer, on the last event")),
        ("details", named_or_null("StreamDetails")),
    ];
    let generated = vec![("generated_text", always("string", "")), ("details", named("Details"))];
    vec![
        ("GenerateResponse", answer("An answer", &["details"], generated)),
        ("Details", answer("How it came", &["top_tokens", "best_of_sequences"], whole)),
        ("OtherSequence", answer("An answer that was not chosen", &["top_tokens"], other)),
        ("Token", answer("A token", &[], token(&[("special", always("boolean", "Control, not text"))]))),
        (
            "PrefillToken",
            answer("A token of the prompt; the first has no log-probability", &[], token(&[])),
        ),
        (
            "StreamResponse",
            answer("An event of a stream; an Error may be the last", &["top_tokens"], event),
        ),
        ("StreamDetails", answer("How it came, with details", &[], last)),
    ]
}

fn token(more: &[Field]) -> Vec<Field> {
    let mut fields = vec![
        ("id", always("integer", "")),
        ("text", always("string", "")),
        ("logprob", optional("number", "Null for what is impossible")),
    ];
    fields.extend_from_slice(more);
    fields
}

/// What every answer and chunk of OpenAI's says of itself.
fn envelope(object: &str, choice: Value, usage: Value) -> Vec<Field> {
    vec![
        ("id", always("string", "")),
        ("object", constant(object)),
        ("created", always("integer", "Seconds since 1970")),
        ("model", always("string", "As the request names it")),
        ("system_fingerprint", always("string", "Equal ones mean equal bytes for equal seeds")),
        ("choices", list("", choice)),
        ("usage", usage),
    ]
}

fn openai() -> Vec<Field> {
    let usage = || named("Usage");
    let maybe_usage = || named_or_null("Usage");
    let mut schemas = vec![
        (
            "ChatCompletion",
            answer("Answers", &[], envelope("chat.completion", named("ChatChoice"), usage())),
        ),
        (
            "ChatChunk",
            answer(
                "An event of a stream; the last is `[DONE]`, or an OpenAiError",
                &["usage"],
                envelope("chat.completion.chunk", named("ChunkChoice"), maybe_usage()),
            ),
        ),
        (
            "Completion",
            answer("Answers", &[], envelope("text_completion", named("CompletionChoice"), usage())),
        ),
        (
            "CompletionChunk",
            answer(
                "An event of a stream; the last is `[DONE]`, or an OpenAiError",
                &["usage"],
                envelope("text_completion", named("CompletionChoice"), maybe_usage()),
            ),
        ),
    ];
    schemas.extend(openai_choices());
    schemas.extend(openai_logprobs());
    let cached = answer("", &[], vec![("cached_tokens", always("integer", "From the prefix cache"))]);
    let counted = vec![
        ("prompt_tokens", always("integer", "")),
        ("completion_tokens", always("integer", "")),
        ("total_tokens", always("integer", "")),
        ("prompt_tokens_details", cached),
    ];
    schemas.push(("Usage", answer("Tokens that were counted", &[], counted)));
    schemas
}

fn openai_choices() -> Vec<Field> {
    const REASONS: [&str; 3] = ["stop", "length", "tool_calls"];
    let reason = || json!({"type": "string", "enum": REASONS});
    let maybe_reason =
        || json!({"type": ["string", "null"], "enum": [REASONS[0], REASONS[1], REASONS[2], null]});
    let calls = |about: &str| list(about, json!({"type": "object"}));
    let message = vec![
        ("role", constant("assistant")),
        ("content", optional("string", "Null beside calls")),
        ("tool_calls", calls("Functions to call")),
    ];
    let delta = vec![
        ("role", constant("assistant")),
        ("content", optional("string", "")),
        ("tool_calls", calls("Pieces of calls")),
    ];
    let chat = vec![
        ("index", always("integer", "")),
        ("message", answer("The answer", &["tool_calls"], message)),
        ("logprobs", named_or_null("ChatLogprobs")),
        ("finish_reason", reason()),
    ];
    let chunk = vec![
        ("index", always("integer", "")),
        ("delta", answer("What it adds", &["role", "content", "tool_calls"], delta)),
        ("logprobs", named_or_null("ChatLogprobs")),
        ("finish_reason", maybe_reason()),
    ];
    let text = vec![
        ("index", always("integer", "")),
        ("text", always("string", "")),
        ("logprobs", named_or_null("CompletionLogprobs")),
        ("finish_reason", maybe_reason()),
    ];
    vec![
        ("ChatChoice", answer("An answer", &[], chat)),
        ("ChunkChoice", answer("A piece of an answer", &[], chunk)),
        ("CompletionChoice", answer("An answer, or a piece of it", &[], text)),
    ]
}

fn openai_logprobs() -> Vec<Field> {
    let one = || -> Vec<Field> {
        vec![
            ("token", always("string", "")),
            ("logprob", always("number", "-9999 for what is impossible")),
            ("bytes", list("", always("integer", ""))),
        ]
    };
    let mut entry = one();
    entry.push(("top_logprobs", list("Rivals", answer("", &[], one()))));
    let lists = vec![
        ("tokens", list("", always("string", ""))),
        ("token_logprobs", list("", optional("number", "Null for the first of a prompt"))),
        (
            "top_logprobs",
            list("", json!({"type": ["object", "null"], "additionalProperties": {"type": "number"}})),
        ),
        ("text_offset", list("Characters before the token", always("integer", ""))),
    ];
    vec![
        (
            "ChatLogprobs",
            answer("", &[], vec![("content", list("An entry a token", named("LogprobEntry")))]),
        ),
        ("LogprobEntry", answer("A token and its rivals", &[], entry)),
        ("CompletionLogprobs", answer("An entry a token in each list", &[], lists)),
    ]
}

fn small() -> Vec<Field> {
    let simple = vec![
        ("id", always("integer", "")),
        ("text", always("string", "")),
        ("start", always("integer", "Bytes before it")),
        ("stop", always("integer", "Bytes up to its end")),
    ];
    let chat = vec![
        ("tokenize_response", list("", named("SimpleToken"))),
        ("templated_text", always("string", "The prompt")),
    ];
    let ids = vec![
        ("tokens", list("", always("integer", ""))),
        ("count", always("integer", "")),
        ("max_model_len", always("integer", "Tokens of prompt and answer at most")),
    ];
    let model = vec![
        ("id", always("string", "")),
        ("object", constant("model")),
        ("created", always("integer", "")),
        ("owned_by", always("string", "")),
    ];
    let models = vec![("object", constant("list")), ("data", list("", named("Model")))];
    let cancelled =
        vec![("id", always("string", "")), ("cancelled", always("integer", "Requests of this id"))];
    let estimate = ("estimated_time", always("number", "Seconds until the model should be there"));
    let error =
        vec![("error", always("string", "For people")), ("error_type", error_type()), estimate.clone()];
    let inner = vec![
        ("message", always("string", "For people")),
        ("type", always("string", "OpenAI's kind of error")),
        ("param", optional("string", "The field that is to blame")),
        ("code", error_type()),
    ];
    let openai_error = vec![("error", answer("", &[], inner)), ("error_type", error_type()), estimate];
    vec![
        ("SimpleToken", answer("A token and its place in the text", &[], simple)),
        ("ChatTokens", answer("A conversation's prompt and its tokens", &[], chat)),
        ("TokenIds", answer("Token ids", &[], ids)),
        ("Text", answer("A text", &[], vec![("prompt", always("string", ""))])),
        ("TokenizerInfo", json!({"type": "object", "description": "Special tokens, template and limits"})),
        ("Model", answer("A model that is served", &[], model)),
        ("Models", answer("What is served", &[], models)),
        ("Info", answer("What is served, and its limits", &[], info())),
        ("Cancelled", answer("How many requests were cancelled", &[], cancelled)),
        ("Error", answer("An error of the native routes", &["estimated_time"], error)),
        ("OpenAiError", answer("An error of OpenAI's routes", &["estimated_time"], openai_error)),
    ]
}

fn info() -> Vec<Field> {
    let count = || always("integer", "");
    vec![
        ("model_id", always("string", "")),
        ("model_sha", optional("string", "")),
        ("model_pipeline_tag", optional("string", "")),
        ("max_concurrent_requests", count()),
        ("max_best_of", count()),
        ("max_stop_sequences", count()),
        ("max_input_tokens", count()),
        ("max_total_tokens", count()),
        ("validation_workers", count()),
        ("max_client_batch_size", count()),
        ("watermark_gamma", json!({"type": "number"})),
        ("watermark_delta", json!({"type": "number"})),
        ("router", always("string", "")),
        ("version", always("string", "")),
        ("sha", optional("string", "")),
        ("docker_label", optional("string", "")),
        ("replicas", count()),
        ("replicas_ready", count()),
    ]
}

fn error_type() -> Value {
    let types: Vec<&str> = ALL_KINDS.into_iter().map(ErrorKind::error_type).collect();
    json!({"type": "string", "enum": types})
}
