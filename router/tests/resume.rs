//! A client whose connection breaks comes back and misses nothing.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod support;

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::Request;
use futures::{Stream, StreamExt};
use lockstep_router::app::AppConfig;
use lockstep_router::shards::fake::FakeModel;
use serde_json::{Value, json};
use support::{Reply, Server, config, post};
use tower::ServiceExt;

const TOKENS: usize = 30;

fn resumable(window: Duration) -> AppConfig {
    let mut config = config();
    config.patience.resume_window = Some(window);
    config
}

async fn patient() -> Server {
    Server::start_with(FakeModel::Hash, resumable(Duration::from_secs(600))).await
}

fn story() -> Value {
    json!({"inputs": "a", "parameters": {"max_new_tokens": TOKENS, "ignore_eos": true, "seed": 7, "do_sample": true}})
}

async fn open(server: &Server, request: Request<Body>) -> impl Stream<Item = Bytes> + Unpin + use<> {
    let response = server.router().oneshot(request).await.unwrap();
    assert_eq!(response.status().as_u16(), 200);
    response.into_body().into_data_stream().map(Result::unwrap)
}

async fn come_back(server: &Server, last: &str) -> Reply {
    let mut request = post("/generate_stream", &story());
    request.headers_mut().insert("last-event-id", last.parse().unwrap());
    server.send(request).await
}

/// The ids and the data of events.
fn parse(text: &str) -> Vec<(String, String)> {
    let events = text.split_terminator("\n\n").map(|event| {
        let (id, data) = event.split_once('\n').unwrap();
        (id.strip_prefix("id: ").unwrap().to_owned(), data.strip_prefix("data: ").unwrap().to_owned())
    });
    events.collect()
}

/// The first `count` events; then the connection breaks.
async fn first(server: &Server, count: usize) -> Vec<(String, String)> {
    let mut stream = open(server, post("/generate_stream", &story())).await;
    let mut text = String::new();
    for _ in 0..count {
        text.push_str(std::str::from_utf8(&stream.next().await.unwrap()).unwrap());
    }
    parse(&text)
}

/// Its window begins when its last reader leaves, not when the answer was complete.
#[tokio::test(start_paused = true)]
async fn a_stream_that_has_ended_waits_from_when_it_was_last_read() {
    let window = Duration::from_secs(60);
    let server = Server::start_with(FakeModel::Hash, resumable(window)).await;
    let seen = first(&server, 1).await;
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(50)).await;
        let rest = come_back(&server, &seen[0].0).await;
        assert_eq!((rest.status, parse(&rest.text).len()), (200, TOKENS - 1));
    }
    tokio::time::sleep(window * 3).await;
    assert_eq!(come_back(&server, &seen[0].0).await.status, 404);
}

#[tokio::test]
async fn whatever_was_seen_the_rest_comes_once() {
    let plain = Server::start_with(FakeModel::Hash, config()).await;
    let expected = plain.stream("/generate_stream", story()).await;
    assert_eq!(expected.len(), TOKENS);
    let server = patient().await;
    for seen in 1..=TOKENS {
        let mut events = first(&server, seen).await;
        let rest = come_back(&server, &events[seen - 1].0).await;
        assert_eq!((rest.status, rest.header("content-type")), (200, "text/event-stream"));
        events.extend(parse(&rest.text));
        let (ids, data): (Vec<_>, Vec<_>) = events.into_iter().unzip();
        assert_eq!(data, expected, "the connection broke after {seen}");
        let places: Vec<usize> =
            ids.iter().map(|id| id.split_once(':').unwrap().1.parse().unwrap()).collect();
        assert!(places.iter().copied().eq(1..=TOKENS));
    }
}

