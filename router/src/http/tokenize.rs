//! `POST /tokenize` and `/chat_tokenize`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;

use super::body::JsonBody;
use super::intake::{encode_pieces, of_pool};
use super::native::{FullText, GenerateRequest};
use super::openai::ChatRequest;
use crate::app::App;
use crate::error::ApiError;
use crate::tokenizer::Piece;
use crate::validation::PromptSource;

#[derive(Serialize)]
pub(super) struct SimpleToken {
    id: u32,
    text: String,
    start: usize,
    stop: usize,
}

#[derive(Serialize)]
pub(super) struct ChatTokens {
    tokenize_response: Vec<SimpleToken>,
    templated_text: String,
}

/// The tokens of `inputs`.
pub(super) async fn tokenize(
    State(app): State<Arc<App>>,
    JsonBody(mut body): JsonBody,
) -> Result<Json<Vec<SimpleToken>>, ApiError> {
    let request = GenerateRequest::parse(&mut body, FullText::Omit)?;
    let (_, tokens) = pieces(&app, request.text.prompt).await?;
    Ok(Json(tokens))
}

/// A conversation's prompt and its tokens.
pub(super) async fn chat_tokenize(
    State(app): State<Arc<App>>,
    JsonBody(mut body): JsonBody,
) -> Result<Json<ChatTokens>, ApiError> {
    let request = ChatRequest::parse(&mut body)?;
    let (templated_text, tokenize_response) = pieces(&app, request.text.prompt).await?;
    Ok(Json(ChatTokens { tokenize_response, templated_text }))
}

async fn pieces(app: &App, source: PromptSource) -> Result<(String, Vec<SimpleToken>), ApiError> {
    let model = Arc::clone(&app.model);
    let place = app.admit_tokenizing()?;
    let job = move || {
        // Held by the job: it takes its place in the queue even if the client has left.
        let _place = place;
        encode_pieces(&model, source)
    };
    let encoded = app.pool.run(job).await;
    let (text, pieces) = encoded.map_err(|error| of_pool(app, error))??;
    let simple = |piece: Piece| {
        let covered = text.get(piece.start..piece.stop).filter(|covered| !covered.is_empty());
        let shown = covered.map_or(piece.text, str::to_owned);
        SimpleToken { id: piece.token.0, text: shown, start: piece.start, stop: piece.stop }
    };
    let tokens = pieces.into_iter().map(simple).collect();
    Ok((text, tokens))
}
