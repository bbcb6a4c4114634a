//! Keys, and which pages may read answers.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod support;

use axum::body::Body;
use axum::http::Request;
use futures::StreamExt;
use lockstep_router::app::AppConfig;
use lockstep_router::http::auth::{AccessConfig, MetricsAccess};
use lockstep_router::shards::fake::FakeModel;
use serde_json::json;
use support::{Server, config, tokens_of};
use tower::ServiceExt;

async fn serving(access: AccessConfig) -> Server {
    let script = tokens_of("Hi").into_iter().map(lockstep_proto::TokenId).collect();
    Server::start_with(FakeModel::Script(script), AppConfig { access, ..config() }).await
}

fn keyed(keys: &[&str]) -> AccessConfig {
    AccessConfig { keys: keys.iter().map(|key| key.parse().unwrap()).collect(), ..AccessConfig::default() }
}

fn request(method: &str, path: &str, authorization: Option<&str>) -> Request<Body> {
    let mut builder =
        Request::builder().method(method).uri(path).header("content-type", "application/json");
    if let Some(value) = authorization {
        builder = builder.header("authorization", value);
    }
    let body = json!({"inputs": "a", "messages": [{"role": "user", "content": "a"}]});
    builder.body(Body::from(body.to_string())).unwrap()
}

