//! What requests consist of.

use serde_json::{Map, Value, json};

use super::chat;
use super::schema::{Field, always, constant, list, named, one_of, optional, refused, request, ruled};

/// Every schema of requests by its name.
pub(super) fn schemas() -> Map<String, Value> {
    let schemas = [
        ("GenerateRequest", generate(Vec::new())),
        ("CompatibleRequest", generate(vec![("stream", optional("boolean", "Answer with events"))])),
        ("GenerateParameters", parameters()),
        ("Grammar", grammar()),
        ("ChatRequest", chat::request_body()),
        ("CompletionRequest", completion()),
        ("Message", chat::message()),
        ("StreamOptions", stream_options()),
        ("ResponseFormat", response_format()),
        ("StructuredOutputs", structured_outputs()),
        ("TokenizePromptRequest", tokenize_prompt()),
        ("DetokenizeRequest", detokenize()),
    ];
    schemas.into_iter().map(|(name, schema)| (name.to_owned(), schema)).collect()
}

fn generate(more: Vec<Field>) -> Value {
    let mut fields = vec![
        ("inputs", always("string", "The text to continue")),
        ("parameters", json!({"anyOf": [named("GenerateParameters"), {"type": "null"}]})),
    ];
    fields.extend(more);
    request("A text to continue", &["inputs"], fields)
}

fn parameters() -> Value {
    let mut fields = vec![
        (
            "do_sample",
            optional("boolean", "Draw tokens at random. Absent: if a parameter of sampling is set"),
        ),
        (
            "max_new_tokens",
            ruled(
                "integer",
                "Tokens of the answer at most [default: what is left of the context]",
                json!({"minimum": 1}),
            ),
        ),
        (
            "best_of",
            ruled("integer", "Answers computed, of which the most probable is sent", json!({"minimum": 1})),
        ),
        ("return_full_text", optional("boolean", "Repeat the prompt before the answer")),
        (
            "stop",
            ruled(
                "array",
                "Texts that end the answer, which keeps them",
                json!({"items": {"type": "string"}}),
            ),
        ),
        (
            "truncate",
            ruled("integer", "Keep so many tokens of the prompt, the last ones", json!({"minimum": 1})),
        ),
        ("details", optional("boolean", "Send tokens, finish reason and seed")),
        (
            "decoder_input_details",
            optional("boolean", "Send the log-probabilities of the prompt; not on streams"),
        ),
        (
            "top_n_tokens",
            ruled("integer", "The most probable tokens of each position", json!({"minimum": 0})),
        ),
        ("grammar", json!({"anyOf": [named("Grammar"), {"type": "null"}]})),
    ];
    fields.extend(sampling());
    fields.extend(extensions());
    request("How to continue", &[], fields)
}

/// What all interfaces say of sampling.
fn sampling() -> Vec<Field> {
    let mut fields = vec![
        (
            "temperature",
            ruled(
                "number",
                "How flat the distribution is made; OpenAI's routes take 0 for greedy",
                json!({"minimum": 0}),
            ),
        ),
        (
            "top_k",
            ruled(
                "integer",
                "Draw from so many of the most probable tokens; OpenAI's routes take 0 and -1 for all of them",
                json!({"minimum": -1}),
            ),
        ),
        (
            "top_p",
            ruled(
                "number",
                "Draw from the most probable tokens of so much probability",
                json!({"exclusiveMinimum": 0, "maximum": 1}),
            ),
        ),
        (
            "typical_p",
            ruled(
                "number",
                "Draw from the most typical tokens of so much probability",
                json!({"exclusiveMinimum": 0, "maximum": 1}),
            ),
        ),
        (
            "min_p",
            ruled(
                "number",
                "Draw from tokens with at least this share of the highest probability",
                json!({"minimum": 0, "maximum": 1}),
            ),
        ),
    ];
    fields.extend(penalties());
    fields
}

