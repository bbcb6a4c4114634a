//! The route table and its layers, nothing else.

mod body;
mod chat;
mod fields;
mod frame;
mod generate;
mod grammar;
mod health;
mod intake;
mod models;
mod native;
mod openai;
mod record;
mod registry;
mod sse;
mod tokenize;

use std::sync::Arc;

use axum::extract::DefaultBodyLimit;
use axum::routing::{delete, get, post};
use axum::{Router, middleware};
use tower_http::catch_panic::CatchPanicLayer;

use crate::app::App;

pub use registry::Registry;

/// Every route of the server.
pub fn router(app: Arc<App>) -> Router {
    let text = Router::new()
        .route("/", post(generate::compatible))
        .route("/generate", post(generate::generate))
        .route("/generate_stream", post(generate::generate_stream))
        .route("/v1/chat/completions", post(chat::completions))
        .route_layer(CatchPanicLayer::custom(frame::on_panic))
        .route_layer(middleware::from_fn_with_state(Arc::clone(&app), frame::count));
    Router::new()
        .merge(text)
        .route("/", get(health::ready))
        .route("/health", get(health::ready))
        .route("/ping", get(health::ready))
        .route("/readyz", get(health::ready))
        .route("/startupz", get(health::started))
        .route("/livez", get(health::alive))
        .route("/metrics", get(health::metrics))
        .route("/info", get(models::info))
        .route("/v1/models", get(models::list))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/chat_tokenize", post(tokenize::chat_tokenize))
        .route("/requests/{id}", delete(registry::cancel))
        .fallback(frame::no_route)
        .method_not_allowed_fallback(frame::no_method)
        .layer(CatchPanicLayer::custom(frame::on_panic))
        .layer(DefaultBodyLimit::max(app.config.payload_limit_bytes))
        .layer(middleware::from_fn(frame::frame))
        .with_state(app)
}
