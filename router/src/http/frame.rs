//! Around every route: request ids, errors in the family's shape, panics, counts. An error is counted here, whichever layer
//! says it.

use std::any::Any;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tracing::{Instrument, Level, field};

use super::cors;
use super::excerpt::excerpt;
use super::trace::RequestTrace;
use super::unread::Unread;
use crate::app::App;
use crate::error::{ApiError, ErrorKind, Family};

pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longest id a client may choose, in bytes; longer ones are replaced.
const REQUEST_ID_BYTES: usize = 128;

/// Names a request in its response, in logs and for `DELETE /requests/{id}`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RequestId(pub(crate) String);

impl RequestId {
    fn of(headers: &HeaderMap) -> Self {
        let given = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
        let usable = given.filter(|id| !id.is_empty() && id.len() <= REQUEST_ID_BYTES);
        Self(usable.map_or_else(|| uuid::Uuid::new_v4().to_string(), str::to_owned))
    }
}

/// Gives a request its id, and its errors the shape of the route's family.
pub(super) async fn frame(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let (unread, mut request) = Unread::watch(request);
    let id = RequestId::of(request.headers());
    let family = Family::of_path(request.uri().path());
    // Probes, scrapes and pages are no requests that fail.
    let is_counted = request.method() == Method::POST;
    let trace = RequestTrace::begin(&app, &request, &id);
    let path = excerpt(request.uri().path());
    // Who asks is known once its headers are read.
    let span =
        tracing::info_span!("request", id = %id.0, %path, trace_id = trace.id(), tenant = field::Empty);
    request.extensions_mut().insert(id.clone());
    request.extensions_mut().insert(trace.clone());
    let mut response = next.run(request).instrument(span.clone()).await;
    let error = response.extensions_mut().remove::<ApiError>();
    trace.on_response(response.status(), error.as_ref().map(|error| error.kind.error_type()));
    if let Some(error) = error {
        if is_counted {
            app.metrics.on_failure(error.kind);
        }
        span.in_scope(|| log(&error));
        let family = response.extensions_mut().remove::<Family>().unwrap_or(family);
        let mut rendered = error.render(family);
        cors::keep(response.headers(), rendered.headers_mut());
        response = rendered;
    }
    unread.tell(&mut response);
    if let Ok(value) = HeaderValue::from_str(&id.0) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

/// Counts the requests of routes that generate.
pub(super) async fn count(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    app.metrics.on_request();
    next.run(request).await
}

/// Says an error once, as loud as its kind is. What a client did wrong may quote its prompt, which is nobody's
/// business: the message is for those who debug.
pub(super) fn log(error: &ApiError) {
    let (status, error_type, why) = (error.kind.status(), error.kind.error_type(), error.message.as_str());
    match error.kind.level() {
        Level::ERROR => tracing::error!(status, error_type, error = why, "request failed"),
        Level::WARN => tracing::warn!(status, error_type, error = why, "request failed"),
        Level::INFO => {
            tracing::info!(status, error_type, field = error.param, "request refused");
            tracing::debug!(error = why, "why it is refused");
        }
        _ => tracing::debug!(status, error_type, error = why, "request failed"),
    }
}

pub(super) fn on_panic(_cause: Box<dyn Any + Send>) -> Response {
    ApiError::new(ErrorKind::Internal, "The server met a bug while answering this request").into_response()
}

pub(super) async fn no_route(uri: Uri) -> ApiError {
    ApiError::new(ErrorKind::NotFound, format!("There is no route {}", excerpt(uri.path())))
}

pub(super) async fn no_method(method: Method, uri: Uri) -> ApiError {
    let message = format!("{} is not allowed on {}", excerpt(method.as_str()), excerpt(uri.path()));
    ApiError::new(ErrorKind::MethodNotAllowed, message)
}
