//! What a client gets when something is wrong: status, body, headers.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod support;

use axum::body::Body;
use axum::http::Request;
use lockstep_router::error::{ALL_KINDS, ApiError, Family};
use lockstep_router::shards::fake::FakeModel;
use serde_json::json;
use support::{Server, config, model};

fn request(method: &str, path: &str, content_type: &str, body: &str) -> Request<Body> {
    let builder = Request::builder().method(method).uri(path).header("content-type", content_type);
    builder.body(Body::from(body.to_owned())).unwrap()
}

/// Statuses and tags clients know; a change here breaks them.
#[test]
fn every_kind_has_its_status_type_and_label() {
    let table: Vec<String> = ALL_KINDS
        .iter()
        .map(|kind| {
            format!("{:?} {} {} {} {}", kind, kind.status(), kind.error_type(), kind.metric(), kind.level())
        })
        .collect();
    let expected = [
        "Validation 422 validation validation INFO",
        "BatchSize 422 batch size exceeded validation INFO",
        "Suffix 422 suffix not supported validation INFO",
        "MalformedBody 400 malformed_json validation INFO",
        "MediaType 415 unsupported_media_type validation INFO",
        "TooLarge 413 payload_too_large validation INFO",
        "SlowBody 408 slow_body validation INFO",
        "Template 422 template_error template INFO",
        "TemplateVariable 422 missing_template_variable template INFO",
        "NotFound 404 not_found validation INFO",
        "ModelNotFound 404 model_not_found validation INFO",
        "MethodNotAllowed 405 method_not_allowed validation INFO",
        "Overloaded 429 overloaded overloaded WARN",
        "Timeout 504 timeout timeout WARN",
        "Unauthorized 401 unauthorized unauthorized INFO",
        "Loading 503 loading unavailable INFO",
        "GroupLost 503 group_lost unavailable ERROR",
        "Draining 503 shutting_down unavailable INFO",
        "Unhealthy 503 healthcheck unavailable DEBUG",
        "Generation 424 generation generation ERROR",
        "Incomplete 500 incomplete_generation incomplete ERROR",
        "IncompleteStream 500 incomplete_generation_stream incomplete ERROR",
        "Cancelled 409 cancelled dropped INFO",
        "Internal 500 internal internal ERROR",
    ];
    assert_eq!(table, expected);
}

#[test]
fn every_kind_has_both_families_shapes() {
    for kind in ALL_KINDS {
        let error = ApiError::new(kind, "Words");
        let error_type = kind.error_type();
        assert_eq!(error.body(Family::Native), json!({"error": "Words", "error_type": error_type}));
        let openai = error.body(Family::OpenAi);
        assert_eq!(openai["error_type"], error_type);
        assert_eq!(openai["error"]["message"], "Words");
        assert_eq!(
            (&openai["error"]["param"], &openai["error"]["code"]),
            (&json!(null), &json!(error_type))
        );
        assert!(openai["error"]["type"].is_string());
    }
}