const KEYED: [(&str, &str); 11] = [
    ("POST", "/"),
    ("POST", "/generate"),
    ("POST", "/generate_stream"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/tokenize"),
    ("POST", "/chat_tokenize"),
    ("GET", "/info"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/test/model"),
    ("DELETE", "/requests/a"),
    ("GET", "/nowhere"),
];

#[tokio::test]
async fn a_request_is_cancelled_by_its_own_key_and_by_no_other() {
    let server = serving(keyed(&["ann:first", "ben:second"])).await;
    server.control.pause();
    let open = |key: &str| {
        let mut request = request("POST", "/generate_stream", Some(&format!("Bearer {key}")));
        request.headers_mut().insert("x-request-id", "same".parse().unwrap());
        server.router().oneshot(request)
    };
    let (first, second) = (open("ann:first").await.unwrap(), open("ben:second").await.unwrap());
    let cancel =
        |key: &str| server.send(request("DELETE", "/requests/same", Some(&format!("Bearer {key}"))));
    let cancelled = |reply: support::Reply| (reply.status, reply.json()["cancelled"].as_u64());
    assert_eq!(cancelled(cancel("ben:second").await), (200, Some(1)), "there are two of this id");
    let mut ended = second.into_body().into_data_stream();
    let event = ended.next().await.unwrap().unwrap();
    assert!(event.windows(9).any(|window| window == b"cancelled"), "{event:?}");
    drop(ended);
    assert_eq!(cancel("ben:second").await.status, 404, "the other is not told of");
    server.control.resume();
    let whole = axum::body::to_bytes(first.into_body(), usize::MAX).await.unwrap();
    assert!(String::from_utf8(whole.to_vec()).unwrap().contains("\"generated_text\":\"Hi\""));
}

#[tokio::test]
async fn every_route_but_probes_pages_and_metrics_needs_a_key() {
    let server = serving(keyed(&["one", "two"])).await;
    for (method, path) in KEYED {
        let none = server.send(request(method, path, None)).await;
        assert_eq!((none.status, none.header("www-authenticate")), (401, "Bearer"), "{method} {path}");
        assert!(!none.header("x-request-id").is_empty());
        assert_eq!(none.json()["error_type"], "unauthorized");
        for key in ["one", "two"] {
            let reply = server.send(request(method, path, Some(&format!("Bearer {key}")))).await;
            let expected = if matches!(path, "/nowhere" | "/requests/a") { 404 } else { 200 };
            assert_eq!(reply.status, expected, "{method} {path}: {}", reply.text);
        }
    }
    let probes = ["/", "/health", "/ping", "/livez", "/readyz", "/startupz"];
    let pages = ["/playground", "/docs", "/openapi.json", "/api-doc/openapi.json"];
    for path in probes.into_iter().chain(pages).chain(["/metrics"]) {
        assert_eq!(server.get(path).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn a_wrong_key_is_refused_in_the_familys_shape() {
    let server = serving(keyed(&["One"])).await;
    for wrong in ["Bearer one", "Bearer On", "Bearer Onee", "Bearer ", "Basic One", "One"] {
        let native = server.send(request("POST", "/generate", Some(wrong))).await;
        assert_eq!(native.status, 401, "{wrong}");
        assert!(native.json()["error"].is_string());
        let openai = server.send(request("POST", "/v1/chat/completions", Some(wrong))).await;
        assert_eq!(openai.json()["error"]["type"], "authentication_error");
        assert!(!openai.header("x-error-message").is_empty());
        assert!(!openai.text.contains("One"), "{}", openai.text);
    }
    let reply = server.send(request("POST", "/generate", Some("bearer One"))).await;
    assert_eq!(reply.status, 200, "the scheme's case does not matter");
}

/// Those who look and do not ask are none of them.
#[tokio::test]
async fn requests_without_a_key_are_counted() {
    let server = serving(keyed(&["one"])).await;
    for (method, path) in KEYED {
        server.send(request(method, path, None)).await;
    }
    let asked = KEYED.iter().filter(|(method, _)| *method == "POST").count();
    assert_eq!(server.metric("tgi_request_failure{err=\"unauthorized\"}").await, asked as f64);
}

#[tokio::test]
async fn metrics_can_be_protected() {
    let server = serving(AccessConfig { metrics: MetricsAccess::Keyed, ..keyed(&["one"]) }).await;
    assert_eq!(server.get("/metrics").await.status, 401);
    assert_eq!(server.send(request("GET", "/metrics", Some("Bearer one"))).await.status, 200);
    assert_eq!(server.get("/health").await.status, 200);
}

#[tokio::test]
async fn a_file_of_keys_is_read_again_when_it_changes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys");
    std::fs::write(&path, "alice:first\n").unwrap();
    let server = serving(AccessConfig { key_file: Some(path.clone()), ..AccessConfig::default() }).await;
    let status = async |server: &Server, key: &str| {
        server.send(request("GET", "/info", Some(&format!("Bearer {key}")))).await.status
    };
    assert_eq!((status(&server, "first").await, status(&server, "second").await), (200, 401));
    std::fs::write(&path, "alice:second\n").unwrap();
    server.until(async |server| status(server, "second").await == 200).await;
    assert_eq!(status(&server, "first").await, 401);
    // A file without keys lets nobody in.
    std::fs::write(&path, "").unwrap();
    server.until(async |server| status(server, "second").await == 401).await;
    assert_eq!(server.get("/info").await.status, 401);
}

fn preflight(origin: &str) -> Request<Body> {
    Request::builder()
        .method("OPTIONS")
        .uri("/generate")
        .header("origin", origin)
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "authorization,content-type,x-use-cache")
        .body(Body::empty())
        .unwrap()
}

#[tokio::test]
async fn any_origin_may_send_a_key_by_default() {
    let server = serving(keyed(&["one"])).await;
    let reply = server.send(preflight("https://example.org")).await;
    assert_eq!((reply.status, reply.header("access-control-allow-origin")), (200, "*"));
    assert!(reply.header("access-control-allow-headers").contains("authorization"));
    assert!(reply.header("access-control-allow-methods").contains("POST"));
    assert!(!reply.header("x-request-id").is_empty());
    // Pages can read errors too, and what the headers say.
    let mut refused = request("POST", "/generate", None);
    refused.headers_mut().insert("origin", "https://example.org".parse().unwrap());
    let refused = server.send(refused).await;
    assert_eq!((refused.status, refused.header("access-control-allow-origin")), (401, "*"));
    assert_eq!(refused.header("access-control-expose-headers"), "*");
}

#[tokio::test]
async fn origins_can_be_listed() {
    let origins = ["https://a.example", "http://b.example:8080"].map(|origin| origin.parse().unwrap());
    let server = serving(AccessConfig { origins: origins.to_vec(), ..AccessConfig::default() }).await;
    for origin in ["https://a.example", "http://b.example:8080"] {
        assert_eq!(server.send(preflight(origin)).await.header("access-control-allow-origin"), origin);
    }
    let stranger = server.send(preflight("https://c.example")).await;
    assert_eq!(stranger.header("access-control-allow-origin"), "");
}
