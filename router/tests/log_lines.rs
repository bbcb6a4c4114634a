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

/// What the lines that say `message` have under these names.
fn told(log: &Log, message: &str, names: &[&str]) -> Vec<Vec<Value>> {
    let fields = |line: Value| names.iter().map(|name| line[name].clone()).collect();
    log.lines(message).into_iter().map(fields).collect()
}

#[tokio::test]
async fn the_last_line_of_a_request_says_where_and_for_whom() {
    let server = Server::start_with(FakeModel::Hash, keyed()).await;
    let log = Log::default();
    let names = ["path", "status", "tenant"];
    {
        let _heard = log.listen_for_json(Level::INFO);
        for path in ["/generate", "/generate_stream"] {
            server.send(asking(path, &short())).await;
        }
        server.control.fail_next("no logits");
        server.send(asking("/generate_stream", &short())).await;
        let mut refused = asking("/generate", &json!({"inputs": 7}));
        refused.headers_mut().insert("x-tenant", "another".parse().unwrap());
        server.send(refused).await;
    }
    let finished =
        ["/generate", "/generate_stream"].map(|path| vec![json!(path), json!(200), json!("key 1")]);
    assert_eq!(told(&log, "request finished", &names), finished);
    assert_eq!(
        told(&log, "stream failed", &[&names[..], &["level", "error_type"]].concat()),
        [[json!("/generate_stream"), json!(200), json!("key 1"), json!("ERROR"), json!("generation")]]
    );
    let refused = log.lines("request refused").remove(0);
    assert_eq!((&refused["status"], &refused["span"]["path"]), (&json!(422), &json!("/generate")));
    assert_eq!(refused["span"]["tenant"], "key 1");
}

#[tokio::test]
async fn what_its_client_cancels_is_no_cause_for_alarm() {
    let server = Server::start_with(FakeModel::Hash, config()).await;
    let log = Log::default();
    server.control.pause();
    let _heard = log.listen_for_json(Level::INFO);
    let mut request = post("/generate_stream", &short());
    request.headers_mut().insert("x-request-id", "mine".parse().unwrap());
    let cancelling = async {
        server.until(async |server| server.app.requests_under_way() == 1).await;
        let request = Request::delete("/requests/mine").body(Body::empty()).unwrap();
        assert_eq!(server.send(request).await.status, 200);
    };
    let (reply, ()) = futures::join!(server.send(request), cancelling);
    assert!(reply.text.contains("cancelled"), "{}", reply.text);
    assert_eq!(
        told(&log, "stream failed", &["level", "error_type"]),
        [[json!("INFO"), json!("cancelled")]]
    );
}

/// A path may be as long as a head; lines are not.
#[tokio::test]
async fn a_long_path_is_cut() {
    let server = Server::start_with(FakeModel::Hash, config()).await;
    let log = Log::default();
    let _heard = log.listen_for_json(Level::INFO);
    let path = format!("/models/{}", "m".repeat(10_000));
    server.post(&path, short()).await;
    let refused = log.lines("request refused").remove(0);
    assert!(refused.to_string().len() < 1_500, "{refused}");
    assert!(refused["span"]["path"].as_str().unwrap().ends_with("mmm..."));
}