#[tokio::test]
async fn bodies_that_cannot_be_read_have_the_familys_shape() {
    let server = Server::saying("Hi").await;
    let large = format!("{{\"inputs\": \"{}\"}}", "a".repeat(30_000));
    let json_type = "application/json";
    let cases = [
        ("POST", "/generate", json_type, "{", 400, "malformed_json"),
        ("POST", "/generate", json_type, "[1]", 400, "malformed_json"),
        ("POST", "/generate", "text/plain", "{}", 415, "unsupported_media_type"),
        ("POST", "/generate", json_type, large.as_str(), 413, "payload_too_large"),
        ("GET", "/generate", json_type, "", 405, "method_not_allowed"),
        ("POST", "/nowhere", json_type, "{}", 404, "not_found"),
        ("POST", "/generate", json_type, "{}", 422, "validation"),
        ("POST", "/generate_stream", json_type, r#"{"inputs": 7}"#, 422, "validation"),
    ];
    for (method, path, content_type, body, status, error_type) in cases {
        let native = server.send(request(method, path, content_type, body)).await;
        assert_eq!(
            (native.status, &native.json()["error_type"]),
            (status, &json!(error_type)),
            "{method} {path}"
        );
        assert!(native.json()["error"].is_string());
        assert!(!native.header("x-request-id").is_empty());
    }
    for (method, path, content_type, body, status, error_type) in cases {
        let path = if path == "/nowhere" { "/v1/nowhere" } else { "/v1/chat/completions" };
        let openai = server.send(request(method, path, content_type, body)).await;
        assert_eq!(
            (openai.status, &openai.json()["error"]["code"]),
            (status, &json!(error_type)),
            "{method} {path}"
        );
        assert!(!openai.header("x-error-message").is_empty());
    }
}

#[tokio::test]
async fn validation_errors_are_statuses_on_streams_too() {
    let server = Server::saying("Hi").await;
    let cases = [
        (json!({"temperature": 0}), "`temperature` must be strictly positive"),
        (json!({"temperature": 1e39}), "`temperature` must be finite in 32 bits"),
        (json!({"repetition_penalty": 1e39}), "`repetition_penalty` must be finite in 32 bits"),
        (json!({"top_p": "a"}), "`top_p`: invalid type: string \"a\", expected f32"),
        (json!({"stop": ["a", "b", "c", "d", "e"]}), "`stop` supports up to 4 stop sequences. Given: 5"),
        (json!({"stop": [""]}), "`stop` sequences cannot be empty"),
        (json!({"best_of": 2}), "`best_of` != 1 is not supported when streaming tokens"),
        (
            json!({"decoder_input_details": true}),
            "`decoder_input_details` == true is not supported when streaming tokens",
        ),
        (json!({"watermark": "a"}), "`watermark` must be a boolean, or an object of `gamma` and `delta`"),
        (json!({"grammar": {"type": "regex"}}), "`grammar` needs a `value`"),
        (
            json!({"max_new_tokens": 500}),
            "`inputs` tokens + `max_new_tokens` must be <= 200. Given: 1 `inputs` tokens and 500 `max_new_tokens`",
        ),
    ];
    for (parameters, message) in cases {
        let reply = server.post("/generate_stream", json!({"inputs": "a", "parameters": parameters})).await;
        let expected =
            json!({"error": format!("Input validation error: {message}"), "error_type": "validation"});
        assert_eq!((reply.status, reply.json()), (422, expected));
    }
    assert!(server.metric("tgi_request_failure{err=\"validation\"}").await >= 9.0);
}

#[tokio::test]
async fn whole_answers_check_best_of_first() {
    let server = Server::saying("Hi").await;
    let cases = [
        (json!({"best_of": 3, "temperature": -1}), "`best_of` must be > 0 and <= 2. Given: 3"),
        (json!({"best_of": 0}), "`best_of` must be > 0 and <= 2. Given: 0"),
        (json!({"best_of": 2}), "you must use sampling when `best_of` is > 1"),
        (json!({"best_of": 2, "top_p": 1.0}), "you must use sampling when `best_of` is > 1"),
    ];
    for (parameters, message) in cases {
        let reply = server.post("/generate", json!({"inputs": "a", "parameters": parameters})).await;
        assert_eq!(reply.json()["error"], format!("Input validation error: {message}"));
    }
    let adapter = server.post("/generate", json!({"inputs": "a", "parameters": {"adapter_id": "x"}})).await;
    assert_eq!((adapter.status, &adapter.json()["error"]), (404, &json!("The adapter x is not loaded")));
}

#[tokio::test]
async fn a_loading_model_says_when_to_come_back() {
    let server = Server::loading(FakeModel::Hash, config(), model());
    for path in ["/generate", "/generate_stream", "/"] {
        let reply = server.post(path, json!({"inputs": "a"})).await;
        assert_eq!(reply.status, 503);
        let body = reply.json();
        assert_eq!(body["error"], "Model test/model is currently loading");
        assert_eq!(body["error_type"], "loading");
        assert!(body["estimated_time"].as_f64().unwrap() >= 1.0);
        assert!(reply.header("retry-after").parse::<u32>().unwrap() >= 1);
    }
    for (probe, status) in
        [("/health", 503), ("/readyz", 503), ("/startupz", 503), ("/livez", 200), ("/", 503)]
    {
        assert_eq!(server.get(probe).await.status, status, "{probe}");
    }
    let unhealthy = server.get("/health").await.json();
    assert_eq!(unhealthy, json!({"error": "unhealthy", "error_type": "healthcheck"}));
    assert_eq!(server.get("/info").await.json()["max_total_tokens"], 200);
    server.control.come_back();
    server.app.wait_until_ready().await.unwrap();
    for probe in ["/health", "/readyz", "/startupz", "/livez", "/", "/ping"] {
        let reply = server.get(probe).await;
        assert_eq!((reply.status, reply.text.as_str()), (200, ""), "{probe}");
    }
}

#[tokio::test]
async fn a_request_may_wait_for_the_model() {
    let server = Server::loading(FakeModel::Hash, config(), model());
    let mut request =
        support::post("/generate", &json!({"inputs": "a", "parameters": {"max_new_tokens": 2}}));
    request.headers_mut().insert("x-wait-for-model", "true".parse().unwrap());
    let mut hurried = support::post("/generate", &json!({"inputs": "a"}));
    hurried.headers_mut().insert("x-wait-for-model", "true".parse().unwrap());
    hurried.headers_mut().insert("x-request-timeout", "0.02".parse().unwrap());
    assert_eq!(server.send(hurried).await.status, 504, "a deadline holds while the model is waited for");
    let (reply, ()) = futures::join!(server.send(request), async { server.control.come_back() });
    assert_eq!(reply.status, 200, "{}", reply.text);
}

#[tokio::test]
async fn a_shards_failure_is_424_and_an_event_in_a_stream() {
    let server = Server::saying("Hi").await;
    server.control.fail_next("no logits");
    let reply = server.post("/generate", json!({"inputs": "a"})).await;
    let expected =
        json!({"error": "Request failed during generation: no logits", "error_type": "generation"});
    assert_eq!((reply.status, reply.json()), (424, expected.clone()));
    server.control.fail_next("no logits");
    let events = server.stream("/generate_stream", json!({"inputs": "a"})).await;
    assert_eq!(events, [expected.to_string()]);
    server.control.fail_next("no logits");
    let body = json!({"messages": [{"role": "user", "content": "a"}], "stream": true});
    let events = server.stream("/v1/chat/completions", body).await;
    assert_eq!(events.len(), 1);
    let error: serde_json::Value = serde_json::from_str(&events[0]).unwrap();
    assert_eq!(
        (&error["error"]["code"], &error["error_type"]),
        (&json!("generation"), &json!("generation"))
    );
    assert_eq!(server.metric("tgi_request_failure{err=\"generation\"}").await, 3.0);
}

#[tokio::test]
async fn responses_carry_the_clients_request_id() {
    let server = Server::saying("Hi").await;
    let mut request = support::post("/generate", &json!({"inputs": "a"}));
    request.headers_mut().insert("x-request-id", "mine".parse().unwrap());
    assert_eq!(server.send(request).await.header("x-request-id"), "mine");
    let (one, two) = (server.get("/info").await, server.get("/info").await);
    assert_ne!(one.header("x-request-id"), two.header("x-request-id"));
}

#[tokio::test]
async fn tokens_beyond_the_model_are_refused_by_name() {
    // The tokenizer knows more ids than the model has rows.
    let server = Server::loading_rows(FakeModel::Hash, config(), model(), 100);
    server.control.come_back();
    server.app.wait_until_ready().await.unwrap();
    let reply = server.post("/generate", json!({"inputs": "ad"})).await;
    let message = "Input validation error: `inputs` has token 100, the model's ids end before 100";
    assert_eq!((reply.status, reply.json()), (422, json!({"error": message, "error_type": "validation"})));
    let biased = json!({"messages": [{"role": "user", "content": "a"}], "logit_bias": {"100": 1}});
    let reply = server.post("/v1/chat/completions", biased).await;
    assert_eq!(reply.status, 422);
    assert!(reply.text.contains("`logit_bias` names token 100, ids end before 100"), "{}", reply.text);
    let body = json!({"inputs": "ac", "parameters": {"max_new_tokens": 3}});
    assert_eq!(server.post("/generate", body).await.status, 200);
}

#[tokio::test]
async fn a_wrong_method_is_told_the_right_one() {
    let server = Server::saying("Hi").await;
    let reply = server.get("/generate").await;
    assert_eq!((reply.status, reply.header("allow")), (405, "POST"));
    assert_eq!(reply.json()["error_type"], "method_not_allowed");
}

/// Whatever the field: it is not followed down.
#[tokio::test]
async fn a_body_that_is_nested_too_deep_is_refused() {
    let server = Server::start_with(FakeModel::Hash, config()).await;
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        for depth in [200, 2_000] {
            let nested = format!("{}1{}", open.repeat(depth), close.repeat(depth));
            for path in ["/generate", "/", "/v1/chat/completions", "/v1/completions", "/tokenize"] {
                let body = format!("{{\"inputs\":\"a\",\"prompt\":\"a\",\"metadata\":{nested}}}");
                let request =
                    Request::post(path).header("content-type", "application/json").body(Body::from(body));
                let reply = server.send(request.unwrap()).await;
                assert_eq!(reply.status, 400, "{path}: {}", reply.text);
                assert!(reply.text.contains("recursion limit"), "{path}: {}", reply.text);
            }
        }
    }
}

