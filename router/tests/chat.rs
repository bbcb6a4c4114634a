//! `/v1/chat/completions`: shapes, streams, and what is refused.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod support;

use lockstep_router::testing::ids;
use serde_json::{Value, json};
use support::{Server, config};

/// A request of one user message with these fields besides.
fn chat(fields: Value) -> Value {
    let mut body = json!({"model": "any", "messages": [{"role": "user", "content": "Hi"}]});
    for (key, value) in fields.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

/// The same with the parts that differ from run to run checked and blanked.
fn steady(mut body: Value) -> Value {
    assert!(body["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert!(body["created"].as_u64().unwrap() > 1_700_000_000);
    body["id"] = json!("ID");
    body["created"] = json!(0);
    body
}

fn chunks(events: &[String]) -> Vec<Value> {
    let (done, chunks) = events.split_last().unwrap();
    assert_eq!(done, "[DONE]");
    chunks.iter().map(|chunk| steady(serde_json::from_str(chunk).unwrap())).collect()
}

#[tokio::test]
async fn an_answer_has_openais_shape() {
    let server = Server::saying("Hello").await;
    let reply = server.post("/v1/chat/completions", chat(json!({}))).await;
    let fingerprint = format!("lockstep-{}-local-fake", env!("CARGO_PKG_VERSION"));
    let expected = json!({
        "id": "ID", "object": "chat.completion", "created": 0, "model": "any", "system_fingerprint": fingerprint,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "logprobs": null,
                     "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 21, "completion_tokens": 6, "total_tokens": 27,
                  "prompt_tokens_details": {"cached_tokens": 0}}
    });
    assert_eq!(reply.status, 200);
    assert_eq!(steady(reply.json()), expected);
    assert_eq!(reply.header("x-generated-tokens"), "6");
    let again = server.post("/v1/chat/completions", chat(json!({}))).await.json();
    assert_eq!(again["usage"]["prompt_tokens_details"]["cached_tokens"], 20);
}

#[tokio::test]
async fn a_stream_has_openais_chunks() {
    let server = Server::saying("Hi").await;
    let events = server.stream("/v1/chat/completions", chat(json!({"stream": true}))).await;
    let chunks = chunks(&events);
    let choices: Vec<&Value> = chunks.iter().map(|chunk| &chunk["choices"][0]).collect();
    let expected = [
        json!({"index": 0, "delta": {"role": "assistant", "content": "H"}, "logprobs": null, "finish_reason": null}),
        json!({"index": 0, "delta": {"content": "i"}, "logprobs": null, "finish_reason": null}),
        json!({"index": 0, "delta": {}, "logprobs": null, "finish_reason": "stop"}),
    ];
    assert_eq!(choices, expected.iter().collect::<Vec<_>>());
    assert!(
        chunks
            .iter()
            .all(|chunk| chunk.get("usage").is_none() && chunk["object"] == "chat.completion.chunk")
    );
}

#[tokio::test]
async fn usage_comes_when_it_is_asked_for() {
    let server = Server::saying("Hi").await;
    let at_end = chat(json!({"stream": true, "stream_options": {"include_usage": true}}));
    let ended = chunks(&server.stream("/v1/chat/completions", at_end).await);
    let (last, before) = ended.split_last().unwrap();
    assert!(before.iter().all(|chunk| chunk["usage"] == Value::Null && chunk.get("usage").is_some()));
    assert_eq!((&last["choices"], &last["usage"]["completion_tokens"]), (&json!([]), &json!(3)));
    let options = json!({"include_usage": true, "continuous_usage_stats": true});
    let always = chunks(
        &server
            .stream("/v1/chat/completions", chat(json!({"stream": true, "stream_options": options})))
            .await,
    );
    let counts: Vec<&Value> = always.iter().map(|chunk| &chunk["usage"]["completion_tokens"]).collect();
    assert_eq!(counts, [1, 2, 3, 3]);
}

#[tokio::test]
async fn stop_texts_are_cut_and_never_shown() {
    let server = Server::answering(&[97, 69, 78, 98, ids::END_MARK, ids::IM_END]).await;
    for stop in [json!("END"), json!(["ENDE", "END"])] {
        let whole = server.post("/v1/chat/completions", chat(json!({"stop": stop}))).await.json();
        assert_eq!(whole["choices"][0]["message"]["content"], "aENb");
        assert_eq!(whole["choices"][0]["finish_reason"], "stop");
        let events =
            server.stream("/v1/chat/completions", chat(json!({"stop": stop, "stream": true}))).await;
        let deltas: Vec<Value> =
            chunks(&events).iter().map(|chunk| chunk["choices"][0]["delta"]["content"].clone()).collect();
        assert_eq!(deltas, [json!("a"), json!("ENb"), Value::Null]);
    }
}

#[tokio::test]
async fn logprobs_name_tokens_and_bytes() {
    let server = Server::saying("é").await;
    let body = chat(json!({"logprobs": true, "top_logprobs": 2}));
    let reply = server.post("/v1/chat/completions", body).await.json();
    let entry = |byte: u8| {
        let token = String::from_utf8_lossy(&[byte]).into_owned();
        let rival = String::from_utf8_lossy(&[byte + 1]).into_owned();
        json!({"token": token, "logprob": -0.5, "bytes": [byte], "top_logprobs": [
            {"token": token, "logprob": -0.5, "bytes": [byte]},
            {"token": rival, "logprob": -1.5, "bytes": [byte + 1]}]})
    };
    let content = json!([entry(0xC3), entry(0xA9)]);
    assert_eq!(reply["choices"][0]["logprobs"], json!({"content": content}));
    let streamed = server
        .stream("/v1/chat/completions", chat(json!({"logprobs": true, "top_logprobs": 2, "stream": true})))
        .await;
    let pieces: Vec<Value> = chunks(&streamed)
        .iter()
        .flat_map(|chunk| {
            chunk["choices"][0]["logprobs"]["content"].as_array().cloned().unwrap_or_default()
        })
        .collect();
    assert_eq!(json!(pieces), content);
}

#[tokio::test]
async fn length_is_called_length() {
    let server = Server::saying("Hello").await;
    for field in ["max_tokens", "max_completion_tokens"] {
        let reply = server.post("/v1/chat/completions", chat(json!({field: 2}))).await.json();
        let choice = &reply["choices"][0];
        assert_eq!(
            (&choice["message"]["content"], &choice["finish_reason"]),
            (&json!("He"), &json!("length"))
        );
    }
}

#[tokio::test]
async fn content_comes_as_text_or_as_parts() {
    let server = Server::saying("Hi").await;
    let parts = json!([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]);
    let rendered = server.post("/chat_tokenize", json!({"messages": parts})).await.json();
    assert_eq!(rendered["templated_text"], "<|im_start|>user\nab<|im_end|>\n<|im_start|>assistant\n");
    assert_eq!(
        rendered["tokenize_response"][0],
        json!({"id": 256, "text": "<|im_start|>", "start": 0, "stop": 12})
    );
    let begun = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "Once"}]);
    let rendered = server.post("/chat_tokenize", json!({"messages": begun})).await.json();
    assert!(rendered["templated_text"].as_str().unwrap().ends_with("assistant\nOnce"));
}

