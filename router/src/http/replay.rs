//! Streams that an earlier process left are answered again, from where it was.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue};
use futures::future::join_all;
use thiserror::Error;
use tower::ServiceExt;
use tracing::{info, warn};

use super::auth::KeyName;
use super::frame::{REQUEST_ID, RequestId};
use super::resume::is_stream;
use super::tape::{Journaling, Past};
use super::trace::RequestTrace;
use crate::app::App;
use crate::error::ApiError;
use crate::journal::{Journal, Recovered};

/// Why a stream is not taken up.
#[derive(Debug, Error)]
enum ReplayError {
    #[error("answer it: the server is stopping")]
    Stopping,
    #[error("answer it: it was begun by {found}, this is {expected}")]
    OtherArithmetic { found: String, expected: String },
    #[error("read its request: {0}")]
    Request(#[from] axum::http::Error),
    #[error("answer it: the answer is {status}{}", because(error.as_ref()))]
    Refused { status: u16, error: Option<ApiError> },
}

/// Answers every stream again; the clients may be back before or after.
pub(crate) async fn replay(app: Arc<App>, recovered: Vec<Recovered>) {
    if let Some(journal) = app.streams.journal().cloned() {
        let routes = super::text_routes(&app).with_state(Arc::clone(&app));
        let answering = recovered.into_iter().map(|one| replay_one(&app, &routes, &journal, one));
        join_all(answering).await;
    }
    app.streams.on_complete();
}

async fn replay_one(app: &Arc<App>, routes: &Router, journal: &Journal, recovered: Recovered) {
    let stream = recovered.beginning.origin.stream;
    match answer(app, routes, journal, recovered).await {
        Ok(()) => info!(%stream, "a stream of an earlier process goes on"),
        Err(error) => {
            warn!(%stream, %error, "a stream of an earlier process is lost");
            app.streams.forget_for_good(stream);
        }
    }
}

async fn answer(
    app: &Arc<App>,
    routes: &Router,
    journal: &Journal,
    recovered: Recovered,
) -> Result<(), ReplayError> {
    let Recovered { beginning, events } = recovered;
    app.wait_until_ready().await.map_err(|_| ReplayError::Stopping)?;
    let expected = app.fingerprint();
    if beginning.fingerprint != expected {
        return Err(ReplayError::OtherArithmetic { found: beginning.fingerprint, expected });
    }
    let Some(window) = app.streams.window() else { return Err(ReplayError::Stopping) };
    let owner = beginning.request.owner.as_deref().map(|name| KeyName(name.into()));
    let mut request = Request::post(beginning.request.path.as_str());
    for (name, value) in &beginning.request.headers {
        // Whatever no header is was none before.
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_bytes(value)) {
            request = request.header(name, value);
        }
    }
    let mut request = request.body(Body::from(beginning.request.body.clone()))?;
    // A kept answer would have ids of its own.
    request.headers_mut().insert("x-use-cache", HeaderValue::from_static("false"));
    let id = request.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok()).unwrap_or_default();
    let id = RequestId(id.to_owned());
    let origin = beginning.origin;
    let extensions = request.extensions_mut();
    extensions.insert(id);
    extensions.insert(RequestTrace::default());
    if let Some(owner) = &owner {
        extensions.insert(owner.clone());
    }
    extensions.insert(Journaling {
        journal: journal.clone(),
        origin,
        request: Arc::new(beginning.request),
        past: Some(Arc::new(Past { prompts: beginning.prompts, events })),
    });
    let Ok(mut response) = routes.clone().oneshot(request).await;
    if !response.status().is_success() || !is_stream(&response) {
        let error = response.extensions_mut().remove::<ApiError>();
        return Err(ReplayError::Refused { status: response.status().as_u16(), error });
    }
    // Nobody reads it yet.
    drop(app.streams.keep((origin.stream, owner), window, response));
    Ok(())
}

fn because(error: Option<&ApiError>) -> String {
    error.map_or_else(String::new, |error| format!(", {}", error.message))
}
