//! From a request as a route understands it to a running sequence, and its tokens as they come.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use lockstep_proto::{PromptLogprobs, TokenId, TokenLogprobs, Tokens};
use lockstep_scheduler::AdmissionError;
use tokio::sync::OwnedSemaphorePermit;
use tracing::debug;

use super::frame::RequestId;
use super::grammar;
use super::record::{PromptSize, Record};
use super::registry::Registration;
use crate::app::App;
use crate::chat::TemplateError;
use crate::cpu_pool::PoolError;
use crate::engine::{EngineError, FinishReason, GeneratedToken, Generation, GenerationEvent};
use crate::error::{ApiError, ErrorKind};
use crate::model::Model;
use crate::tokenizer::{Piece, SpecialTokens, TokenizerError};
use crate::validation::{Prompt, PromptSource, TextRequest};

/// Whether a request waits for a model that is not there yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WhenLoading {
    Refuse,
    Wait,
}

/// What a request brings besides its body.
pub(super) struct Arrival {
    pub(super) id: RequestId,
    pub(super) at: Instant,
    pub(super) when_loading: WhenLoading,
}

impl FromRequestParts<Arc<App>> for Arrival {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _app: &Arc<App>) -> Result<Self, ApiError> {
        let id = parts.extensions.get::<RequestId>().cloned();
        let id = id.ok_or_else(|| ApiError::new(ErrorKind::Internal, "The request has no id"))?;
        let header = parts.headers.get("x-wait-for-model").and_then(|value| value.to_str().ok());
        let waits =
            header.is_some_and(|value| matches!(value.trim().to_ascii_lowercase().as_str(), "true" | "1"));
        let when_loading = if waits { WhenLoading::Wait } else { WhenLoading::Refuse };
        Ok(Self { id, at: Instant::now(), when_loading })
    }
}

/// A request that is being answered. Dropping it cancels it.
pub(super) struct Running {
    generation: Generation,
    pub(super) record: Record,
    registration: Registration,
    pub(super) prompt_text: String,
    pub(super) prompt_tokens: Vec<TokenId>,
    /// Log-probabilities of the prompt from its second token on, once they are known.
    pub(super) prompt_logprobs: Vec<TokenLogprobs>,
    pub(super) seed: Option<u64>,
    // Given back after the sequence is cancelled.
    _permit: OwnedSemaphorePermit,
}

/// An answer that is complete.
pub(super) struct Answer {
    pub(super) text: String,
    pub(super) tokens: Vec<GeneratedToken>,
    pub(super) finish: FinishReason,
}

/// Takes a request in: a place, the model, the rules, the prompt, the engine, in this order.
pub(super) async fn start(
    app: &Arc<App>,
    arrival: Arrival,
    request: TextRequest,
) -> Result<Running, ApiError> {
    debug!("received");
    let permit = app.admit()?;
    // From here on a client that leaves is counted, whatever its request waits for.
    let mut record = Record::new(Arc::clone(app), arrival.id.clone(), arrival.at);
    let started = begin(app, arrival, request, &mut record).await;
    let Begun { generation, registration, prompt_text, prompt_tokens, seed } =
        started.inspect_err(|_| record.fail())?;
    Ok(Running {
        generation,
        record,
        registration,
        prompt_text,
        prompt_tokens,
        prompt_logprobs: Vec::new(),
        seed,
        _permit: permit,
    })
}

/// A request that the engine has.
struct Begun {
    generation: Generation,
    registration: Registration,
    prompt_text: String,
    prompt_tokens: Vec<TokenId>,
    seed: Option<u64>,
}

