//! `POST /tokenize`, `/chat_tokenize` and `/detokenize`, `GET /tokenizer_info`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use lockstep_proto::TokenId;
use serde::Serialize;
use serde_json::{Value, json};

use super::body::JsonBody;
use super::encode::{decode, encode_pieces, of_pool};
use super::native::{FullText, GenerateRequest};
use super::openai::ChatRequest;
use crate::app::App;
use crate::chat::ChatTemplate;
use crate::error::ApiError;
use crate::tokenizer::{Piece, SpecialTokens};
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

/// The tokens of `inputs`; those of `prompt`, for clients of other servers, as bare ids.
pub(super) async fn tokenize(
    State(app): State<Arc<App>>,
    JsonBody(mut body): JsonBody,
) -> Result<Response, ApiError> {
    if let Some(text) = body.take("prompt")? {
        let special = match body.take("add_special_tokens")? {
            Some(false) => SpecialTokens::Skip,
            Some(true) | None => SpecialTokens::Add,
        };
        // There is one tokenizer.
        body.pass_over(&["model"]);
        body.refuse_rest()?;
        let (_, tokens) = pieces(&app, PromptSource::Text { text, special }).await?;
        let ids: Vec<u32> = tokens.iter().map(|token| token.id).collect();
        let most = app.limits().max_total_tokens.0;
        return Ok(Json(json!({"tokens": ids, "count": ids.len(), "max_model_len": most})).into_response());
    }
    let request = GenerateRequest::parse(&mut body, FullText::Omit)?;
    let (_, tokens) = pieces(&app, request.text.prompt).await?;
    Ok(Json(tokens).into_response())
}

/// The text of `tokens`, as `prompt`.
pub(super) async fn detokenize(
    State(app): State<Arc<App>>,
    JsonBody(mut body): JsonBody,
) -> Result<Json<Value>, ApiError> {
    let ids: Vec<u32> = body.require("tokens")?;
    body.pass_over(&["model"]);
    body.refuse_rest()?;
    let tokens: Vec<TokenId> = ids.into_iter().map(TokenId).collect();
    Ok(Json(json!({"prompt": decode(&app.model, &tokens)})))
}

/// What a client needs to write prompts as the model's tokenizer would.
pub(super) async fn info(State(app): State<Arc<App>>) -> Json<Value> {
    let tokens = app.model.template.as_ref().map(ChatTemplate::tokens).cloned().unwrap_or_default();
    let end = app.model.end_tokens.first().map(|end| app.model.tokenizer.vocabulary().text(*end));
    let mut info = json!({
        "bos_token": tokens.bos,
        "eos_token": tokens.eos.or(end),
        "chat_template": app.model.template.as_ref().and_then(ChatTemplate::source),
        "model_max_length": app.limits().max_total_tokens.0,
    });
    if let Some(fields) = info.as_object_mut() {
        fields.extend(tokens.others.into_iter().map(|(name, text)| (name, Value::String(text))));
    }
    Json(info)
}

/// A conversation's prompt and its tokens.
pub(super) async fn chat_tokenize(
    State(app): State<Arc<App>>,
    JsonBody(mut body): JsonBody,
) -> Result<Json<ChatTokens>, ApiError> {
    let mut request = ChatRequest::parse(&mut body)?;
    request.fit(&app.model)?;
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
