//! For templates that know nothing of tools, or not all: what they would leave out is written into messages.

use serde_json::{Map, Value, json};

use super::style::CallStyle;
use crate::chat::{ChatTemplate, Conversation, Ending};

/// What a chat template does with tools.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TemplateSkills {
    /// It writes the functions.
    pub functions: bool,
    /// It writes calls that were made.
    pub calls: bool,
    /// It knows messages of the role `tool`.
    pub results: bool,
}

impl TemplateSkills {
    /// Tries them out.
    pub fn of(template: &ChatTemplate) -> Self {
        const FUNCTION: &str = "probe_function";
        const ARGUMENT: &str = "probe_argument";
        const RESULT: &str = "probe_result";
        let tool = json!({"type": "function", "function": {"name": FUNCTION, "description": "",
            "parameters": {"type": "object", "properties": {}}}});
        // Nine letters or digits: templates of Mistral's models take no other ids.
        let call = json!({"id": "callprobe", "type": "function",
            "function": {"name": FUNCTION, "arguments": {"a": ARGUMENT}}});
        let messages = [
            json!({"role": "user", "content": "a"}),
            json!({"role": "assistant", "content": "", "tool_calls": [call]}),
            json!({"role": "tool", "content": RESULT, "tool_call_id": "callprobe", "name": FUNCTION}),
        ];
        let writes = |count: usize, word: &str| {
            let messages = messages.iter().take(count).cloned().collect();
            let conversation =
                Conversation { messages, tools: vec![tool.clone()], ..Conversation::default() };
            let written = template.apply(&conversation, Ending::AssistantSpeaks);
            written.is_ok_and(|written| written.contains(word))
        };
        Self { functions: writes(1, FUNCTION), calls: writes(2, ARGUMENT), results: writes(3, RESULT) }
    }
}

const INTRODUCTION: &str = "You may call these functions, each described by a JSON schema:";

/// Tells the model of `tools` in the first message, as its template does not. `words` replaces our own.
pub fn introduce(messages: &mut Vec<Value>, tools: &[Value], (style, words): (CallStyle, Option<&str>)) {
    let mut text = words.unwrap_or(INTRODUCTION).to_owned();
    for tool in tools {
        text.push('\n');
        text.push_str(&tool.get("function").unwrap_or(tool).to_string());
    }
    if words.is_none() {
        let call = json!({"name": "the function's name", "arguments": {}});
        text.push_str("\nTo call functions, answer with nothing but calls such as this:\n");
        text.push_str(&written(style, &[call]));
    }
    // Every template knows users; not every one knows system messages.
    let first = messages.iter_mut().find(|message| role_is(message, &["system", "developer", "user"]));
    match first.and_then(Value::as_object_mut) {
        Some(first) => {
            let content = first.get("content").and_then(Value::as_str).unwrap_or_default();
            let is_user = first.get("role").and_then(Value::as_str) == Some("user");
            let both =
                if is_user { format!("{text}\n\n{content}") } else { format!("{content}\n\n{text}") };
            first.insert("content".to_owned(), both.into());
        }
        None => messages.insert(0, json!({"role": "system", "content": text})),
    }
}

fn role_is(message: &Value, roles: &[&str]) -> bool {
    message.get("role").and_then(Value::as_str).is_some_and(|role| roles.contains(&role))
}

/// Puts calls and their results into plain messages where the template would leave them out.
pub fn rewrite(messages: &mut Vec<Value>, skills: TemplateSkills, style: CallStyle) {
    let mut rewritten: Vec<Value> = Vec::with_capacity(messages.len());
    let mut follows_result = false;
    for mut message in std::mem::take(messages) {
        if !skills.calls && role_is(&message, &["assistant"]) {
            calls_to_text(&mut message, style);
        }
        let is_result = !skills.results && role_is(&message, &["tool"]);
        if is_result {
            let text = result_text(&message);
            let last = rewritten.last_mut().filter(|_| follows_result);
            match last.and_then(|last| last.get_mut("content")) {
                Some(Value::String(content)) => *content = format!("{content}\n{text}"),
                _ => rewritten.push(json!({"role": "user", "content": text})),
            }
        } else {
            rewritten.push(message);
        }
        follows_result = is_result;
    }
    *messages = rewritten;
}

fn result_text(message: &Value) -> String {
    let content = message.get("content").and_then(Value::as_str).unwrap_or_default();
    match message.get("name").and_then(Value::as_str) {
        Some(name) => format!("Result of {name}: {content}"),
        None => format!("Result: {content}"),
    }
}

fn calls_to_text(message: &mut Value, style: CallStyle) {
    let Some(fields) = message.as_object_mut() else { return };
    let Some(Value::Array(calls)) = fields.shift_remove("tool_calls") else { return };
    let call = |call: &Value| {
        let function = call.get("function").and_then(Value::as_object).cloned().unwrap_or_default();
        let part = |name: &str| function.get(name).cloned().unwrap_or_default();
        json!({"name": part("name"), "arguments": part("arguments")})
    };
    let calls: Vec<Value> = calls.iter().map(call).collect();
    let mut text = fields.get("content").and_then(Value::as_str).unwrap_or_default().to_owned();
    text.push_str(&written(style, &calls));
    fields.insert("content".to_owned(), text.into());
}

/// Calls as a model of this style writes them.
fn written(style: CallStyle, calls: &[Value]) -> String {
    let name = |call: &Value| call.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    let arguments = |call: &Value| call.get("arguments").map(Value::to_string).unwrap_or_default();
    let object = |call: &Value, key: &str| {
        let fields = [("name", call.get("name")), (key, call.get("arguments"))];
        let fields =
            fields.into_iter().map(|(key, value)| (key.to_owned(), value.cloned().unwrap_or_default()));
        Value::Object(fields.collect::<Map<_, _>>()).to_string()
    };
    let each = |write: &dyn Fn(&Value) -> String| calls.iter().map(write).collect::<Vec<_>>();
    match style {
        CallStyle::Llama3 => each(&|call| object(call, "parameters")).join("; "),
        CallStyle::Hermes => {
            each(&|call| format!("<tool_call>\n{}\n</tool_call>", object(call, "arguments"))).join("\n")
        }
        CallStyle::Mistral => {
            format!("[TOOL_CALLS] [{}]", each(&|call| object(call, "arguments")).join(", "))
        }
        CallStyle::MistralArgs => {
            each(&|call| format!("[TOOL_CALLS]{}[ARGS]{}", name(call), arguments(call))).concat()
        }
        CallStyle::Json if calls.len() == 1 => each(&|call| object(call, "arguments")).concat(),
        CallStyle::Json => format!("[{}]", each(&|call| object(call, "arguments")).join(", ")),
    }
}
