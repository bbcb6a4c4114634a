//! Bodies of requests, on every route that reads one. The first byte chooses the route, the rest is the body.

use axum::body::Body;
use axum::http::{Request, StatusCode};
use serde_json::Value;

use crate::server::{Answer, Server};

const PATHS: [&str; 9] = [
    "/generate",
    "/generate_stream",
    "/",
    "/v1/chat/completions",
    "/v1/completions",
    "/invocations",
    "/tokenize",
    "/chat_tokenize",
    "/detokenize",
];

thread_local! {
    static SERVER: Server = Server::start(None);
}

/// Every body is answered: with JSON or a stream of it, or with an error in the shape of its route that is not the
/// server's fault. Afterwards nothing is under way.
pub fn check(data: &[u8]) {
    let Some((route, body)) = data.split_first() else { return };
    let path = PATHS[usize::from(*route) % PATHS.len()];
    let request = Request::post(path)
        .header("content-type", "application/json")
        .body(Body::from(body.to_vec()))
        .expect("it is a request");
    SERVER.with(|server| {
        check_answer(path, &server.send(request));
        assert_eq!(server.requests_under_way(), 0, "{path}");
    });
}

fn check_answer(path: &str, answer: &Answer) {
    let text = String::from_utf8_lossy(&answer.body);
    if answer.is_stream {
        assert_eq!(answer.status, StatusCode::OK, "{path}: {text}");
        let events: Vec<&str> = text.split_terminator("\n\n").collect();
        assert!(!events.is_empty(), "{path}: a stream without an event");
        for event in events {
            let data = event.strip_prefix("data: ").unwrap_or_else(|| panic!("{path}: {event:?}"));
            assert!(data == "[DONE]" || serde_json::from_str::<Value>(data).is_ok(), "{path}: {event:?}");
            assert!(!data.contains("\"error_type\":"), "{path}: it breaks in its stream: {event:?}");
        }
        return;
    }
    let json: Value = serde_json::from_slice(&answer.body).unwrap_or_else(|_| panic!("{path}: {text:?}"));
    if answer.status == StatusCode::OK {
        return;
    }
    assert!(answer.status.is_client_error(), "{path}: {} {text}", answer.status);
    assert!(answer.status != StatusCode::TOO_MANY_REQUESTS, "{path}: nobody else asks, {text}");
    assert!(json["error_type"].is_string(), "{path}: {text}");
    let message = json.pointer("/error/message").or_else(|| json.get("error"));
    assert!(message.is_some_and(|message| message.as_str().is_some_and(|text| !text.is_empty())), "{text}");
}