#[tokio::test]
async fn neutral_values_pass() {
    let server = Server::saying("Hi").await;
    let neutral = chat(json!({
        "n": 1, "tools": null, "tool_choice": "auto", "response_format": {"type": "text"}, "logit_bias": {},
        "parallel_tool_calls": true, "user": "u", "metadata": {"a": "b"}, "store": false, "modalities": ["text"],
        "service_tier": "auto", "top_p": 1.0, "temperature": 0, "presence_penalty": 0, "frequency_penalty": 0,
        "stop": null, "seed": u64::MAX, "max_retries": 0, "structured_outputs": null, "logprobs": false
    }));
    let reply = server.post("/v1/chat/completions", neutral).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
}

#[tokio::test]
async fn what_is_not_served_is_refused_by_name() {
    let server = Server::saying("Hi").await;
    let cases = [
        ("functions", json!([{"name": "f"}])),
        ("audio", json!({})),
        ("prediction", json!({})),
        ("store", json!(true)),
        ("reasoning_effort", json!("high")),
    ];
    for (field, value) in cases {
        let reply = server.post("/v1/chat/completions", chat(json!({field: value}))).await;
        let error = reply.json();
        assert_eq!((reply.status, &error["error"]["param"]), (422, &json!(field)), "{error}");
        assert_eq!(
            error["error"]["message"],
            format!("Input validation error: `{field}` is not supported")
        );
    }
    let adapter = server.post("/v1/chat/completions", chat(json!({"adapter_id": "a"}))).await;
    assert_eq!(adapter.status, 404);
}

#[tokio::test]
async fn errors_speak_openais_words() {
    let server = Server::saying("Hi").await;
    let cases = [
        (json!({"max_tokens": 0}), "max_tokens", "`max_tokens` must be strictly positive"),
        (
            json!({"logprobs": true, "top_logprobs": 9}),
            "top_logprobs",
            "`top_logprobs` must be >= 0 and <= 5. Given: 9",
        ),
        (json!({"top_logprobs": 1}), "top_logprobs", "`top_logprobs` needs `logprobs` to be true"),
        (json!({"messages": []}), "messages", "`messages` cannot be empty"),
        (json!({"messages": [{"content": "a"}]}), "messages", "each of `messages` needs a `role`"),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a"}}]}]}),
            "messages",
            "image_url modality is not supported",
        ),
        (json!({"stop": 7}), "stop", "`stop` must be a string or a list of strings"),
        (json!({"temperature": -1}), "temperature", "`temperature` must be strictly positive"),
    ];
    for (fields, param, message) in cases {
        let reply = server.post("/v1/chat/completions", chat(fields)).await;
        let expected = format!("Input validation error: {message}");
        let body = json!({
            "error": {"message": expected, "type": "invalid_request_error", "param": param, "code": "validation"},
            "error_type": "validation"
        });
        assert_eq!((reply.status, reply.json()), (422, body));
        assert_eq!(reply.header("x-error-message"), expected);
    }
}

#[tokio::test]
async fn a_model_without_template_says_so() {
    let mut model = support::model();
    model.template = None;
    let server = Server::loading(lockstep_router::shards::fake::FakeModel::Hash, config(), model);
    server.control.come_back();
    server.app.wait_until_ready().await.unwrap();
    let reply = server.post("/v1/chat/completions", chat(json!({}))).await;
    assert_eq!((reply.status, &reply.json()["error_type"]), (422, &json!("template_error")));
}
