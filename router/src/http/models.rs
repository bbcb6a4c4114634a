//! `GET /info`, `GET /v1/models` and `GET /v1/models/{model}`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use serde::Serialize;
use serde_json::{Value, json};

use super::excerpt::excerpt;
use super::fields::{Fields, UnknownFields};
use crate::app::App;
use crate::error::{ApiError, ErrorKind};

/// What the reference server's clients call whatever model is served.
const ANY_MODEL: &str = "tgi";

/// What `/info` tells; the names are the reference server's.
#[derive(Serialize)]
pub(super) struct Info {
    model_id: String,
    model_sha: Option<String>,
    model_pipeline_tag: Option<&'static str>,
    max_concurrent_requests: usize,
    max_best_of: u32,
    max_stop_sequences: usize,
    max_input_tokens: u32,
    max_total_tokens: u32,
    validation_workers: usize,
    max_client_batch_size: usize,
    watermark_gamma: f32,
    watermark_delta: f32,
    router: &'static str,
    version: &'static str,
    sha: Option<&'static str>,
    docker_label: Option<&'static str>,
    /// Groups of ranks there are; this name and the next are ours.
    replicas: usize,
    /// Those that can be asked.
    replicas_ready: usize,
}

pub(super) async fn info(State(app): State<Arc<App>>) -> Json<Info> {
    let limits = app.limits();
    let (replicas, replicas_ready) = app.replicas();
    Json(Info {
        model_id: app.model.id.clone(),
        model_sha: app.model.sha.clone(),
        model_pipeline_tag: Some("text-generation"),
        max_concurrent_requests: app.config.max_concurrent_requests,
        max_best_of: limits.max_best_of,
        max_stop_sequences: limits.max_stop_sequences,
        max_input_tokens: limits.max_input_tokens.0,
        max_total_tokens: limits.max_total_tokens.0,
        validation_workers: app.config.validation_workers,
        max_client_batch_size: app.config.max_client_batch_size,
        watermark_gamma: limits.watermark.gamma,
        watermark_delta: limits.watermark.delta,
        router: env!("CARGO_PKG_NAME"),
        version: env!("CARGO_PKG_VERSION"),
        sha: None,
        docker_label: None,
        replicas,
        replicas_ready,
    })
}

/// Longest name a client may give the model, in bytes: every event of a stream repeats it.
const NAME_BYTES: usize = 256;

/// Takes the name that an OpenAI request gives the model.
///
/// # Errors
/// When it is no text, or too long.
pub(super) fn take_name(body: &mut Fields) -> Result<Option<String>, ApiError> {
    const NAME: &str = "model";
    let name: Option<String> = body.take(NAME)?;
    match &name {
        Some(long) if long.len() > NAME_BYTES => {
            let message = format!("`{NAME}` must have at most {NAME_BYTES} bytes. Given: {}", long.len());
            Err(ApiError::invalid(NAME, message))
        }
        Some(_) | None => Ok(name),
    }
}

/// The name an OpenAI answer gives its model: the client's own, or ours.
///
/// # Errors
/// When names of models that are not served are refused, and this is one.
pub(super) fn name(app: &App, asked: Option<String>) -> Result<String, ApiError> {
    let Some(asked) = asked else { return Ok(app.model.id.clone()) };
    match app.config.unknown_fields {
        UnknownFields::Refuse if asked != app.model.id && asked != ANY_MODEL => {
            let message = format!("The model {asked} is not served; {} is", app.model.id);
            Err(ApiError { param: Some("model"), ..ApiError::new(ErrorKind::ModelNotFound, message) })
        }
        UnknownFields::Refuse | UnknownFields::Ignore => Ok(asked),
    }
}

/// `GET /v1/models`
pub(super) async fn list(State(app): State<Arc<App>>) -> Json<Value> {
    Json(json!({"object": "list", "data": [described(&app)]}))
}

/// `GET /v1/models/{model}`
pub(super) async fn retrieve(
    State(app): State<Arc<App>>,
    Path(model): Path<String>,
) -> Result<Json<Value>, ApiError> {
    if model != app.model.id {
        return Err(ApiError::new(
            ErrorKind::NotFound,
            format!("The model {} is not served", excerpt(&model)),
        ));
    }
    Ok(Json(described(&app)))
}

fn described(app: &App) -> Value {
    json!({"id": app.model.id, "object": "model", "created": 0, "owned_by": app.model.id})
}
