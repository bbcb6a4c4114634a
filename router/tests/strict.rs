//! `--strict`: fields that no interface has are refused by name, wherever they stand; without it they pass.

mod support;

use lockstep_router::app::AppConfig;
use lockstep_router::http::fields::UnknownFields;
use lockstep_router::shards::fake::FakeModel;
use serde_json::{Value, json};
use support::{Server, config};

async fn server(unknown_fields: UnknownFields) -> Server {
    Server::start_with(FakeModel::Seeded, AppConfig { unknown_fields, ..config() }).await
}

/// A request that every route takes.
fn body(path: &str) -> Value {
    match path {
        "/v1/chat/completions" | "/chat_tokenize" => {
            json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 4})
        }
        "/v1/completions" => json!({"prompt": "a", "max_tokens": 4}),
        "/detokenize" => json!({"tokens": [1]}),
        _ => json!({"inputs": "a", "parameters": {"max_new_tokens": 4}}),
    }
}

/// Route, where the field stands, the objects it stands in, its name in the message.
fn cases() -> Vec<(&'static str, &'static str, Value, &'static str)> {
    let schema = json!({"type": "object"});
    let openai_format = json!({"type": "json_schema", "json_schema": {"name": "a", "schema": schema}});
    vec![
        ("/generate", "", json!({}), "odd"),
        ("/generate", "/parameters", json!({}), "parameters.odd"),
        (
            "/generate",
            "/parameters/grammar",
            json!({"parameters": {"grammar": {"type": "regex", "value": "[b-f]{3}"}}}),
            "parameters.grammar.odd",
        ),
        ("/generate_stream", "/parameters", json!({}), "parameters.odd"),
        ("/", "/parameters", json!({}), "parameters.odd"),
        ("/tokenize", "", json!({}), "odd"),
        ("/detokenize", "", json!({}), "odd"),
        ("/chat_tokenize", "", json!({}), "odd"),
        ("/v1/completions", "", json!({}), "odd"),
        ("/v1/completions", "/stream_options", json!({"stream_options": {}}), "stream_options.odd"),
        ("/v1/chat/completions", "", json!({}), "odd"),
        ("/v1/chat/completions", "/stream_options", json!({"stream_options": {}}), "stream_options.odd"),
        (
            "/v1/chat/completions",
            "/response_format",
            json!({"response_format": {"type": "text"}}),
            "response_format.odd",
        ),
        (
            "/v1/chat/completions",
            "/response_format",
            json!({"response_format": {"type": "json_object"}}),
            "response_format.odd",
        ),
        (
            "/v1/chat/completions",
            "/response_format/json_schema",
            json!({"response_format": openai_format}),
            "response_format.json_schema.odd",
        ),
        (
            "/v1/chat/completions",
            "/structured_outputs",
            json!({"structured_outputs": {"regex": "[b-f]{3}"}}),
            "structured_outputs.odd",
        ),
    ]
}

fn with(path: &str, place: &str, objects: &Value, value: Value) -> Value {
    let mut body = body(path);
    for (name, object) in objects.as_object().into_iter().flatten() {
        match body[name].as_object_mut() {
            Some(fields) => {
                fields.extend(object.as_object().into_iter().flatten().map(|(k, v)| (k.clone(), v.clone())))
            }
            None => body[name] = object.clone(),
        }
    }
    let fields = body.pointer_mut(place).and_then(Value::as_object_mut);
    fields.expect("the place is there").insert("odd".to_owned(), value);
    body
}

#[tokio::test]
async fn unknown_fields_are_refused_by_name() {
    let strict = server(UnknownFields::Refuse).await;
    let usual = server(UnknownFields::Ignore).await;
    for (path, place, objects, name) in cases() {
        let refused = strict.post(path, with(path, place, &objects, json!(1))).await;
        assert_eq!(refused.status, 422, "{path} {name}: {}", refused.text);
        let expected =
            format!("Input validation error: unknown field `{name}`; this server runs with --strict");
        let answer = refused.json();
        if path.starts_with("/v1/") {
            assert_eq!(answer["error"]["message"], expected, "{path}");
            assert_eq!(answer["error"]["param"], name, "{path}");
        } else {
            assert_eq!(answer, json!({"error": expected, "error_type": "validation"}), "{path}");
        }
        for (server, value) in [(&strict, Value::Null), (&usual, json!(1)), (&usual, Value::Null)] {
            let taken = server.post(path, with(path, place, &objects, value)).await;
            assert_eq!(taken.status, 200, "{path} {name}: {}", taken.text);
        }
    }
}

/// What every client of these interfaces may send passes: marks for the operator, notes on a schema.
#[tokio::test]
async fn known_fields_that_change_nothing_pass() {
    let server = server(UnknownFields::Refuse).await;
    let format = json!({"type": "json_schema", "json_schema": {"name": "a", "description": "b", "strict": true, "schema": {"type": "boolean"}}});
    let fields = json!({
        "user": "a", "metadata": {"a": "b"}, "safety_identifier": "a", "prompt_cache_key": "a",
        "parallel_tool_calls": true, "tools": [], "stream_options": {"include_obfuscation": false},
        "response_format": format, "model": "tgi",
    });
    let mut body = body("/v1/chat/completions");
    body.as_object_mut().expect("an object").extend(fields.as_object().cloned().unwrap_or_default());
    let answer = server.post("/v1/chat/completions", body).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
}

#[tokio::test]
async fn a_model_that_is_not_served_is_refused() {
    let strict = server(UnknownFields::Refuse).await;
    let usual = server(UnknownFields::Ignore).await;
    for path in ["/v1/completions", "/v1/chat/completions", "/invocations"] {
        let mut body = match path {
            "/invocations" => body("/v1/completions"),
            path => body(path),
        };
        body["model"] = json!("gpt-4o");
        let refused = strict.post(path, body.clone()).await;
        assert_eq!(refused.status, 404, "{path}: {}", refused.text);
        let error = &refused.json()["error"];
        assert_eq!(error["message"], "The model gpt-4o is not served; test/model is");
        assert_eq!((&error["code"], &error["param"]), (&json!("model_not_found"), &json!("model")));
        let echoed = usual.post(path, body.clone()).await;
        assert_eq!((echoed.status, &echoed.json()["model"]), (200, &json!("gpt-4o")));
        body["model"] = json!("test/model");
        assert_eq!(strict.post(path, body).await.json()["model"], "test/model");
    }
}
