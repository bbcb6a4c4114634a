//! The document that is served is the committed one, and answers are as it describes them.

mod support;

use std::path::PathBuf;

use lockstep_router::http::openapi::document;
use lockstep_router::shards::fake::FakeModel;
use serde_json::{Value, json};
use support::{Server, config};

/// Set, the committed document is written anew instead of compared.
const UPDATE: &str = "UPDATE_OPENAPI";

fn committed() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/openapi.json")
}

#[test]
fn the_committed_document_is_fresh() {
    let fresh = serde_json::to_string_pretty(&document()).expect("it is JSON") + "\n";
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(committed(), &fresh).expect("the folder is there");
    }
    let found = std::fs::read_to_string(committed()).unwrap_or_default();
    assert!(found == fresh, "docs/openapi.json is stale: run this test with {UPDATE}=1");
}

#[tokio::test]
async fn it_is_served_with_a_page() {
    let server = Server::saying("Hi").await;
    for path in ["/api-doc/openapi.json", "/openapi.json"] {
        let answer = server.get(path).await;
        assert_eq!((answer.status, answer.header("content-type")), (200, "application/json"));
        assert_eq!(answer.json(), document());
    }
    for (path, media_type) in
        [("/docs", "text/html"), ("/docs/style.css", "text/css"), ("/docs/app.js", "text/javascript")]
    {
        let answer = server.get(path).await;
        assert_eq!(answer.status, 200, "{path}");
        assert!(answer.header("content-type").starts_with(media_type), "{path}");
        assert!(
            !answer.text.contains("https://") && !answer.text.contains("http://"),
            "{path} names a host"
        );
    }
}

/// What breaks the schema, as far as the document uses JSON Schema for answers.
fn flaw(schema: &Value, value: &Value) -> Option<String> {
    let root = document();
    check(&root, schema, value).map(|(place, why)| format!("{place}: {why} in {value}"))
}

fn check(root: &Value, schema: &Value, value: &Value) -> Option<(String, String)> {
    if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
        return check(root, &root.pointer(&reference[1..]).expect("it leads somewhere").clone(), value);
    }
    if let Some(variants) = schema.get("anyOf").and_then(Value::as_array) {
        let flaws: Vec<_> = variants.iter().map(|variant| check(root, variant, value)).collect();
        return flaws.iter().all(Option::is_some).then(|| flaws.into_iter().flatten().last()).flatten();
    }
    let failed = |why: String| Some((String::new(), why));
    if schema.get("const").is_some_and(|constant| constant != value) {
        return failed(format!("not {}", schema["const"]));
    }
    if schema.get("enum").and_then(Value::as_array).is_some_and(|values| !values.contains(value)) {
        return failed(format!("not one of {}", schema["enum"]));
    }
    let kinds: Vec<&str> = match schema["type"].as_array() {
        Some(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        None => schema["type"].as_str().into_iter().collect(),
    };
    if !kinds.is_empty() && !kinds.iter().any(|kind| is_a(kind, value)) {
        return failed(format!("no {kinds:?}"));
    }
    match value {
        Value::Object(_) => check_object(root, schema, value),
        Value::Array(items) => items
            .iter()
            .find_map(|item| check(root, &schema["items"], item))
            .map(|(at, why)| (format!("[]{at}"), why)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    }
}

fn check_object(root: &Value, schema: &Value, value: &Value) -> Option<(String, String)> {
    let fields = value.as_object()?;
    let missing = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
    if let Some(name) = missing.clone().find(|name| !fields.contains_key(*name)) {
        return Some((format!("/{name}"), "missing".to_owned()));
    }
    fields.iter().find_map(|(name, field)| match schema["properties"].get(name) {
        Some(schema) => check(root, schema, field).map(|(at, why)| (format!("/{name}{at}"), why)),
        None if schema["additionalProperties"] == false => {
            Some((format!("/{name}"), "not described".to_owned()))
        }
        None => None,
    })
}

fn is_a(kind: &str, value: &Value) -> bool {
    match kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("{other} is no type"),
    }
}

