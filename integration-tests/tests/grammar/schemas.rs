//! Schemas over every keyword that is enforced, and an own reading of them to judge answers by.

use serde_json::{Map, Value, json};

/// Strings that a pattern of ours describes.
type Judge = fn(&str) -> bool;

/// The patterns that schemas here use, and what they mean, told without a regular expression.
const PATTERNS: [(&str, Judge); 6] = [
    ("^[a-z]{2,6}$", |text| {
        (2..=6).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_lowercase())
    }),
    ("^[A-Z][0-9]{3}$", |text| {
        text.len() == 4
            && text.as_bytes()[0].is_ascii_uppercase()
            && text[1..].bytes().all(|byte| byte.is_ascii_digit())
    }),
    ("^(red|green|blue)-[0-9]+$", |text| {
        text.split_once('-').is_some_and(|(colour, number)| {
            ["red", "green", "blue"].contains(&colour)
                && !number.is_empty()
                && number.bytes().all(|byte| byte.is_ascii_digit())
        })
    }),
    ("^#[0-9a-f]{6}$", |text| {
        text.len() == 7
            && text.starts_with('#')
            && text[1..].bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    }),
    ("^x_", |text| text.starts_with("x_")),
    ("^[äöü]{1,3}$", |text| {
        (1..=3).contains(&text.chars().count()) && text.chars().all(|letter| "äöü".contains(letter))
    }),
];

/// Whether all parts between separators have these lengths and digits of this base.
fn parts(text: &str, separator: char, lengths: &[usize], radix: u32) -> bool {
    let parts: Vec<&str> = text.split(separator).collect();
    parts.len() == lengths.len()
        && parts
            .iter()
            .zip(lengths)
            .all(|(part, length)| part.len() == *length && part.chars().all(|digit| digit.is_digit(radix)))
}

fn is_date(text: &str) -> bool {
    let number =
        |range: std::ops::Range<usize>| text.get(range).and_then(|digits| digits.parse::<u32>().ok());
    parts(text, '-', &[4, 2, 2], 10)
        && number(5..7).is_some_and(|month| (1..=12).contains(&month))
        && number(8..10).is_some_and(|day| (1..=31).contains(&day))
}

fn is_of_format(text: &str, format: &str) -> bool {
    match format {
        "date" => is_date(text),
        "time" => text.get(..8).is_some_and(|clock| parts(clock, ':', &[2, 2, 2], 10)),
        "date-time" => text.get(..10).is_some_and(is_date) && text[10..].starts_with(['T', 't', ' ']),
        "uuid" => parts(text, '-', &[8, 4, 4, 4, 12], 16),
        "ipv4" => text.parse::<std::net::Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<std::net::Ipv6Addr>().is_ok(),
        "email" => text.split_once('@').is_some_and(|(name, host)| !name.is_empty() && !host.is_empty()),
        other => panic!("no judge of {other}"),
    }
}

/// Whether `value` is what `schema`, within `root`, describes.
pub(crate) fn is_valid(root: &Value, schema: &Value, value: &Value) -> bool {
    let Value::Object(keywords) = schema else { return schema == &Value::Bool(true) };
    keywords.iter().all(|(keyword, argument)| keeps(root, keywords, (keyword, argument), value))
}

fn keeps(
    root: &Value,
    schema: &Map<String, Value>,
    (keyword, argument): (&str, &Value),
    value: &Value,
) -> bool {
    let list = || argument.as_array().unwrap();
    let valid = |inner: &Value| is_valid(root, inner, value);
    match keyword {
        "type" => {
            let kinds = argument.as_array().map_or(std::slice::from_ref(argument), Vec::as_slice);
            kinds.iter().any(|kind| is_of_type(value, kind.as_str().unwrap()))
        }
        "const" => value == argument,
        "enum" => list().contains(value),
        "anyOf" => list().iter().any(valid),
        "oneOf" => list().iter().filter(|inner| valid(inner)).count() == 1,
        "allOf" => list().iter().all(valid),
        "$ref" => valid(root.pointer(&argument.as_str().unwrap()[1..]).unwrap()),
        "$defs" | "title" | "description" | "$schema" => true,
        _ => match value {
            Value::Number(_) => keeps_number(keyword, argument, value.as_f64().unwrap()),
            Value::String(text) => keeps_string(keyword, argument, text),
            Value::Array(items) => keeps_array(root, schema, (keyword, argument), items),
            Value::Object(fields) => keeps_object(root, schema, (keyword, argument), fields),
            Value::Null | Value::Bool(_) => true,
        },
    }
}

