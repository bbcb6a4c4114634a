//! Who finds whose prompts in the prefix cache: `cached_tokens` tells, and so does the time it takes.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod support;

use std::path::Path;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use futures::StreamExt;
use lockstep_router::app::AppConfig;
use lockstep_router::journal::{Fsync, JournalConfig};
use lockstep_router::shards::fake::FakeModel;
use serde_json::{Value, json};
use support::{Server, config, post};
use tower::ServiceExt;

fn keyed(mut config: AppConfig) -> AppConfig {
    config.access.keys = ["ann:1".parse().unwrap(), "ben:2".parse().unwrap()].to_vec();
    config
}

fn chat(more: &Value) -> Value {
    let mut body = json!({
        "messages": [{"role": "user", "content": "the same prompt every time"}],
        "max_tokens": 6, "ignore_eos": true,
    });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn with_key(key: Option<&str>, body: &Value) -> Request<Body> {
    let mut request = post("/v1/chat/completions", body);
    if let Some(key) = key {
        request.headers_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
    }
    request
}

/// Whether any of the prompt was found.
async fn finds(server: &Server, key: Option<&str>, more: &Value) -> bool {
    let reply = server.send(with_key(key, &chat(more))).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap() > 0
}

#[tokio::test]
async fn a_key_finds_its_own_prompts_and_nobody_elses() {
    let server = Server::start_with(FakeModel::Hash, keyed(config())).await;
    for key in ["ann:1", "ben:2"] {
        assert!(!finds(&server, Some(key), &json!({})).await, "{key}");
        assert!(finds(&server, Some(key), &json!({})).await, "{key}");
    }
}

#[tokio::test]
async fn a_salt_keeps_prompts_apart_with_and_without_keys() {
    let open = Server::start_with(FakeModel::Hash, config()).await;
    let locked = Server::start_with(FakeModel::Hash, keyed(config())).await;
    for (server, key) in [(&open, None), (&locked, Some("ann:1")), (&locked, Some("ben:2"))] {
        for salt in [json!(null), json!("one"), json!("two")] {
            let more = json!({"cache_salt": salt});
            assert!(!finds(server, key, &more).await, "{key:?} {salt}");
            assert!(finds(server, key, &more).await, "{key:?} {salt}");
        }
    }
}

#[tokio::test]
async fn completions_have_salts_and_empty_ones_are_refused() {
    let server = Server::start_with(FakeModel::Hash, config()).await;
    let completion =
        |salt: &Value| json!({"prompt": "the same prompt every time", "max_tokens": 6, "cache_salt": salt});
    for salt in [json!(null), json!("one")] {
        let cached = async || {
            let reply = server.post("/v1/completions", completion(&salt)).await.json();
            reply["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
        };
        assert_eq!(cached().await, 0);
        assert!(cached().await > 0);
    }
    for (path, body) in [
        ("/v1/completions", completion(&json!(""))),
        ("/v1/chat/completions", chat(&json!({"cache_salt": ""}))),
        ("/v1/chat/completions", chat(&json!({"cache_salt": 7}))),
    ] {
        let refused = server.post(path, body).await;
        assert_eq!((refused.status, &refused.json()["error"]["param"]), (422, &json!("cache_salt")));
    }
}

/// What a process that dies in the middle of a stream leaves is computed for the same client.
#[tokio::test]
async fn a_stream_that_another_process_goes_on_with_keeps_its_salt() {
    let journaled = |folder: &Path| {
        let mut config = keyed(config());
        config.patience.resume_window = Some(Duration::from_secs(600));
        config.kept.journal = Some(JournalConfig { folder: folder.to_path_buf(), fsync: Fsync::Never });
        config
    };
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start_with(FakeModel::Hash, journaled(folder.path())).await;
    server.control.pause();
    server.control.allow_steps(2);
    let salted = json!({"cache_salt": "one"});
    let mut body = chat(&salted);
    body["stream"] = json!(true);
    let response = server.router().oneshot(with_key(Some("ann:1"), &body)).await.unwrap();
    let mut stream = response.into_body().into_data_stream();
    let first = stream.next().await.unwrap().unwrap();
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    let next = Server::start_with(FakeModel::Hash, journaled(copy.path())).await;
    let mut again = with_key(Some("ann:1"), &body);
    let id = std::str::from_utf8(&first).unwrap().lines().next().unwrap().strip_prefix("id: ").unwrap();
    again.headers_mut().insert("last-event-id", id.parse().unwrap());
    let rest = next.send(again).await;
    assert!(rest.text.ends_with("data: [DONE]\n\n"), "{}", rest.text);
    assert!(!finds(&next, Some("ben:2"), &salted).await);
    assert!(!finds(&next, Some("ann:1"), &json!({})).await);
    assert!(finds(&next, Some("ann:1"), &salted).await);
}
