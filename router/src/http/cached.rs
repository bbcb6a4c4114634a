//! `x-use-cache`: answers that are known are sent again, streams too.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, FromRequestParts, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use serde_json::Value;

use super::auth::KeyName;
use super::body::encoding;
use super::intake::Arrival;
use super::openai::with_new_call_ids;
use super::response_cache::{CacheKey, CachedAnswer, is_deterministic};
use super::resume::is_stream;
use super::tape::Journaling;
use crate::app::App;
use crate::chat::ChatTemplate;
use crate::error::ApiError;
use crate::journal::{KnownAnswer, Record};
use crate::tools::CallStyle;

const X_CACHE: HeaderName = HeaderName::from_static("x-cache");

/// Headers that tell how long it took: nothing, where it is known.
const TIMES: [&str; 6] = [
    "x-compute-time",
    "x-total-time",
    "x-validation-time",
    "x-queue-time",
    "x-inference-time",
    "x-time-per-token",
];

/// What an event has that ends a stream with an error. Inside of a JSON text its quotes are escaped.
const ERROR_MARK: &[u8] = b"\"error_type\":";

/// Answers from the cache, or lets the route answer and keeps what it says.
pub(super) async fn answer(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    if !app.responses.is_enabled() || !is_json(request.headers()) {
        return marked(next.run(request).await, "bypass");
    }
    let (mut parts, body) = request.into_parts();
    // Headers that the route would refuse are refused whether or not the answer is known.
    match Arrival::from_request_parts(&mut parts, &app).await {
        Err(error) => return marked(error.into_response(), "bypass"),
        Ok(Arrival { takes_known: false, .. }) => {
            return marked(next.run(Request::from_parts(parts, body)).await, "bypass");
        }
        Ok(_) => {}
    }
    let limited = Request::from_parts(parts.clone(), body);
    let bytes = match Bytes::from_request(limited, &()).await {
        Ok(bytes) => bytes,
        Err(rejection) => {
            return ApiError::of_body(&rejection, app.config.payload_limit_bytes).into_response();
        }
    };
    let parsed: Option<Value> = serde_json::from_slice(&bytes).ok();
    let key = parsed.filter(|body| is_deterministic(body) && !reads_clock(&app, body)).map(|body| {
        let tenant = tenant(&parts.headers, parts.extensions.get());
        CacheKey::new(parts.uri.path(), &tenant, &app.fingerprint(), &body)
    });
    let request = Request::from_parts(parts, Body::from(bytes));
    let Some(key) = key else { return marked(next.run(request).await, "bypass") };
    if let Some(known) = app.responses.get(&key) {
        app.metrics.on_cache_hit();
        let again = again(&known, app.model.calls.style);
        if let Some(journaling) = request.extensions().get().filter(|_| is_stream(&again.headers)) {
            write_down(&again, journaling).await;
        }
        return marked(told(again), "hit");
    }
    let response = next.run(request).await;
    if !response.status().is_success() {
        return marked(response, "miss");
    }
    marked(keep(app, key, response).await, "miss")
}

/// Whether the answer depends on when it is asked for: templates may write the date into the prompt.
fn reads_clock(app: &App, body: &Value) -> bool {
    let template = app.model.template.as_ref();
    body.get("messages").is_some() && template.is_some_and(ChatTemplate::reads_clock)
}

/// Other requests are refused, and not here.
fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    value.is_some_and(|value| value.to_ascii_lowercase().contains("json")) && encoding(headers).is_none()
}

/// Whom an answer is kept for: nobody learns from the time it takes what others have asked.
fn tenant(headers: &HeaderMap, key: Option<&KeyName>) -> String {
    let named = headers.get("x-tenant").and_then(|value| value.to_str().ok());
    // Names have no line breaks, so that no key and tenant look like others.
    format!("{}\n{}", key.map_or("", |key| &*key.0), named.unwrap_or_default())
}

fn marked(mut response: Response, state: &'static str) -> Response {
    response.headers_mut().insert(X_CACHE, HeaderValue::from_static(state));
    response
}