fn is_of_type(value: &Value, kind: &str) -> bool {
    match kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("no judge of {other}"),
    }
}

fn keeps_number(keyword: &str, argument: &Value, number: f64) -> bool {
    let bound = argument.as_f64().unwrap_or(f64::NAN);
    match keyword {
        "minimum" => number >= bound,
        "maximum" => number <= bound,
        "exclusiveMinimum" => number > bound,
        "exclusiveMaximum" => number < bound,
        "multipleOf" => (number / bound).fract() == 0.0,
        _ => true,
    }
}

fn keeps_string(keyword: &str, argument: &Value, text: &str) -> bool {
    let length = text.chars().count() as u64;
    match keyword {
        "minLength" => length >= argument.as_u64().unwrap(),
        "maxLength" => length <= argument.as_u64().unwrap(),
        "pattern" => matches_pattern(argument.as_str().unwrap(), text),
        "format" => is_of_format(text, argument.as_str().unwrap()),
        _ => true,
    }
}

fn matches_pattern(pattern: &str, text: &str) -> bool {
    let judge = PATTERNS.iter().find(|(known, _)| *known == pattern);
    judge.unwrap_or_else(|| panic!("no judge of {pattern}")).1(text)
}

fn keeps_array(
    root: &Value,
    schema: &Map<String, Value>,
    (keyword, argument): (&str, &Value),
    items: &[Value],
) -> bool {
    match keyword {
        "minItems" => items.len() as u64 >= argument.as_u64().unwrap(),
        "maxItems" => items.len() as u64 <= argument.as_u64().unwrap(),
        "prefixItems" => {
            argument.as_array().unwrap().iter().zip(items).all(|(inner, item)| is_valid(root, inner, item))
        }
        "items" => {
            let prefix = schema.get("prefixItems").and_then(Value::as_array).map_or(0, Vec::len);
            items.iter().skip(prefix).all(|item| is_valid(root, argument, item))
        }
        _ => true,
    }
}

fn keeps_object(
    root: &Value,
    schema: &Map<String, Value>,
    (keyword, argument): (&str, &Value),
    fields: &Map<String, Value>,
) -> bool {
    let named = |name: &str| schema.get("properties").and_then(|properties| properties.get(name)).is_some();
    let patterned = |name: &str| {
        let patterns = schema.get("patternProperties").and_then(Value::as_object);
        patterns.is_some_and(|patterns| patterns.keys().any(|pattern| matches_pattern(pattern, name)))
    };
    match keyword {
        "properties" => argument
            .as_object()
            .unwrap()
            .iter()
            .all(|(name, inner)| fields.get(name).is_none_or(|field| is_valid(root, inner, field))),
        "patternProperties" => argument.as_object().unwrap().iter().all(|(pattern, inner)| {
            fields
                .iter()
                .all(|(name, field)| !matches_pattern(pattern, name) || is_valid(root, inner, field))
        }),
        "required" => {
            argument.as_array().unwrap().iter().all(|name| fields.contains_key(name.as_str().unwrap()))
        }
        "additionalProperties" => fields
            .iter()
            .filter(|(name, _)| !named(name) && !patterned(name))
            .all(|(_, field)| is_valid(root, argument, field)),
        "minProperties" => fields.len() as u64 >= argument.as_u64().unwrap(),
        "maxProperties" => fields.len() as u64 <= argument.as_u64().unwrap(),
        _ => true,
    }
}

