//! The document says what the server does: no more, no less.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::document;
use crate::error::{ALL_KINDS, ApiError};
use crate::http::fields::{Fields, UnknownFields, asked};
use crate::http::native::{FullText, GenerateRequest};
use crate::http::openai::{ChatRequest, CompletionLimits, CompletionRequest};

fn fields(body: Value) -> Fields {
    let Value::Object(body) = body else { panic!("{body} is no object") };
    Fields::new(body, UnknownFields::Refuse)
}

/// What `parse` asks for of all of `bodies`, which it must take.
fn asked_for(
    parse: impl Fn(&mut Fields) -> Result<(), ApiError>,
    bodies: &[Value],
) -> BTreeSet<(String, String)> {
    asked::take();
    for body in bodies {
        assert_eq!(parse(&mut fields(body.clone())), Ok(()), "{body}");
    }
    asked::take()
}

/// Every object that may stand in a field, through references and alternatives.
fn objects<'a>(document: &'a Value, schema: &'a Value) -> Vec<&'a Map<String, Value>> {
    if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
        return objects(
            document,
            document.pointer(&reference[1..]).expect("the reference leads somewhere"),
        );
    }
    let variants = ["anyOf", "oneOf"].into_iter().filter_map(|word| schema.get(word)?.as_array());
    let nested = variants.flatten().flat_map(|variant| objects(document, variant));
    schema.get("properties").and_then(Value::as_object).into_iter().chain(nested).collect()
}

/// The names that are described for the fields at `place` of a schema.
fn described(document: &Value, schema: &str, place: &str) -> BTreeSet<String> {
    let mut schemas = vec![&document["components"]["schemas"][schema]];
    for name in place.split('.').filter(|name| !name.is_empty()) {
        let inside = schemas.iter().flat_map(|schema| objects(document, schema));
        schemas = inside.filter_map(|properties| properties.get(name)).collect();
    }
    let objects = schemas.iter().flat_map(|schema| objects(document, schema));
    objects.flat_map(|properties| properties.keys().cloned()).collect()
}

fn compare(schema: &str, asked: &BTreeSet<(String, String)>) {
    let document = document();
    let places: BTreeSet<&str> = asked.iter().map(|(place, _)| place.as_str()).collect();
    for place in places {
        let names = asked.iter().filter(|(at, _)| at == place).map(|(_, name)| name.clone());
        let names: BTreeSet<String> = names.collect();
        let described = described(&document, schema, place);
        assert_eq!(names, described, "asked for and described, in {schema} at {place:?}");
    }
}

/// Forms of `name` that together have every field a grammar may have.
fn grammars(body: &Value, place: &str, openai: bool) -> Vec<Value> {
    let wrapped = json!({"schema": {"type": "object"}});
    let mut forms = vec![
        json!({"grammar": {"type": "json_schema", "value": wrapped}}),
        json!({"grammar": {"type": "json_schema", "json_schema": wrapped}}),
        json!({"grammar": {"type": "regex", "value": "a"}}),
    ];
    if openai {
        forms.push(json!({"response_format": {"type": "json_schema", "json_schema": wrapped}}));
        forms.push(json!({"response_format": {"type": "json_schema", "value": wrapped}}));
        forms.push(json!({"structured_outputs": {"regex": "a"}}));
    }
    let with = |form: &Value| {
        let mut body = body.clone();
        let target = body.pointer_mut(place).and_then(Value::as_object_mut).expect("it is an object");
        target.extend(form.as_object().cloned().unwrap_or_default());
        body
    };
    forms.iter().map(with).collect()
}

#[test]
fn native_fields_are_those_that_are_asked_for() {
    let parse = |body: &mut Fields| GenerateRequest::parse(body, FullText::Omit).map(|_| ());
    let body = json!({"inputs": "a", "parameters": {}});
    compare("GenerateRequest", &asked_for(parse, &grammars(&body, "/parameters", false)));
}

#[test]
fn chat_fields_are_those_that_are_asked_for() {
    let parse = |body: &mut Fields| ChatRequest::parse(body).map(|_| ());
    let body = json!({"messages": [{"role": "user", "content": "a"}]});
    compare("ChatRequest", &asked_for(parse, &grammars(&body, "", true)));
}

#[test]
fn completion_fields_are_those_that_are_asked_for() {
    let limits = CompletionLimits { prompts: 4, best_of: 2 };
    let parse = |body: &mut Fields| CompletionRequest::parse(body, limits).map(|_| ());
    compare("CompletionRequest", &asked_for(parse, &grammars(&json!({"prompt": "a"}), "", true)));
}

/// The route table's own text, read for the addresses it names.
#[test]
fn routes_are_those_of_the_route_table() {
    let table = include_str!("../mod.rs");
    let named = table.split(".route(\"").skip(1).filter_map(|rest| rest.split('"').next());
    let pages = ["/playground", "/docs", "/api-doc/openapi.json", "/openapi.json"];
    let named: BTreeSet<String> = named.chain(pages).map(|path| path.replace("{*", "{")).collect();
    let document = document();
    let paths = document["paths"].as_object().expect("it has paths");
    assert_eq!(named, paths.keys().cloned().collect());
}

#[test]
fn every_kind_of_error_is_described() {
    let document = document();
    for kind in ALL_KINDS {
        let response = &document["components"]["responses"][kind.status().to_string()];
        let about = response["description"].as_str().unwrap_or_default();
        assert!(about.contains(kind.error_type()), "{kind:?}");
    }
}

#[test]
fn references_lead_somewhere() {
    fn walk(document: &Value, value: &Value) {
        if let Some(reference) = value.get("$ref").and_then(Value::as_str) {
            assert!(document.pointer(&reference[1..]).is_some(), "{reference}");
        }
        match value {
            Value::Object(fields) => fields.values().for_each(|value| walk(document, value)),
            Value::Array(items) => items.iter().for_each(|value| walk(document, value)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    let document = document();
    walk(&document, &document);
}