/// Passes the answer on and keeps it once it is complete. One that ends with an error, or that nobody
/// waits for to the end, is not kept.
async fn keep(app: Arc<App>, key: CacheKey, response: Response) -> Response {
    let (parts, body) = response.into_parts();
    let headers = parts.headers.clone();
    if !is_stream(&headers) {
        let Ok(bytes) = axum::body::to_bytes(body, usize::MAX).await else {
            return ApiError::new(crate::error::ErrorKind::Internal, "The answer ended too early")
                .into_response();
        };
        app.responses.insert(key, CachedAnswer { headers, pieces: vec![bytes.clone()] });
        return Response::from_parts(parts, Body::from(bytes));
    }
    let keeping =
        Keeping { app, key: Some(key), answer: CachedAnswer { headers, pieces: Vec::new() }, bytes: 0 };
    let pieces = body.into_data_stream();
    let stream = futures::stream::unfold((pieces, keeping), |(mut pieces, mut keeping)| async move {
        let piece = pieces.next().await;
        keeping.note(piece.as_ref().map(|piece| piece.as_ref().ok()));
        piece.map(|piece| (piece, (pieces, keeping)))
    });
    Response::from_parts(parts, Body::from_stream(stream))
}

/// A stream that may be kept.
struct Keeping {
    app: Arc<App>,
    /// Absent once it is known that the answer is not kept.
    key: Option<CacheKey>,
    answer: CachedAnswer,
    bytes: usize,
}

impl Keeping {
    /// The next piece: `None` at the end, `Some(None)` where the body broke.
    fn note(&mut self, piece: Option<Option<&Bytes>>) {
        match piece {
            None => {
                if let Some(key) = self.key.take() {
                    self.app.responses.insert(key, std::mem::take(&mut self.answer));
                }
            }
            Some(None) => self.key = None,
            // A comment keeps a connection alive and says nothing.
            Some(Some(piece)) if piece.starts_with(b":") => {}
            Some(Some(piece)) => {
                self.bytes += piece.len();
                let is_error = piece.windows(ERROR_MARK.len()).any(|window| window == ERROR_MARK);
                if is_error || self.bytes > self.app.responses.largest_answer_bytes() {
                    self.key = None;
                }
                if self.key.is_some() {
                    self.answer.pieces.push(piece.clone());
                } else {
                    self.answer.pieces.clear();
                }
            }
        }
    }
}

/// A known answer as it is sent another time.
fn again(known: &CachedAnswer, style: CallStyle) -> CachedAnswer {
    let mut headers = known.headers.clone();
    for name in TIMES {
        if headers.contains_key(name) {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static("0"));
        }
    }
    CachedAnswer { headers, pieces: renamed(&known.pieces, style) }
}

/// Before it is told, as of any other stream: the next process may be asked for the rest of it.
async fn write_down(answer: &CachedAnswer, journaling: &Journaling) {
    let headers = answer.headers.iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()));
    let known = KnownAnswer {
        stream: journaling.origin.stream,
        owner: journaling.request.owner.clone(),
        headers: headers.collect(),
        pieces: answer.pieces.iter().map(|piece| piece.to_vec()).collect(),
    };
    let written = journaling.journal.write(&Record::Known(Box::new(known))).await;
    // A journal that has failed says so itself.
    let _ = written.await;
}

fn told(answer: CachedAnswer) -> Response {
    let CachedAnswer { headers, pieces } = answer;
    let body = match <[Bytes; 1]>::try_from(pieces) {
        Ok([whole]) => Body::from(whole),
        Err(pieces) => Body::from_stream(futures::stream::iter(
            pieces.into_iter().map(Ok::<_, std::convert::Infallible>),
        )),
    };
    (headers, body).into_response()
}

/// The pieces with an id of their own where they have one, as OpenAI's answers do: ids are unique.
fn renamed(pieces: &[Bytes], style: CallStyle) -> Vec<Bytes> {
    let first = pieces.first().and_then(|piece| std::str::from_utf8(piece).ok()).unwrap_or_default();
    let Some((_, rest)) = first.split_once("\"id\":\"") else { return pieces.to_vec() };
    let old = rest.split('"').next().unwrap_or_default();
    let Some(kind) = ["chatcmpl-", "cmpl-"].into_iter().find(|kind| old.starts_with(kind)) else {
        return pieces.to_vec();
    };
    let new = format!("{kind}{}", uuid::Uuid::new_v4().simple());
    let renamed = pieces.iter().map(|piece| match std::str::from_utf8(piece) {
        Ok(text) => Bytes::from(with_new_call_ids(&text.replace(old, &new), style)),
        Err(_) => piece.clone(),
    });
    renamed.collect()
}
