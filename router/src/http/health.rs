//! Probes and metrics. None of them asks the engine or the shards: an answer never waits behind a step.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use crate::app::App;
use crate::clock;
use crate::error::{ApiError, ErrorKind};

/// Whether requests for text are answered: the shards are there, and finish their steps in the time that such steps take.
pub(super) async fn ready(State(app): State<Arc<App>>) -> Result<(), ApiError> {
    if app.is_getting_on() && !app.is_draining() { Ok(()) } else { Err(unhealthy()) }
}

/// Whether the shards have been ready once.
pub(super) async fn started(State(app): State<Arc<App>>) -> Result<(), ApiError> {
    if app.was_ready() { Ok(()) } else { Err(unhealthy()) }
}

/// Whether the process gets on: the task that everything depends on has run a moment ago.
pub(super) async fn alive(State(app): State<Arc<App>>) -> Result<(), ApiError> {
    if app.engine.vitals().is_alive(clock::now()) { Ok(()) } else { Err(unhealthy()) }
}

/// Prometheus' text format.
pub(super) async fn metrics(State(app): State<Arc<App>>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], app.metrics.render())
        .into_response()
}

fn unhealthy() -> ApiError {
    ApiError::new(ErrorKind::Unhealthy, "unhealthy")
}
