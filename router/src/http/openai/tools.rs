//! `tools`, `tool_choice`, `parallel_tool_calls` and `tool_prompt` in.

use serde_json::{Map, Value, json};

use super::request::{in_openai_words, in_words};
use crate::chat::Conversation;
use crate::error::ApiError;
use crate::grammar::Grammar;
use crate::http::fields::Fields;
use crate::tools::{CallRules, CallSupport, Choice, Function, Parallel, introduce, rewrite};

const TOOLS: &str = "tools";
const CHOICE: &str = "tool_choice";
const PROMPT: &str = "tool_prompt";

/// Bytes of a function's name at most.
const MAX_NAME_BYTES: usize = 128;

/// What a request says of tools.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::http) struct ToolRequest {
    /// Absent where the model is not to call.
    pub(in crate::http) rules: Option<CallRules>,
    /// The functions as the client describes them.
    definitions: Vec<Value>,
    /// In place of our words for them.
    words: Option<String>,
}

impl ToolRequest {
    pub(super) fn parse(body: &mut Fields) -> Result<Self, ApiError> {
        let definitions: Vec<Value> = body.take(TOOLS)?.unwrap_or_default();
        let mut functions = definitions.iter().map(function).collect::<Result<Vec<_>, _>>()?;
        check_names(&functions)?;
        let choice = choice(body.take_value(CHOICE), &mut functions)?;
        let parallel = match body.take("parallel_tool_calls")? {
            Some(false) => Parallel::One,
            Some(true) | None => Parallel::Several,
        };
        let words: Option<String> = body.take(PROMPT)?;
        let Some(choice) = choice.filter(|_| !functions.is_empty()) else { return Ok(Self::default()) };
        let parallel = if matches!(choice, Choice::Named(_)) { Parallel::One } else { parallel };
        Ok(Self { rules: Some(CallRules { functions, choice, parallel }), definitions, words })
    }

    /// Puts the functions where the model's template, or the model itself, finds them.
    pub(super) fn tell(
        &self,
        conversation: &mut Conversation,
        support: &CallSupport,
    ) -> Result<(), ApiError> {
        rewrite(&mut conversation.messages, support.skills, support.style);
        if self.rules.is_none() {
            return Ok(());
        }
        if !support.skills.functions {
            let words = self.words.as_deref();
            introduce(&mut conversation.messages, &self.definitions, (support.style, words));
            return Ok(());
        }
        if self.words.is_some() {
            let message = "`tool_prompt` is not supported: the model's chat template has words of its own";
            return Err(ApiError::invalid(PROMPT, message));
        }
        conversation.tools.clone_from(&self.definitions);
        Ok(())
    }

    /// An error in this dialect's words, which blames `tools` where a grammar made of them is not taken.
    pub(in crate::http) fn in_words(&self, error: ApiError) -> ApiError {
        match error.param {
            Some("grammar") if self.rules.is_some() => in_words(error, &[("grammar", TOOLS)]),
            Some(_) | None => in_openai_words(error),
        }
    }

    /// What answers are held to.
    pub(super) fn grammar(&self, support: &CallSupport) -> Option<Grammar> {
        self.rules.as_ref().map(|rules| rules.grammar(support.style, &support.marks))
    }
}

fn check_names(functions: &[Function]) -> Result<(), ApiError> {
    let mut names: Vec<&str> = functions.iter().map(|function| function.name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair.first() == pair.last()).and_then(<[&str]>::first) {
        None => Ok(()),
        Some(name) => Err(ApiError::invalid(TOOLS, format_args!("`tools` has two functions named {name}"))),
    }
}

/// `{"type": "function", "function": {"name", "parameters", …}}`.
fn function(tool: &Value) -> Result<Function, ApiError> {
    let invalid = |message: &str| ApiError::invalid(TOOLS, format_args!("each of `tools` {message}"));
    let kind = tool.get("type").and_then(Value::as_str).unwrap_or("function");
    if kind != "function" {
        return Err(invalid(&format!("must be of type function. Given: {kind}")));
    }
    let described = tool.get("function").and_then(Value::as_object);
    let described = described.ok_or_else(|| invalid("needs a `function` with a `name`"))?;
    let name = described.get("name").and_then(Value::as_str).unwrap_or_default();
    let is_plain = |character: char| {
        character.is_ascii_alphanumeric() || matches!(character, '_' | '-' | '.' | ':' | '/')
    };
    if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.chars().all(is_plain) {
        return Err(invalid("needs a `name` of 1 to 128 letters, digits, and _ - . : /"));
    }
    for (field, is_right) in
        [("description", Value::is_string as fn(&Value) -> bool), ("strict", Value::is_boolean)]
    {
        if described.get(field).is_some_and(|value| !value.is_null() && !is_right(value)) {
            return Err(invalid(&format!("has a `{field}` of another type")));
        }
    }
    let none = json!({"type": "object", "properties": {}, "additionalProperties": false});
    // The reference server's own name for it.
    let parameters = described.get("parameters").or_else(|| described.get("arguments"));
    let parameters = match parameters.filter(|value| !value.is_null()) {
        None => none,
        Some(Value::Object(schema)) => object_schema(schema.clone()).map_err(|found| {
            invalid(&format!("needs `parameters` of type object. Given for {name}: {found}"))
        })?,
        Some(_) => return Err(invalid("needs a JSON Schema as its `parameters`")),
    };
    Ok(Function { name: name.to_owned(), parameters })
}

