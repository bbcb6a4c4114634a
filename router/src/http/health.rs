//! Probes and metrics.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use crate::app::App;
use crate::error::{ApiError, ErrorKind};

/// Whether requests for text are answered.
pub(super) async fn ready(State(app): State<Arc<App>>) -> Result<(), ApiError> {
    if app.is_ready() && !app.is_draining() { Ok(()) } else { Err(unhealthy()) }
}

/// Whether the shards have been ready once.
pub(super) async fn started(State(app): State<Arc<App>>) -> Result<(), ApiError> {
    if app.was_ready() { Ok(()) } else { Err(unhealthy()) }
}

/// Whether the process lives.
pub(super) async fn alive() {}

/// Prometheus' text format.
pub(super) async fn metrics(State(app): State<Arc<App>>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], app.metrics.render())
        .into_response()
}

fn unhealthy() -> ApiError {
    ApiError::new(ErrorKind::Unhealthy, "unhealthy")
}
