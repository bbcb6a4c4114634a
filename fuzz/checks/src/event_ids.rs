//! What a client that comes back says it saw last: the bytes of `Last-Event-ID`.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, Request, StatusCode};

use crate::server::{Answer, Server};

/// Longer than anybody fuzzes.
const WINDOW: Duration = Duration::from_secs(1 << 30);
const PATH: &str = "/generate_stream";
const BODY: &str = r#"{"inputs": "a", "parameters": {"max_new_tokens": 5}}"#;

/// A server with one stream that was told, and its events.
struct Told {
    server: Server,
    events: Vec<String>,
}

thread_local! {
    static TOLD: Told = Told::new();
}

impl Told {
    fn new() -> Self {
        let server = Server::start(Some(WINDOW));
        let answer = server.send(request(None));
        assert_eq!(answer.status, StatusCode::OK);
        let events = events(&answer);
        assert!(events.len() > 1, "{events:?}");
        Self { server, events }
    }
}

/// The events after one that was told, or an error: no id leads anywhere else.
pub fn check(data: &[u8]) {
    let Ok(id) = HeaderValue::from_bytes(data) else { return };
    TOLD.with(|told| {
        let answer = told.server.send(request(Some(id.clone())));
        if answer.status == StatusCode::NOT_FOUND {
            let known = told.events.iter().any(|event| event.as_bytes()[b"id: ".len()..].starts_with(data));
            assert!(
                !known || !data.contains(&b':') || data.ends_with(b":"),
                "{id:?} was told and is not known"
            );
            return;
        }
        assert_eq!(answer.status, StatusCode::OK, "{id:?}");
        let rest = events(&answer);
        assert!(told.events.ends_with(&rest), "{id:?} leads to {rest:?}");
    });
}

fn request(last: Option<HeaderValue>) -> Request<Body> {
    let mut request = Request::post(PATH)
        .header("content-type", "application/json")
        .body(Body::from(BODY))
        .expect("it is a request");
    if let Some(last) = last {
        request.headers_mut().insert("last-event-id", last);
    }
    request
}

fn events(answer: &Answer) -> Vec<String> {
    let text = String::from_utf8_lossy(&answer.body);
    text.split_terminator("\n\n").map(str::to_owned).collect()
}