async fn begin(
    app: &Arc<App>,
    arrival: Arrival,
    request: TextRequest,
    record: &mut Record,
) -> Result<Begun, ApiError> {
    wait_for_model(app, arrival.when_loading).await?;
    let limits = app.limits();
    let keep_prompt = request.prompt_logprobs == PromptLogprobs::Return;
    let (source, awaiting) = request.check(&limits)?.split();
    let prompt = encode(app, source).await?;
    debug!(prompt = prompt.text, tokens = prompt.tokens.len(), "tokenized");
    let mut valid = awaiting.with_prompt(prompt, &limits, &app.model.end_tokens)?;
    if let Some(grammar) = valid.grammar.take() {
        valid.assignment.grammar = Some(grammar::compile(app, grammar).await?);
    }
    let submission = &valid.assignment.submission;
    let size = PromptSize {
        characters: valid.prompt_text.chars().count(),
        tokens: Tokens::of_len(submission.prompt.len()),
    };
    app.metrics.on_validated(size.tokens.0, submission.max_new_tokens.0);
    record.on_submitted(size);
    let prompt_tokens = if keep_prompt { submission.prompt.clone() } else { Vec::new() };
    let registration = Registration::new(Arc::clone(app), arrival.id);
    let generation = app.engine.submit(valid.assignment).await.map_err(|error| of_engine(app, &error))?;
    debug!(sequence = %generation.sequence(), "queued");
    Ok(Begun { generation, registration, prompt_text: valid.prompt_text, prompt_tokens, seed: valid.seed })
}

impl Running {
    /// The next token; `None` after the last.
    ///
    /// # Errors
    /// When there will be no more; it is the stream's last word.
    ///
    /// # Cancel safety
    /// No token is lost.
    pub(super) async fn next(&mut self) -> Result<GeneratedToken, ApiError> {
        loop {
            let event = tokio::select! {
                biased;
                () = self.registration.cancelled.cancelled() => {
                    return Err(ApiError::new(ErrorKind::Cancelled, "The request was cancelled"));
                }
                event = self.generation.next() => event,
            };
            match event {
                Some(GenerationEvent::Admitted { queued, cached }) => {
                    self.record.on_admitted(queued, cached)
                }
                Some(GenerationEvent::Prompt(tokens)) => self.prompt_logprobs.extend(tokens),
                Some(GenerationEvent::Token(token)) => {
                    self.record.on_token();
                    if let Some(reason) = token.finish {
                        self.record.finish(reason);
                    }
                    return Ok(token);
                }
                Some(GenerationEvent::Failed(error)) => return Err(of_failure(&error)),
                None => return Err(ApiError::new(ErrorKind::Incomplete, "Incomplete generation")),
            }
        }
    }

    /// The whole answer.
    pub(super) async fn collect(&mut self) -> Result<Answer, ApiError> {
        let mut text = String::new();
        let mut tokens = Vec::new();
        loop {
            let token = self.next().await.inspect_err(|_| self.record.fail())?;
            text.push_str(&token.delta);
            let finish = token.finish;
            tokens.push(token);
            if let Some(finish) = finish {
                return Ok(Answer { text, tokens, finish });
            }
        }
    }
}

/// Waits, or refuses, until the shards are there.
async fn wait_for_model(app: &App, when_loading: WhenLoading) -> Result<(), ApiError> {
    if app.is_ready() {
        return Ok(());
    }
    match when_loading {
        WhenLoading::Refuse => Err(app.loading()),
        WhenLoading::Wait => {
            debug!("waiting for the model");
            app.wait_until_ready().await
        }
    }
}

/// Renders and tokenizes on the CPU pool.
async fn encode(app: &App, source: PromptSource) -> Result<Prompt, ApiError> {
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
    let (text, special) = render(model, source)?;
    let tokens = model.tokenizer.encode(&text, special).map_err(|error| of_tokenizer(&error))?;
    Ok(Prompt { text, tokens })
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

fn of_engine(app: &App, error: &EngineError) -> ApiError {
    match error {
        EngineError::Refused(AdmissionError::Full { .. }) => app.overloaded(),
        EngineError::Refused(refusal) => ApiError::invalid("inputs", refusal),
        EngineError::Failed(_) | EngineError::GroupLost { .. } | EngineError::Stopping => of_failure(error),
    }
}

fn of_failure(error: &EngineError) -> ApiError {
    match error {
        EngineError::Refused(refusal) => ApiError::invalid("inputs", refusal),
        EngineError::Failed(reason) => {
            ApiError::new(ErrorKind::Generation, format!("Request failed during generation: {reason}"))
        }
        EngineError::GroupLost { waited } => {
            let waited = waited.as_secs();
            let message = format!("The model's shards were lost and did not come back within {waited} s");
            ApiError { retry_after_s: Some(5), ..ApiError::new(ErrorKind::GroupLost, message) }
        }
        EngineError::Stopping => ApiError::draining(),
    }
}
