//! Streams that an earlier process left are answered again, from where it was.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;
use futures::future::join_all;
use thiserror::Error;
use tower::ServiceExt;
use tracing::{info, warn};

use super::auth::KeyName;
use super::frame::{REQUEST_ID, RequestId};
use super::resume::{Begun, is_stream};
use super::tape::{Journaling, Past};
use super::trace::RequestTrace;
use crate::app::App;
use crate::error::ApiError;
use crate::journal::{Journal, KnownAnswer, Left, Recovered};

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
pub(crate) async fn replay(app: Arc<App>, left: Vec<Left>) {
    if let (Some(journal), Some(window)) = (app.streams.journal().cloned(), app.streams.window()) {
        let routes = super::text_routes(&app).with_state(Arc::clone(&app));
        let answering = left.into_iter().map(|one| replay_one(&app, &routes, (&journal, window), one));
        join_all(answering).await;
    }
    app.streams.on_complete();
}

async fn replay_one(app: &Arc<App>, routes: &Router, (journal, window): (&Journal, Duration), left: Left) {
    let (stream, answered) = match left {
        Left::Begun(recovered) => {
            let stream = recovered.beginning.origin.stream;
            (stream, answer(app, routes, (journal, window), recovered).await)
        }
        Left::Known(known) => {
            let stream = known.stream;
            tell(app, window, known);
            (stream, Ok(()))
        }
    };
    match answered {
        Ok(()) => info!(%stream, "a stream of an earlier process goes on"),
        Err(error) => {
            warn!(%stream, %error, "a stream of an earlier process is lost");
            app.streams.forget_for_good(stream).await;
        }
    }
}

/// What is known needs no shards.
fn tell(app: &App, window: Duration, known: KnownAnswer) {
    let pieces = known.pieces.into_iter().map(Ok::<_, Infallible>);
    let mut response = Response::new(Body::from_stream(futures::stream::iter(pieces)));
    response.headers_mut().extend(headers_of(&known.headers));
    let owner = known.owner.map(|name| KeyName(name.into()));
    // Nobody reads it yet.
    drop(app.streams.keep((known.stream, owner, Begun::Earlier), window, response));
}

/// Whatever no header is was none before.
fn headers_of(kept: &[(String, Vec<u8>)]) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
    kept.iter().filter_map(|(name, value)| Some((name.parse().ok()?, HeaderValue::from_bytes(value).ok()?)))
}

async fn answer(
    app: &Arc<App>,
    routes: &Router,
    (journal, window): (&Journal, Duration),
    recovered: Recovered,
) -> Result<(), ReplayError> {
    let Recovered { beginning, events } = recovered;
    app.wait_until_ready().await.map_err(|_| ReplayError::Stopping)?;
    let expected = app.fingerprint();
    if beginning.fingerprint != expected {
        return Err(ReplayError::OtherArithmetic { found: beginning.fingerprint, expected });
    }
    let owner = beginning.request.owner.as_deref().map(|name| KeyName(name.into()));
    let request = Request::post(beginning.request.path.as_str());
    let mut request = request.body(Body::from(beginning.request.body.clone()))?;
    for (name, value) in headers_of(&beginning.request.headers) {
        request.headers_mut().append(name, value);
    }
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
    if !response.status().is_success() || !is_stream(response.headers()) {
        let error = response.extensions_mut().remove::<ApiError>();
        if let Some(error) = &error {
            app.metrics.on_failure(error.kind);
        }
        return Err(ReplayError::Refused { status: response.status().as_u16(), error });
    }
    // Nobody reads it yet.
    drop(app.streams.keep((origin.stream, owner, Begun::Earlier), window, response));
    Ok(())
}

fn because(error: Option<&ApiError>) -> String {
    error.map_or_else(String::new, |error| format!(", {}", error.message))
}