/// Values that are neither arrays nor objects, by each keyword about them.
fn leaves() -> Vec<Value> {
    let mut leaves = vec![
        json!({"type": "null"}),
        json!({"type": "boolean"}),
        json!({"const": "a \"quoted\" \\ text"}),
        json!({"const": 17}),
        json!({"const": null}),
        json!({"const": {"a": [1, 2], "b": false}}),
        json!({"enum": ["red", "green", "blue"]}),
        json!({"enum": [1, 2.5, "three", null, true]}),
        json!({"enum": ["é", "日本", "\n"]}),
        json!({"type": "string", "enum": ["one", "two"]}),
        json!({"type": ["string", "null"], "maxLength": 5}),
        json!({"type": ["integer", "boolean"], "minimum": 0, "maximum": 9}),
        json!({"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 100}),
        json!({"type": "number", "multipleOf": 0.5, "minimum": 0, "maximum": 10}),
        json!({"type": "number", "minimum": -1.5, "maximum": 1.5}),
        json!({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}),
    ];
    for (low, high) in [(0, 9), (-5, 5), (18, 120), (1000, 2000), (-300, -200), (7, 7), (0, 1_000_000)] {
        leaves.push(json!({"type": "integer", "minimum": low, "maximum": high}));
    }
    leaves.push(json!({"type": "integer", "exclusiveMinimum": 10, "exclusiveMaximum": 20}));
    for (least, most) in [(0, 0), (0, 3), (1, 1), (2, 8), (5, 20)] {
        leaves.push(json!({"type": "string", "minLength": least, "maxLength": most}));
    }
    leaves.extend(
        PATTERNS
            .iter()
            .filter(|(pattern, _)| pattern.ends_with('$'))
            .map(|(pattern, _)| json!({"type": "string", "pattern": pattern})),
    );
    leaves.push(json!({"type": "string", "pattern": "^[a-z]{2,6}$", "minLength": 4, "maxLength": 5}));
    for format in ["date", "time", "date-time", "uuid", "ipv4", "ipv6"] {
        leaves.push(json!({"type": "string", "format": format}));
    }
    leaves
}

/// Ways to put a value, and another one, into a larger one.
fn wrapped(leaf: &Value, other: &Value) -> [Value; 8] {
    let closed = |properties: Value, required: Value| json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false});
    [
        leaf.clone(),
        closed(json!({"value": leaf}), json!(["value"])),
        closed(json!({"value": leaf, "maybe": other}), json!(["value"])),
        json!({"type": "array", "items": leaf, "minItems": 1, "maxItems": 3}),
        json!({"type": "array", "prefixItems": [leaf, other], "items": false, "minItems": 2}),
        json!({"anyOf": [leaf, closed(json!({"other": other}), json!(["other"]))]}),
        json!({"$ref": "#/$defs/outer", "$defs": {
            "outer": closed(json!({"inner": {"$ref": "#/$defs/inner"}}), json!(["inner"])),
            "inner": leaf}}),
        closed(
            json!({"a": closed(json!({"b": closed(json!({"c": leaf}), json!(["c"]))}), json!(["b"]))}),
            json!(["a"]),
        ),
    ]
}

/// At least 300 schemas.
pub(crate) fn all() -> Vec<Value> {
    let leaves = leaves();
    let others = leaves.iter().cycle().skip(7);
    let mut schemas: Vec<Value> =
        leaves.iter().zip(others).flat_map(|(leaf, other)| wrapped(leaf, other)).collect();
    let short = json!({"type": "string", "maxLength": 4});
    schemas.extend([
        json!({"type": "object", "maxProperties": 0}),
        json!({"type": "object", "additionalProperties": {"type": "boolean"}, "minProperties": 0, "maxProperties": 0}),
        json!({"type": "object", "patternProperties": {"^[a-z]{2,6}$": {"type": "integer", "minimum": 0, "maximum": 9}},
               "additionalProperties": false}),
        json!({"allOf": [{"type": "integer", "minimum": 3}, {"type": "integer", "maximum": 8}]}),
        json!({"allOf": [
            {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]},
            {"type": "object", "properties": {"b": {"type": "null"}}, "required": ["b"]},
            {"maxProperties": 2}]}),
        json!({"oneOf": [
            {"type": "object", "properties": {"kind": {"const": "a"}, "x": short}, "required": ["kind", "x"], "additionalProperties": false},
            {"type": "object", "properties": {"kind": {"const": "b"}, "y": {"type": "null"}}, "required": ["kind", "y"], "additionalProperties": false}]}),
        json!({"oneOf": [{"type": "integer", "minimum": 0, "maximum": 9}, {"type": "boolean"}]}),
        json!({"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "object", "properties": {
            "name": short, "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 1}},
            "required": ["name"], "additionalProperties": false}}}),
        json!({"type": "array", "items": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}, "minItems": 2, "maxItems": 3}),
        json!({"type": "array", "maxItems": 0}),
        json!({"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "t", "description": "d", "type": "null"}),
    ]);
    schemas
}
