//! Pieces of JSON Schema.

use serde_json::{Map, Value, json};

/// A field with its name.
pub(super) type Field = (&'static str, Value);

/// An object of requests. Fields besides these pass.
pub(super) fn request(about: &str, required: &[&str], fields: Vec<Field>) -> Value {
    let mut schema = json!({"type": "object", "description": about, "properties": properties(fields)});
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    schema
}

/// An object of answers: these fields, in this form, and no others. Those named `optional` may be absent.
pub(super) fn answer(about: &str, optional: &[&str], fields: Vec<Field>) -> Value {
    let required: Vec<&str> = fields.iter().map(|(name, _)| *name).collect();
    let required: Vec<&str> = required.into_iter().filter(|name| !optional.contains(name)).collect();
    json!({
        "type": "object",
        "description": about,
        "properties": properties(fields),
        "required": required,
        "additionalProperties": false,
    })
}

/// Which of `variants` an object is.
pub(super) fn one_of(about: &str, variants: Vec<Value>) -> Value {
    json!({"description": about, "oneOf": variants})
}

/// A value of `kind`; null is the same as absent.
pub(super) fn optional(kind: &str, about: &str) -> Value {
    json!({"type": [kind, "null"], "description": about})
}

/// The same with more rules, the keywords of `rules`.
pub(super) fn ruled(kind: &str, about: &str, rules: Value) -> Value {
    let mut schema = optional(kind, about);
    if let (Some(schema), Value::Object(rules)) = (schema.as_object_mut(), rules) {
        schema.extend(rules);
    }
    schema
}

/// A value of `kind` that is always there.
pub(super) fn always(kind: &str, about: &str) -> Value {
    json!({"type": kind, "description": about})
}

/// A list of `items`.
pub(super) fn list(about: &str, items: Value) -> Value {
    json!({"type": "array", "description": about, "items": items})
}

/// A schema of the document.
pub(super) fn named(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

/// The same, or null.
pub(super) fn named_or_null(name: &str) -> Value {
    json!({"anyOf": [named(name), {"type": "null"}]})
}

/// Always this text.
pub(super) fn constant(text: &str) -> Value {
    json!({"type": "string", "const": text})
}

/// A field that belongs to the interface and is not served: refused with 422 unless it is neutral.
pub(super) fn refused(neutral: &str) -> Value {
    json!({"description": format!("Not served: refused with 422 unless {neutral}"), "deprecated": true})
}

fn properties(fields: Vec<Field>) -> Map<String, Value> {
    fields.into_iter().map(|(name, schema)| (name.to_owned(), schema)).collect()
}
