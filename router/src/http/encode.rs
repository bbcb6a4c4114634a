//! From what a request asks about to text and tokens: templates, tokenizer, and what their refusals mean to a client.

use std::sync::Arc;

use lockstep_proto::TokenId;

use crate::app::App;
use crate::chat::TemplateError;
use crate::cpu_pool::PoolError;
use crate::error::{ApiError, ErrorKind};
use crate::model::Model;
use crate::tokenizer::{Piece, SpecialTokens, TokenizerError};
use crate::validation::{Prompt, PromptSource};

/// Renders and tokenizes, on the CPU pool unless going there costs more than the work.
pub(super) async fn encode(app: &App, source: PromptSource) -> Result<Prompt, ApiError> {
    if source.is_short() {
        return encode_now(&app.model, source);
    }
    let model = Arc::clone(&app.model);
    let encoded = app.pool.run(move || encode_now(&model, source)).await;
    encoded.map_err(|error| of_pool(app, error))?
}

/// What the pool's refusals mean to a client.
pub(super) fn of_pool(app: &App, error: PoolError) -> ApiError {
    match error {
        PoolError::Full => app.overloaded(),
        PoolError::Panicked => {
            ApiError::new(ErrorKind::Internal, "The server met a bug while reading the prompt")
        }
    }
}

fn encode_now(model: &Model, source: PromptSource) -> Result<Prompt, ApiError> {
    if let PromptSource::Tokens(tokens) = source {
        let text = decode(model, &tokens);
        return Ok(Prompt { text, tokens });
    }
    let (text, special) = render(model, source)?;
    let tokens = model.tokenizer.encode(&text, special).map_err(|error| of_tokenizer(&error))?;
    Ok(Prompt { text, tokens })
}

/// What tokens stand for, special ones by their names.
pub(super) fn decode(model: &Model, tokens: &[TokenId]) -> String {
    let vocabulary = model.tokenizer.vocabulary();
    let bytes: Vec<u8> = tokens.iter().flat_map(|token| vocabulary.bytes(*token)).copied().collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A prompt's text and its tokens with their places.
pub(super) fn encode_pieces(model: &Model, source: PromptSource) -> Result<(String, Vec<Piece>), ApiError> {
    let (text, special) = render(model, source)?;
    let pieces = model.tokenizer.pieces(&text, special).map_err(|error| of_tokenizer(&error))?;
    Ok((text, pieces))
}

fn render(model: &Model, source: PromptSource) -> Result<(String, SpecialTokens), ApiError> {
    match source {
        PromptSource::Text { text, special } => Ok((text, special)),
        PromptSource::Tokens(tokens) => Ok((decode(model, &tokens), SpecialTokens::Skip)),
        PromptSource::Chat(conversation) => {
            let template = model.template.as_ref().ok_or(TemplateError::Missing).map_err(of_template)?;
            Ok((template.render(&conversation).map_err(of_template)?, SpecialTokens::Skip))
        }
    }
}

fn of_tokenizer(error: &TokenizerError) -> ApiError {
    ApiError::invalid("inputs", format_args!("tokenizer error {error}"))
}

fn of_template(error: TemplateError) -> ApiError {
    let message = format!("Template error: {error}");
    match error {
        TemplateError::MissingVariable(_) => ApiError::new(ErrorKind::TemplateVariable, message),
        TemplateError::Missing | TemplateError::Failed(_) => ApiError::new(ErrorKind::Template, message),
    }
}
