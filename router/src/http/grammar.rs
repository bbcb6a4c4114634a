//! The shapes in which clients send grammars, and what becomes of them.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::encode::of_pool;
use super::fields::Fields;
use crate::app::App;
use crate::error::ApiError;
use crate::grammar::{CompileError, CompiledGrammar, Grammar};

/// Compiles a grammar, or takes it from the cache.
pub(super) async fn compile(app: &App, grammar: Grammar) -> Result<Arc<CompiledGrammar>, ApiError> {
    match app.grammars.compile(grammar).await {
        Ok((compiled, took)) => {
            if let Some(took) = took {
                app.metrics.on_grammar_compiled(took);
            }
            Ok(compiled)
        }
        Err(CompileError::Grammar(error)) => {
            Err(ApiError::invalid("grammar", format_args!("grammar is not valid: {error}")))
        }
        Err(CompileError::Pool(error)) => Err(of_pool(app, error)),
    }
}

/// The native `grammar`: `{type, value}`.
pub(super) fn native(parameters: &mut Fields) -> Result<Option<Grammar>, ApiError> {
    const NAME: &str = "grammar";
    let Some(value) = parameters.take_value(NAME) else { return Ok(None) };
    let mut fields = parameters.inside(NAME, object(NAME, value)?);
    let kind = kind(&mut fields);
    match typed(NAME, &kind, &mut fields)? {
        Some(grammar) => fields.refuse_rest().map(|()| Some(grammar)),
        None => Err(ApiError::invalid(NAME, "`grammar` needs a `value`")),
    }
}

/// Fields of other servers, and what each is called in `structured_outputs`.
const GUIDED: [(&str, &str); 4] = [
    ("guided_json", "json"),
    ("guided_regex", "regex"),
    ("guided_choice", "choice"),
    ("guided_grammar", "grammar"),
];

/// What an OpenAI request may ask for: `response_format`, and the fields of other servers.
pub(super) fn openai(body: &mut Fields) -> Result<Option<Grammar>, ApiError> {
    let mut found = Vec::new();
    found.extend(response_format(body)?);
    found.extend(native(body)?);
    if let Some(value) = body.take_value("structured_outputs") {
        let mut fields = body.inside("structured_outputs", object("structured_outputs", value)?);
        found.extend(structured("structured_outputs", &mut fields)?);
    }
    for (name, word) in GUIDED {
        let Some(value) = body.take_value(name) else { continue };
        let mut fields = body.inside(name, Map::from_iter([(word.to_owned(), value)]));
        found.extend(structured(name, &mut fields)?);
    }
    // Clients of vLLM say the same in its old and its new fields.
    found.dedup();
    if found.len() > 1 {
        let message =
            "only one of `response_format`, `grammar`, `structured_outputs` and `guided_*` can be set";
        return Err(ApiError::invalid("response_format", message));
    }
    Ok(found.pop())
}

fn response_format(body: &mut Fields) -> Result<Option<Grammar>, ApiError> {
    const NAME: &str = "response_format";
    let Some(value) = body.take_value(NAME) else { return Ok(None) };
    let mut fields = body.inside(NAME, object(NAME, value)?);
    let kind = kind(&mut fields);
    let grammar = if kind == "text" { None } else { typed(NAME, &kind, &mut fields)? };
    match (grammar, kind.as_str()) {
        (Some(grammar), _) => fields.refuse_rest().map(|()| Some(grammar)),
        (None, "text") => fields.refuse_rest().map(|()| None),
        (None, "json_object") => fields.refuse_rest().map(|()| Some(Grammar::any_object())),
        (None, _) => {
            Err(ApiError::invalid(NAME, format_args!("`{NAME}` needs a `json_schema` or a `value`")))
        }
    }
}

/// The `type`; empty where there is none.
fn kind(fields: &mut Fields) -> String {
    let kind = fields.take_value("type");
    kind.as_ref().and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// `{type, value}`; OpenAI keeps the value of `json_schema` in a field of that name.
fn typed(name: &'static str, kind: &str, fields: &mut Fields) -> Result<Option<Grammar>, ApiError> {
    let invalid = |message: &str| ApiError::invalid(name, format_args!("`{name}` {message}"));
    match kind {
        "json" | "json_object" => fields.take_value("value").map(|value| schema(name, value)).transpose(),
        "json_schema" => {
            let Some((key, value)) =
                ["json_schema", "value"].into_iter().find_map(|key| Some((key, fields.take_value(key)?)))
            else {
                return Ok(None);
            };
            let mut wrapper = fields.inside(key, object(name, value)?);
            let inner = wrapper.take_value("schema");
            // Words about the schema. `strict` is always so: no answer breaks it.
            wrapper.pass_over(&["name", "description", "strict"]);
            wrapper.refuse_rest()?;
            match inner {
                Some(inner) => Ok(Some(schema(name, inner)?)),
                // OpenAI's schema may be left out; ours says which.
                None => Err(invalid("of type json_schema needs a `schema`")),
            }
        }
        "regex" => match fields.take_value("value") {
            Some(Value::String(regex)) => Ok(Some(Grammar::Regex(regex))),
            Some(_) => Err(invalid("of type regex needs a string as its `value`")),
            None => Ok(None),
        },
        _ => Err(invalid("must have the `type` json, json_object, json_schema or regex")),
    }
}

/// One of `json`, `json_object`, `regex`, `choice` and `grammar`.
fn structured(name: &'static str, fields: &mut Fields) -> Result<Option<Grammar>, ApiError> {
    fields.refuse_unless("structural_tag", Value::is_null)?;
    let json = fields.take_value("json").map(|value| schema(name, value)).transpose()?;
    let object = fields.flag("json_object")?.then(Grammar::any_object);
    let regex = fields.take("regex")?.map(Grammar::Regex);
    let choice = fields.take("choice")?.map(Grammar::Choice);
    let lark = fields.take("grammar")?.map(Grammar::Lark);
    fields.refuse_rest()?;
    let mut found = [json, object, regex, choice, lark].into_iter().flatten();
    match (found.next(), found.next()) {
        (Some(Grammar::Choice(texts)), None) if texts.iter().all(String::is_empty) => {
            Err(ApiError::invalid(name, format_args!("`{name}` has no text to choose")))
        }
        (first, None) => Ok(first),
        (_, Some(_)) => Err(ApiError::invalid(name, format_args!("`{name}` can describe one thing only"))),
    }
}

/// A schema, or its text.
fn schema(name: &'static str, value: Value) -> Result<Grammar, ApiError> {
    match &value {
        Value::String(text) => {
            let parsed: Value = serde_json::from_str(text).map_err(|error| {
                ApiError::invalid(
                    name,
                    format_args!("`{name}` is not valid: the schema is no JSON: {error}"),
                )
            })?;
            Ok(Grammar::of_schema(&parsed))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            Ok(Grammar::of_schema(&value))
        }
    }
}

fn object(name: &'static str, value: Value) -> Result<Map<String, Value>, ApiError> {
    match value {
        Value::Object(fields) => Ok(fields),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            Err(ApiError::invalid(name, format_args!("`{name}` must be an object")))
        }
    }
}