/// What changes logits before a token is drawn, and what decides the draw.
fn penalties() -> Vec<Field> {
    vec![
        (
            "repetition_penalty",
            ruled(
                "number",
                "Divides what is known to the prompt and the answer",
                json!({"exclusiveMinimum": 0}),
            ),
        ),
        (
            "frequency_penalty",
            ruled(
                "number",
                "Taken off for each time a token was generated",
                json!({"minimum": -2, "maximum": 2}),
            ),
        ),
        (
            "presence_penalty",
            ruled("number", "Taken off if a token was generated", json!({"minimum": -2, "maximum": 2})),
        ),
        (
            "logit_bias",
            ruled(
                "object",
                "Token ids with what is added to their logits",
                json!({"additionalProperties": {"type": "number", "minimum": -100, "maximum": 100}}),
            ),
        ),
        ("seed", ruled("integer", "Equal seeds give equal answers", json!({"minimum": 0}))),
    ]
}

/// What all interfaces take beyond their specifications.
fn extensions() -> Vec<Field> {
    vec![
        ("ignore_eos", optional("boolean", "Go on after the end-of-sequence token")),
        ("watermark", watermark()),
        ("adapter_id", optional("string", "An adapter that is loaded; 404 for others")),
    ]
}

fn watermark() -> Value {
    let gamma = json!({"exclusiveMinimum": 0, "exclusiveMaximum": 1});
    let strength = request(
        "A strength of its own",
        &[],
        vec![
            ("gamma", ruled("number", "The share of the vocabulary that is favoured", gamma)),
            (
                "delta",
                ruled("number", "What is added to its logits", json!({"minimum": 0, "maximum": 100})),
            ),
        ],
    );
    json!({"description": "Mark the answer", "anyOf": [{"type": ["boolean", "null"]}, strength]})
}

/// `{type, value}` of one kind.
fn typed(kind: &str, value: Value) -> Value {
    request("", &["type", "value"], vec![("type", constant(kind)), ("value", value)])
}

/// A schema with words about it.
fn wrapped() -> Value {
    request(
        "A schema with a name",
        &["schema"],
        vec![
            ("name", optional("string", "For people")),
            ("description", optional("string", "For people")),
            ("strict", optional("boolean", "Always so")),
            ("schema", json!({"description": "A JSON Schema, or its text"})),
        ],
    )
}

fn grammar() -> Value {
    let schema = || json!({"description": "A JSON Schema, or its text"});
    let openai = request(
        "OpenAI's form",
        &["type", "json_schema"],
        vec![("type", constant("json_schema")), ("json_schema", wrapped())],
    );
    one_of(
        "What the answer must be",
        vec![
            typed("json", schema()),
            typed("json_object", schema()),
            typed("regex", always("string", "A regular expression")),
            typed("json_schema", wrapped()),
            openai,
        ],
    )
}

fn response_format() -> Value {
    let object = request("Any JSON object", &["type"], vec![("type", constant("json_object"))]);
    let text = request("Any text", &["type"], vec![("type", constant("text"))]);
    json!({"description": "What the answer must be", "anyOf": [text, object, named("Grammar")]})
}

fn structured_outputs() -> Value {
    request(
        "What the answer must be, as other servers write it: one of these",
        &[],
        vec![
            ("json", json!({"description": "A JSON Schema, or its text"})),
            ("json_object", optional("boolean", "Any JSON object")),
            ("regex", optional("string", "A regular expression")),
            ("choice", json!({"type": ["array", "null"], "items": {"type": "string"}})),
            ("grammar", optional("string", "A context-free grammar, in Lark's syntax")),
            ("structural_tag", refused("null")),
        ],
    )
}

fn stream_options() -> Value {
    request(
        "What a stream has besides text",
        &[],
        vec![
            ("include_usage", optional("boolean", "One more chunk at the end, with usage")),
            ("continuous_usage_stats", optional("boolean", "Usage in every chunk")),
            ("include_obfuscation", refused("false")),
        ],
    )
}