/// What every event of a stream repeats is short.
#[tokio::test]
async fn the_name_of_a_model_is_bounded() {
    let server = Server::saying("Hi").await;
    let chat = |model: &str| json!({"messages": [{"role": "user", "content": "a"}], "model": model});
    let completion = |model: &str| json!({"prompt": "a", "model": model});
    for (path, body) in [
        ("/v1/chat/completions", &chat as &dyn Fn(&str) -> serde_json::Value),
        ("/v1/completions", &completion),
        ("/invocations", &chat),
        ("/invocations", &completion),
    ] {
        let taken = server.post(path, body(&"m".repeat(256))).await;
        assert_eq!((taken.status, &taken.json()["model"]), (200, &json!("m".repeat(256))), "{path}");
        let refused = server.post(path, body(&"m".repeat(257))).await;
        let error = &refused.json()["error"];
        assert_eq!((refused.status, &error["param"]), (422, &json!("model")), "{path}");
        assert_eq!(
            error["message"],
            "Input validation error: `model` must have at most 256 bytes. Given: 257"
        );
    }
}

#[tokio::test]
async fn errors_repeat_no_more_of_a_request_than_tells_it_apart() {
    let server = Server::saying("Hi").await;
    let long = "m".repeat(10_000);
    for (method, path) in [
        ("GET", format!("/{long}")),
        ("GET", format!("/v1/{long}")),
        ("GET", format!("/v1/models/{long}")),
        ("POST", format!("/models/{long}")),
        ("PUT", format!("/v1/models/{long}")),
        ("DELETE", format!("/requests/{long}")),
    ] {
        let reply = server.send(request(method, &path, "application/json", r#"{"inputs": "a"}"#)).await;
        assert!([404, 405].contains(&reply.status), "{method}: {}", reply.status);
        assert!(reply.text.len() < 700 && reply.text.contains("mmm..."), "{method}: {}", reply.text);
    }
    let adapter = json!({"inputs": "a", "parameters": {"adapter_id": long}});
    let reply = server.post("/generate", adapter).await;
    assert!(reply.status == 404 && reply.text.len() < 700, "{}", reply.text);
}

/// Before anything is made of its bytes, which may be JSON or not.
#[tokio::test]
async fn bodies_that_are_encoded_are_refused() {
    let server = Server::saying("Hi").await;
    let sent = async |path: &str, encoding: &str| {
        let mut sent = request("POST", path, "application/json", r#"{"inputs": "a", "prompt": "a"}"#);
        sent.headers_mut().insert("content-encoding", encoding.parse().unwrap());
        server.send(sent).await
    };
    for path in ["/generate", "/v1/completions", "/tokenize"] {
        for encoding in ["gzip", "br", "identity, gzip"] {
            let refused = sent(path, encoding).await;
            assert_eq!(
                (refused.status, &refused.json()["error_type"]),
                (415, &json!("unsupported_media_type"))
            );
            let message =
                format!("Expected a body without `Content-Encoding`, as it is. Given: {encoding}");
            assert!(refused.text.contains(&message), "{}", refused.text);
        }
        assert_eq!(sent(path, "Identity").await.status, 200, "{path}");
    }
}