/// The schema with its type said: arguments are an object.
fn object_schema(mut schema: Map<String, Value>) -> Result<Value, Value> {
    match schema.get("type") {
        None => schema.insert("type".to_owned(), "object".into()),
        Some(Value::String(kind)) if kind == "object" => None,
        Some(other) => return Err(other.clone()),
    };
    Ok(Value::Object(schema))
}

/// None where the model is not to call. Leaves only those of `functions` that may be called.
fn choice(value: Option<Value>, functions: &mut Vec<Function>) -> Result<Option<Choice>, ApiError> {
    let shape =
        || ApiError::invalid(CHOICE, "`tool_choice` must be none, auto, required, or name a function");
    let fields = match value {
        None => return Ok(Some(Choice::Auto)),
        Some(Value::String(word)) => return worded(word, functions),
        Some(Value::Object(fields)) => fields,
        Some(Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_)) => return Err(shape()),
    };
    let name = |tool: &Value| Some(tool.pointer("/function/name")?.as_str()?.to_owned());
    match fields.get("type").and_then(Value::as_str).unwrap_or("function") {
        "function" => {
            let name = name(&Value::Object(fields)).ok_or_else(shape)?;
            check_known(&name, functions)?;
            Ok(Some(Choice::Named(name)))
        }
        "allowed_tools" => {
            let allowed = fields.get("allowed_tools").ok_or_else(shape)?;
            let tools = allowed.get("tools").and_then(Value::as_array).ok_or_else(shape)?;
            let names: Option<Vec<String>> = tools.iter().map(name).collect();
            let names = names.ok_or_else(shape)?;
            names.iter().try_for_each(|name| check_known(name, functions))?;
            functions.retain(|function| names.contains(&function.name));
            match allowed.get("mode").and_then(Value::as_str) {
                Some(mode @ ("auto" | "required")) => worded(mode.to_owned(), functions),
                Some(_) | None => Err(shape()),
            }
        }
        _ => Err(shape()),
    }
}

fn worded(word: String, functions: &[Function]) -> Result<Option<Choice>, ApiError> {
    match word.as_str() {
        "none" => Ok(None),
        "auto" => Ok(Some(Choice::Auto)),
        "required" if functions.is_empty() => {
            Err(ApiError::invalid(CHOICE, "`tool_choice` needs `tools` to choose from"))
        }
        "required" => Ok(Some(Choice::Required)),
        // The reference server's short form.
        _ => check_known(&word, functions).map(|()| Some(Choice::Named(word))),
    }
}

fn check_known(name: &str, functions: &[Function]) -> Result<(), ApiError> {
    if functions.iter().any(|function| function.name == name) {
        return Ok(());
    }
    Err(ApiError::invalid(CHOICE, format_args!("`tool_choice` names {name}, which is none of `tools`")))
}

/// Checks the calls and results of a message.
pub(super) fn check_message(message: &Map<String, Value>) -> Result<(), ApiError> {
    let invalid = |message: &str| Err(ApiError::invalid("messages", message));
    let given = |name: &str| message.get(name).filter(|value| !value.is_null());
    if given("tool_call_id").is_some_and(|id| !id.is_string()) {
        return invalid("`tool_call_id` of each of `messages` must be a string");
    }
    let Some(calls) = given("tool_calls") else { return Ok(()) };
    let Some(calls) = calls.as_array() else {
        return invalid("`tool_calls` of each of `messages` must be a list");
    };
    for call in calls {
        if !call.pointer("/function/name").is_some_and(Value::is_string) {
            return invalid("each of `tool_calls` needs a `function` with a `name`");
        }
        let arguments = call.pointer("/function/arguments");
        if !arguments.is_none_or(|arguments| arguments.is_string() || arguments.is_object()) {
            return invalid("`arguments` of each of `tool_calls` must be a JSON object in a string");
        }
        if call.get("id").is_some_and(|id| !id.is_null() && !id.is_string()) {
            return invalid("`id` of each of `tool_calls` must be a string");
        }
    }
    Ok(())
}
