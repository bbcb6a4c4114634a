//! Lines of the log: what they have, and that machines can read them.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod support;

use axum::body::Body;
use axum::http::Request;
use lockstep_router::app::AppConfig;
use lockstep_router::shards::fake::FakeModel;
use serde_json::{Value, json};
use support::log::Log;
use support::{Server, config, post};
use tracing::Level;

fn keyed() -> AppConfig {
    let mut config = config();
    config.access.keys = ["secret".parse().unwrap()].to_vec();
    config
}

fn asking(path: &str, body: &Value) -> Request<Body> {
    let mut request = post(path, body);
    request.headers_mut().insert("authorization", "Bearer secret".parse().unwrap());
    request
}

fn short() -> Value {
    json!({"inputs": "a", "parameters": {"max_new_tokens": 2}})
}

/// JSON has no place for two values of one name: readers take one of them, or refuse the line.
#[tokio::test]
async fn no_key_of_a_line_comes_twice() {
    let server = Server::start_with(FakeModel::Hash, keyed()).await;
    let log = Log::default();
    {
        let _heard = log.listen_for_json(Level::DEBUG);
        server.post("/generate", short()).await;
        server.send(asking("/generate", &json!({"inputs": 7}))).await;
        for path in ["/generate", "/generate_stream"] {
            server.send(asking(path, &short())).await;
            server.control.fail_next("no logits");
            server.send(asking(path, &short())).await;
        }
    }
    for message in ["request refused", "why it is refused", "request failed", "stream failed"] {
        assert!(!log.lines(message).is_empty(), "{message}");
    }
    for line in log.text().lines() {
        // A value that comes twice is read once.
        assert_eq!(serde_json::from_str::<Value>(line).unwrap().to_string(), line);
    }
}
