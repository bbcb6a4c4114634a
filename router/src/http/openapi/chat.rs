//! What requests for a chat consist of besides.

use serde_json::{Value, json};

use super::requests::openai;
use super::schema::{Field, always, constant, list, named, optional, refused, request, ruled};

pub(super) fn request_body() -> Value {
    let mut fields = vec![
        ("messages", json!({"type": "array", "minItems": 1, "items": named("Message")})),
        ("documents", json!({"type": ["array", "null"], "description": "For the model's template"})),
        ("chat_template_kwargs", optional("object", "Switches of the model's template")),
        ("logprobs", optional("boolean", "Send log-probabilities")),
        (
            "top_logprobs",
            ruled("integer", "The most probable tokens of each position", json!({"minimum": 0})),
        ),
        (
            "max_completion_tokens",
            ruled("integer", "`max_tokens` by its other name", json!({"minimum": 1})),
        ),
    ];
    fields.extend(openai());
    fields.extend(tools());
    fields.extend(chat_marks());
    request("A conversation to continue", &["messages"], fields)
}

fn tools() -> Vec<Field> {
    let function = request(
        "A function",
        &["name"],
        vec![
            ("name", always("string", "")),
            ("description", optional("string", "For the model")),
            ("parameters", json!({"description": "A JSON Schema"})),
            ("strict", optional("boolean", "Hold arguments to the schema")),
        ],
    );
    let tool = request(
        "A tool",
        &["type", "function"],
        vec![("type", constant("function")), ("function", function)],
    );
    let mut tools = list("Functions the model may call", tool);
    tools["type"] = json!(["array", "null"]);
    vec![
        ("tools", tools),
        ("tool_choice", json!({"description": "`auto`, `none`, `required`, or the function to call"})),
        ("parallel_tool_calls", optional("boolean", "Several calls in one answer")),
        (
            "tool_prompt",
            optional("string", "What comes before the functions, where the template names none"),
        ),
    ]
}

/// Fields of OpenAI's chat that change no answer here, or that are not served.
fn chat_marks() -> Vec<Field> {
    let mark = || json!({"description": "A mark for the operator: no answer depends on it"});
    vec![
        ("metadata", mark()),
        ("safety_identifier", mark()),
        ("prompt_cache_key", mark()),
        ("functions", refused("empty")),
        ("function_call", refused("`none` or `auto`")),
        ("audio", refused("null")),
        ("prediction", refused("null")),
        ("web_search_options", refused("null")),
        ("reasoning_effort", refused("null")),
        ("modalities", refused("[\"text\"]")),
        ("verbosity", refused("`medium`")),
        ("service_tier", refused("`auto` or `default`")),
        ("store", refused("false")),
        ("echo", refused("false")),
        (
            "continue_final_message",
            optional("boolean", "The last message is the assistant's, to be gone on with"),
        ),
        ("add_generation_prompt", refused("true, or false beside `continue_final_message`")),
    ]
}

pub(super) fn message() -> Value {
    let part = request(
        "A piece of text",
        &["type", "text"],
        vec![("type", constant("text")), ("text", always("string", ""))],
    );
    let content =
        json!({"anyOf": [{"type": "string"}, {"type": "array", "items": part}, {"type": "null"}]});
    request(
        "A message; the model's template sees all of its fields",
        &["role"],
        vec![
            ("role", always("string", "`system`, `user`, `assistant`, `tool` or what the template knows")),
            ("content", content),
            ("tool_calls", json!({"type": ["array", "null"], "items": {"type": "object"}})),
            ("tool_call_id", optional("string", "The call a `tool` message answers")),
            ("name", optional("string", "Who speaks")),
        ],
    )
}