/// The schema of a route's answer or, with streams, of an event.
fn schema(path: &str, method: &str, status: u16, streams: bool) -> Value {
    let document = document();
    let answer = &document["paths"][path][method]["responses"][status.to_string()];
    let answer = match answer.get("$ref").and_then(Value::as_str) {
        Some(reference) => document.pointer(&reference[1..]).expect("it leads somewhere"),
        None => answer,
    };
    match streams {
        true => answer["content"]["text/event-stream"]["schema"]["x-event"].clone(),
        false => answer["content"]["application/json"]["schema"].clone(),
    }
}

fn requests() -> Vec<(&'static str, Value)> {
    let detailed =
        json!({"max_new_tokens": 4, "details": true, "top_n_tokens": 2, "decoder_input_details": true});
    let native = json!({"inputs": "abc", "parameters": detailed});
    let best = json!({"max_new_tokens": 4, "details": true, "best_of": 2, "do_sample": true});
    let best = json!({"inputs": "abc", "parameters": best});
    let messages = json!([{"role": "user", "content": "a"}]);
    let chat = json!({"messages": messages, "max_tokens": 4, "logprobs": true, "top_logprobs": 2});
    let completion = json!({"prompt": "abc", "max_tokens": 4, "logprobs": 2, "echo": true});
    vec![
        ("/generate", native.clone()),
        ("/generate", best),
        ("/", native.clone()),
        ("/invocations", native.clone()),
        ("/invocations", chat.clone()),
        ("/generate", json!({"inputs": ""})),
        ("/v1/chat/completions", chat.clone()),
        ("/v1/chat/completions", json!({"messages": []})),
        ("/v1/completions", completion),
        ("/v1/completions", json!({"prompt": "a", "suffix": "b"})),
        ("/tokenize", native),
        ("/tokenize", json!({"prompt": "abc"})),
        ("/chat_tokenize", chat),
        ("/detokenize", json!({"tokens": [5]})),
        ("/detokenize", json!({})),
    ]
}

#[tokio::test]
async fn answers_are_as_described() {
    let server = Server::start_with(FakeModel::Seeded, config()).await;
    for (path, body) in requests() {
        let reply = server.post(path, body.clone()).await;
        let schema = schema(path, "post", reply.status, false);
        assert!(!schema.is_null(), "{path} {} is not described", reply.status);
        assert_eq!(flaw(&schema, &reply.json()), None, "{path} {body}");
    }
    for path in ["/info", "/v1/models", "/tokenizer_info"] {
        let reply = server.get(path).await;
        assert_eq!(flaw(&schema(path, "get", reply.status, false), &reply.json()), None, "{path}");
    }
}

#[tokio::test]
async fn events_are_as_described() {
    let server = Server::start_with(FakeModel::Seeded, config()).await;
    let native =
        json!({"inputs": "abc", "parameters": {"max_new_tokens": 4, "details": true, "top_n_tokens": 2}});
    let options = json!({"include_usage": true});
    let mut chat =
        json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 4, "logprobs": true});
    chat["stream"] = json!(true);
    chat["stream_options"] = options.clone();
    let completion =
        json!({"prompt": "abc", "max_tokens": 4, "logprobs": 2, "stream": true, "stream_options": options});
    for (path, body) in
        [("/generate_stream", native), ("/v1/chat/completions", chat), ("/v1/completions", completion)]
    {
        let schema = schema(path, "post", 200, true);
        assert!(!schema.is_null(), "{path}");
        let events = server.stream(path, body).await;
        assert!(events.len() > 2, "{path}");
        for event in events.iter().filter(|event| *event != "[DONE]") {
            let event: Value = serde_json::from_str(event).expect("it is JSON");
            assert_eq!(flaw(&schema, &event), None, "{path}");
        }
    }
}

/// The table that checks them finds what is wrong.
#[test]
fn flaws_are_found() {
    let token = json!({"id": 1, "text": "a", "logprob": null, "special": false});
    let schema = json!({"$ref": "#/components/schemas/Token"});
    assert_eq!(flaw(&schema, &token), None);
    for (name, wrong) in
        [("id", json!("1")), ("id", json!(1.5)), ("special", json!(null)), ("other", json!(1))]
    {
        let mut broken = token.clone();
        broken[name] = wrong;
        assert!(flaw(&schema, &broken).is_some(), "{broken}");
    }
    assert!(flaw(&schema, &json!({"id": 1})).is_some());
}