#[tokio::test]
async fn an_answer_goes_on_while_its_client_is_away() {
    let server = patient().await;
    server.control.pause();
    server.control.allow_steps(3);
    let events = first(&server, 2).await;
    server.control.resume();
    server.until(async |server| server.app.requests_under_way() == 0).await;
    assert_eq!(server.metric("tgi_request_success").await, 1.0);
    // Twice, should the second connection break as well.
    for _ in 0..2 {
        let rest = parse(&come_back(&server, &events[1].0).await.text);
        assert_eq!(rest.len(), TOKENS - 2);
    }
}

#[tokio::test]
async fn a_client_that_stays_away_is_given_up() {
    let server = Server::start_with(FakeModel::Hash, resumable(Duration::from_millis(20))).await;
    server.control.pause();
    server.control.allow_steps(3);
    let events = first(&server, 2).await;
    server.until(async |server| server.app.requests_under_way() == 0).await;
    assert_eq!(server.metric("tgi_request_failure{err=\"dropped\"}").await, 1.0);
    assert_eq!(come_back(&server, &events[1].0).await.status, 404, "half an answer is no answer");
}

#[tokio::test]
async fn a_server_that_stops_says_so() {
    let server = patient().await;
    server.control.pause();
    server.control.allow_steps(3);
    let mut stream = open(&server, post("/generate_stream", &story())).await;
    let mut text = String::new();
    let reading = async {
        while let Some(piece) = stream.next().await {
            text.push_str(std::str::from_utf8(&piece).unwrap());
        }
    };
    futures::join!(reading, server.tasks.stop_and_wait());
    let events = parse(&text);
    assert!(events.last().unwrap().1.contains("shutting_down"), "{text}");
}

#[tokio::test]
async fn other_routes_and_errors_in_streams_are_kept_too() {
    let server = patient().await;
    server.control.fail_next("no more memory");
    let body = json!({"messages": [{"role": "user", "content": "a"}], "stream": true});
    let mut stream = open(&server, post("/v1/chat/completions", &body)).await;
    let mut text = String::new();
    while let Some(piece) = stream.next().await {
        text.push_str(std::str::from_utf8(&piece).unwrap());
    }
    let events = parse(&text);
    assert!(events.last().unwrap().1.contains("no more memory"), "{text}");
    let rest = parse(&come_back(&server, &events[0].0).await.text);
    assert_eq!(rest, events[1..]);
}

#[tokio::test]
async fn strangers_and_unknown_events_are_refused() {
    let mut config = resumable(Duration::from_secs(600));
    config.access.keys = ["ann:1".parse().unwrap(), "ben:2".parse().unwrap()].to_vec();
    let server = Server::start_with(FakeModel::Hash, config).await;
    let with = |key: &str, last: Option<&str>| {
        let mut request = post("/generate_stream", &story());
        request.headers_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
        if let Some(last) = last {
            request.headers_mut().insert("last-event-id", last.parse().unwrap());
        }
        request
    };
    let whole = server.send(with("ann:1", None)).await;
    let events = parse(&whole.text);
    let last = events[3].0.as_str();
    assert_eq!(server.send(with("ann:1", Some(last))).await.status, 200);
    let (id, _) = last.split_once(':').unwrap();
    let beyond = format!("{id}:{}", TOKENS + 1);
    for (key, last) in [("ben:2", last), ("ann:1", "4"), ("ann:1", &beyond), ("ann:1", "nobody:1")] {
        let refused = server.send(with(key, Some(last))).await;
        assert_eq!((refused.status, &refused.json()["error_type"]), (404, &json!("not_found")), "{last}");
    }
}

#[tokio::test]
async fn without_a_window_streams_have_no_ids_and_end_with_their_connection() {
    let server = Server::start_with(FakeModel::Hash, config()).await;
    let events = server.stream("/generate_stream", story()).await;
    assert_eq!(events.len(), TOKENS);
    let refused = come_back(&server, "x:1").await;
    assert_eq!(refused.status, 404);
    assert!(refused.text.contains("--resume-window"), "{}", refused.text);
}