/// What both of OpenAI's routes take.
pub(super) fn openai() -> Vec<Field> {
    let text_or_list = json!({
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}, {"type": "null"}],
        "description": "Texts that end the answer, which does not keep them",
    });
    let or_null = |name: &str| json!({"anyOf": [named(name), {"type": "null"}]});
    let mut fields = vec![
        (
            "model",
            ruled(
                "string",
                "Echoed, 256 bytes at most; with --strict it must be the one that is served",
                json!({"maxLength": 256}),
            ),
        ),
        ("max_tokens", ruled("integer", "Tokens of the answer at most", json!({"minimum": 0}))),
        ("n", ruled("integer", "Answers", json!({"minimum": 1}))),
        (
            "best_of",
            ruled(
                "integer",
                "Answers computed, of which the `n` most probable are sent",
                json!({"minimum": 1}),
            ),
        ),
        ("stop", text_or_list),
        ("stream", optional("boolean", "Answer with events")),
        ("stream_options", or_null("StreamOptions")),
        ("response_format", or_null("ResponseFormat")),
        ("grammar", or_null("Grammar")),
        ("structured_outputs", or_null("StructuredOutputs")),
        ("guided_json", json!({"description": "A JSON Schema, or its text"})),
        ("guided_regex", optional("string", "A regular expression")),
        ("guided_choice", json!({"type": ["array", "null"], "items": {"type": "string"}})),
        ("guided_grammar", optional("string", "A context-free grammar, in Lark's syntax")),
        ("user", optional("string", "A mark for the operator: no answer depends on it")),
        (
            "cache_salt",
            ruled(
                "string",
                "Only requests with this value, of the same key, find this prompt in the prefix cache",
                json!({"minLength": 1}),
            ),
        ),
    ];
    fields.extend(sampling());
    fields.extend(extensions());
    fields.extend(foreign());
    fields
}

/// Fields of other servers on these routes that are not served.
fn foreign() -> Vec<Field> {
    vec![
        ("min_tokens", refused("0, or what `ignore_eos` and `max_tokens` make sure of")),
        ("stop_token_ids", refused("empty")),
        ("bad_words", refused("empty")),
        ("allowed_token_ids", refused("null")),
        ("prompt_logprobs", refused("null")),
        ("truncate_prompt_tokens", refused("null")),
        ("use_beam_search", refused("false")),
        ("include_stop_str_in_output", refused("false")),
        ("skip_special_tokens", refused("true")),
    ]
}

fn completion() -> Value {
    let prompt = json!({
        "description": "A text, a list of texts, token ids or a list of lists of token ids",
        "anyOf": [
            {"type": "string"},
            {"type": "array", "items": {"type": "string"}},
            {"type": "array", "items": {"type": "integer", "minimum": 0}},
            {"type": "array", "items": {"type": "array", "items": {"type": "integer", "minimum": 0}}},
        ],
    });
    let mut fields = vec![
        ("prompt", prompt),
        ("echo", optional("boolean", "Repeat the prompt before the answer")),
        (
            "logprobs",
            ruled("integer", "Log-probabilities of so many rivals of each token", json!({"minimum": 0})),
        ),
        ("suffix", refused("empty")),
    ];
    fields.extend(openai());
    request("Texts to continue", &["prompt"], fields)
}

fn tokenize_prompt() -> Value {
    request(
        "A text to tokenize, as other servers write it",
        &["prompt"],
        vec![
            ("prompt", always("string", "The text")),
            (
                "add_special_tokens",
                optional("boolean", "Add those the tokenizer puts around a text [default: true]"),
            ),
            ("model", optional("string", "Passed over")),
        ],
    )
}

fn detokenize() -> Value {
    request(
        "Tokens to read",
        &["tokens"],
        vec![
            ("tokens", list("Token ids", json!({"type": "integer", "minimum": 0}))),
            ("model", optional("string", "Passed over")),
        ],
    )
}
