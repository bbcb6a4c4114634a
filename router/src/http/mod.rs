//! The route table and its layers, nothing else.

pub mod admission;
mod assets;
pub mod auth;
mod body;
mod cached;
mod chat;
mod completions;
pub mod connections;
pub mod cors;
mod encode;
mod event_log;
mod excerpt;
pub mod fields;
mod frame;
mod generate;
mod grammar;
mod health;
mod intake;
mod invocations;
mod models;
mod native;
mod openai;
pub mod openapi;
mod playground;
mod record;
mod registry;
mod replay;
pub mod response_cache;
pub mod resume;
mod salts;
mod sse;
mod tape;
mod tokenize;
mod trace;
mod unread;
mod upload;

use std::sync::Arc;

use axum::extract::DefaultBodyLimit;
use axum::routing::{delete, get, post};
use axum::{Router, middleware};
use tower_http::catch_panic::CatchPanicLayer;

use crate::app::App;

pub use registry::Registry;
pub(crate) use replay::replay;
pub(crate) use upload::UploadError;
pub use upload::Uploads;

/// Every route of the server.
pub fn router(app: Arc<App>) -> Router {
    let resumable = middleware::from_fn_with_state(Arc::clone(&app), resume::resume);
    // Outermost: what is taken up again is the same request, and a kept answer has other ids each time.
    let text = text_routes(&app).route_layer(resumable);
    Router::new()
        .merge(text)
        .merge(playground::routes())
        .merge(openapi::routes())
        .route("/", get(health::ready))
        .route("/health", get(health::ready))
        .route("/ping", get(health::ready))
        .route("/readyz", get(health::ready))
        .route("/startupz", get(health::started))
        .route("/livez", get(health::alive))
        .route("/metrics", get(health::metrics))
        .route("/info", get(models::info))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*model}", get(models::retrieve))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/chat_tokenize", post(tokenize::chat_tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .route("/tokenizer_info", get(tokenize::info))
        .route("/requests/{id}", delete(registry::cancel))
        .fallback(frame::no_route)
        .method_not_allowed_fallback(frame::no_method)
        // One after the other from the outside in, and one service: axum copies a service of its own for each
        // call of `layer` and request.
        .layer((
            middleware::from_fn_with_state(Arc::clone(&app), frame::frame),
            cors::layer(&app.config.access.origins),
            middleware::from_fn(connections::refuse_crowded),
            middleware::from_fn_with_state(Arc::clone(&app), auth::require_key),
            DefaultBodyLimit::max(app.config.payload_limit_bytes),
            middleware::from_fn_with_state(Arc::clone(&app), upload::bound),
            CatchPanicLayer::custom(frame::on_panic),
        ))
        .with_state(app)
}

/// The routes that generate.
fn text_routes(app: &Arc<App>) -> Router<Arc<App>> {
    Router::new()
        .route("/", post(generate::compatible))
        .route("/generate", post(generate::generate))
        .route("/generate_stream", post(generate::generate_stream))
        .route("/models/{*model}", post(generate::of_model))
        .route("/invocations", post(invocations::invocations))
        .route("/v1/chat/completions", post(chat::completions))
        .route("/v1/completions", post(completions::completions))
        .route_layer((
            middleware::from_fn_with_state(Arc::clone(app), frame::count),
            middleware::from_fn_with_state(Arc::clone(app), cached::answer),
            CatchPanicLayer::custom(frame::on_panic),
        ))
}
