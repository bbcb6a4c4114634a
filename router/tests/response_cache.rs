//! `x-use-cache`: what is known is sent again, and only that.

mod support;

use lockstep_router::app::{AppConfig, KeptAnswers};
use lockstep_router::shards::fake::FakeModel;
use serde_json::{Value, json};
use support::{Reply, Server, config, post};

async fn caching() -> Server {
    Server::start_with(
        FakeModel::Hash,
        AppConfig { kept: KeptAnswers { response_cache_bytes: 1 << 20, journal: None }, ..config() },
    )
    .await
}

fn steps(page: &str) -> f64 {
    let counts = page.lines().filter(|line| line.starts_with("tgi_batch_inference_count"));
    counts.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

async fn twice(server: &Server, path: &str, body: &Value) -> (Reply, Reply, f64) {
    let first = server.post(path, body.clone()).await;
    let before = steps(&server.get("/metrics").await.text);
    let second = server.post(path, body.clone()).await;
    let computed = steps(&server.get("/metrics").await.text) - before;
    (first, second, computed)
}

#[tokio::test]
async fn greedy_and_seeded_requests_are_answered_again() {
    let server = caching().await;
    let cases = [
        ("/generate", json!({"inputs": "a", "parameters": {"max_new_tokens": 4, "details": true}})),
        ("/generate_stream", json!({"inputs": "a", "parameters": {"max_new_tokens": 4}})),
        ("/", json!({"inputs": "a", "parameters": {"max_new_tokens": 4}, "stream": true})),
        (
            "/generate",
            json!({"inputs": "a", "parameters": {"max_new_tokens": 4, "do_sample": true, "seed": 7}}),
        ),
    ];
    for (path, body) in cases {
        let (first, second, computed) = twice(&server, path, &body).await;
        assert_eq!((first.status, first.header("x-cache")), (200, "miss"), "{path} {body}");
        assert_eq!((second.status, second.header("x-cache")), (200, "hit"), "{path} {body}");
        assert_eq!(first.text, second.text);
        assert_eq!(computed, 0.0, "no step is computed");
        assert_eq!(first.header("content-type"), second.header("content-type"));
        assert_eq!(first.header("x-generated-tokens"), second.header("x-generated-tokens"));
        assert_ne!(first.header("x-request-id"), second.header("x-request-id"));
    }
    assert_eq!(server.metric("lockstep_response_cache_hits_total").await, 4.0);
}

#[tokio::test]
async fn schemas_that_differ_in_order_are_different_requests() {
    let server = caching().await;
    let asking = |properties: &str| -> Value {
        let schema: Value = serde_json::from_str(properties).expect("it is JSON");
        let grammar = json!({"type": "json", "value": {"type": "object", "properties": schema}});
        json!({"inputs": "a", "parameters": {"max_new_tokens": 4, "grammar": grammar}})
    };
    for properties in [r#"{"a": {"type": "null"}, "b": {}}"#, r#"{"b": {}, "a": {"type": "null"}}"#] {
        let (first, second, _) = twice(&server, "/generate", &asking(properties)).await;
        assert_eq!((first.status, first.header("x-cache")), (200, "miss"), "{}", first.text);
        assert_eq!(second.header("x-cache"), "hit");
    }
}

#[tokio::test]
async fn openai_answers_get_an_id_of_their_own() {
    let server = caching().await;
    for stream in [false, true] {
        let body = json!({
            "messages": [{"role": "user", "content": "a"}], "seed": 3, "max_tokens": 4, "stream": stream,
        });
        let (first, second, computed) = twice(&server, "/v1/chat/completions", &body).await;
        assert_eq!((first.header("x-cache"), second.header("x-cache")), ("miss", "hit"));
        let id = |reply: &Reply| reply.text.split("\"id\":\"").nth(1).unwrap()[..41].to_owned();
        assert_ne!(id(&first), id(&second));
        assert_eq!(first.text.replace(&id(&first), &id(&second)), second.text);
        assert_eq!(computed, 0.0);
    }
}

#[tokio::test]
async fn what_may_differ_is_computed() {
    let server = caching().await;
    let sampled = json!({"inputs": "a", "parameters": {"max_new_tokens": 4, "do_sample": true}});
    let (first, second, computed) = twice(&server, "/generate", &sampled).await;
    assert_eq!((first.header("x-cache"), second.header("x-cache")), ("bypass", "bypass"));
    assert!(computed > 0.0);
    let greedy = json!({"inputs": "a", "parameters": {"max_new_tokens": 4}});
    assert_eq!(server.post("/generate", greedy.clone()).await.header("x-cache"), "miss");
    let mut declined = post("/generate", &greedy);
    declined.headers_mut().insert("x-use-cache", "false".parse().unwrap());
    assert_eq!(server.send(declined).await.header("x-cache"), "bypass");
    let mut other = post("/generate", &greedy);
    other.headers_mut().insert("x-tenant", "other".parse().unwrap());
    assert_eq!(server.send(other).await.header("x-cache"), "miss", "tenants do not share answers");
    assert_eq!(server.post("/generate", greedy).await.header("x-cache"), "hit");
}

#[tokio::test]
async fn errors_are_not_kept() {
    let server = caching().await;
    for path in ["/generate", "/generate_stream"] {
        let body = json!({"inputs": "a", "parameters": {"max_new_tokens": 3}});
        server.control.fail_next("no logits");
        let failed = server.post(path, body.clone()).await;
        assert!(failed.text.contains("no logits"));
        let again = server.post(path, body.clone()).await;
        assert_eq!((again.status, again.header("x-cache")), (200, "miss"), "{path}: {}", again.text);
        assert!(!again.text.contains("no logits"));
        assert_eq!(server.post(path, body).await.header("x-cache"), "hit");
    }
    let refused = json!({"inputs": "", "parameters": {"max_new_tokens": 3}});
    for _ in 0..2 {
        let reply = server.post("/generate", refused.clone()).await;
        assert_eq!((reply.status, reply.header("x-cache")), (422, "miss"));
    }
}

/// Whoever has another key learns nothing of an answer, whatever tenant it names.
#[tokio::test]
async fn answers_are_kept_for_the_key_that_asked() {
    let mut config =
        AppConfig { kept: KeptAnswers { response_cache_bytes: 1 << 20, journal: None }, ..config() };
    config.access.keys = ["ann:1".parse().unwrap(), "ben:2".parse().unwrap()].to_vec();
    let server = Server::start_with(FakeModel::Hash, config).await;
    let asked = |key: &str, tenant: Option<&str>| {
        let mut request = post("/generate", &json!({"inputs": "a", "parameters": {"max_new_tokens": 4}}));
        request.headers_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
        if let Some(tenant) = tenant {
            request.headers_mut().insert("x-tenant", tenant.parse().unwrap());
        }
        request
    };
    for (key, tenant, expected) in [
        ("ann:1", None, "miss"),
        ("ann:1", None, "hit"),
        ("ben:2", None, "miss"),
        ("ben:2", Some("ann:1"), "miss"),
        ("ben:2", Some("ann"), "miss"),
        ("ann:1", Some("ann"), "miss"),
        ("ann:1", Some("ann"), "hit"),
    ] {
        let reply = server.send(asked(key, tenant)).await;
        assert_eq!((reply.status, reply.header("x-cache")), (200, expected), "{key} {tenant:?}");
    }
}

/// Whether the answer is known is no business of who asks.
#[tokio::test]
async fn what_would_be_refused_is_refused_though_the_answer_is_known() {
    let server = caching().await;
    let body = json!({"inputs": "a", "parameters": {"max_new_tokens": 4}});
    let (_, known, _) = twice(&server, "/generate", &body).await;
    assert_eq!(known.header("x-cache"), "hit");
    for (name, value, status) in [
        ("x-request-timeout", "abc", 422),
        ("x-priority", "urgent", 422),
        ("x-use-cache", "maybe", 422),
        ("x-wait-for-model", "maybe", 422),
        ("content-encoding", "gzip", 415),
    ] {
        let mut request = post("/generate", &body);
        request.headers_mut().insert(name, value.parse().expect("a header's value"));
        let refused = server.send(request).await;
        assert_eq!(
            (refused.status, refused.header("x-cache")),
            (status, "bypass"),
            "{name}: {}",
            refused.text
        );
    }
}
