//! `POST /generate`, `/generate_stream`, `/` and `/models/{model}`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use futures::Stream;
use lockstep_proto::{PromptLogprobs, Tokens};

use super::body::JsonBody;
use super::excerpt::excerpt;
use super::fields::Fields;
use super::intake::{Answer, Arrival, Running, start};
use super::native::{
    Details, FullText, GenerateRequest, GenerateResponse, OtherSequence, StreamDetails, StreamResponse,
    Token, finish_reason, prefill,
};
use super::sse::{self, Frame};
use crate::app::App;
use crate::engine::GeneratedToken;
use crate::error::{ApiError, ErrorKind, Family};

/// `POST /generate`: the whole answer as an object.
pub(super) async fn generate(
    State(app): State<Arc<App>>,
    arrival: Arrival,
    JsonBody(mut body): JsonBody,
) -> Result<Response, ApiError> {
    let (response, headers) = whole(&app, arrival, &mut body, FullText::Omit).await?;
    Ok((headers, Json(response)).into_response())
}

/// `POST /generate_stream`: an event for each token.
pub(super) async fn generate_stream(
    State(app): State<Arc<App>>,
    arrival: Arrival,
    JsonBody(mut body): JsonBody,
) -> Result<Response, ApiError> {
    streamed(&app, arrival, &mut body, FullText::Omit).await
}

/// `POST /`: as `stream` says; whole answers come as an array of one.
pub(super) async fn compatible(
    State(app): State<Arc<App>>,
    arrival: Arrival,
    JsonBody(mut body): JsonBody,
) -> Result<Response, ApiError> {
    if body.flag("stream")? {
        return streamed(&app, arrival, &mut body, FullText::Include).await;
    }
    let (response, headers) = whole(&app, arrival, &mut body, FullText::Include).await?;
    Ok((headers, Json([response])).into_response())
}

/// `POST /models/{model}`, the Inference API's address: as `POST /`, of this model and no other.
pub(super) async fn of_model(
    state: State<Arc<App>>,
    Path(model): Path<String>,
    arrival: Arrival,
    body: JsonBody,
) -> Result<Response, ApiError> {
    if model != state.model.id {
        return Err(ApiError::new(
            ErrorKind::NotFound,
            format!("The model {} is not served", excerpt(&model)),
        ));
    }
    compatible(state, arrival, body).await
}

async fn whole(
    app: &Arc<App>,
    arrival: Arrival,
    body: &mut Fields,
    full_text: FullText,
) -> Result<(GenerateResponse, axum::http::HeaderMap), ApiError> {
    let request = GenerateRequest::parse(body, full_text)?;
    let GenerateRequest { text, full_text, wants_details } = request;
    text.sampling.check_best_of(app.limits().max_best_of)?;
    let mut running = start(app, arrival, text).await?;
    let mut answers = running.collect().await?;
    if full_text == FullText::Include {
        let prompt = running.prompt().map_or("", |prompt| &prompt.text);
        answers.iter_mut().for_each(|answer| answer.text.insert_str(0, prompt));
    }
    let best = answers.remove(best(&answers));
    let details = wants_details.then(|| Details {
        best_of_sequences: others(app, &running, &answers),
        ..details(app, &running, &best)
    });
    Ok((GenerateResponse { generated_text: best.text, details }, running.record.headers()))
}

/// How probable the model finds an answer, whatever its length.
pub(super) fn mean_logprob(answer: &Answer) -> f64 {
    let logprobs = answer.tokens.iter().map(|token| f64::from(token.token.logprob));
    logprobs.sum::<f64>() / answer.tokens.len().max(1) as f64
}

/// The place of the answer with the highest mean log-probability, the first among equals.
fn best(answers: &[Answer]) -> usize {
    let means = answers.iter().map(mean_logprob).enumerate().rev();
    means.max_by(|(_, one), (_, other)| one.total_cmp(other)).map_or(0, |(place, _)| place)
}

fn others(app: &App, running: &Running, answers: &[Answer]) -> Vec<OtherSequence> {
    let other = |answer: &Answer| OtherSequence {
        generated_text: answer.text.clone(),
        details: details(app, running, answer),
    };
    answers.iter().map(other).collect()
}

fn details(app: &App, running: &Running, answer: &Answer) -> Details {
    let vocabulary = app.model.tokenizer.vocabulary();
    let tops = answer.tokens.iter().map(|token| Token::top_of(token, vocabulary));
    let wants_tops = answer.tokens.iter().any(|token| !token.token.top.is_empty());
    let prompt = running.prompt();
    Details {
        finish_reason: finish_reason(answer.finish),
        generated_tokens: Tokens::of_len(answer.tokens.len()).0,
        seed: prompt.and_then(|prompt| prompt.seed),
        prefill: prompt
            .map_or_else(Vec::new, |prompt| prefill(&prompt.tokens, &prompt.logprobs, vocabulary)),
        tokens: answer.tokens.iter().map(Token::of).collect(),
        top_tokens: if wants_tops { tops.collect() } else { Vec::new() },
        best_of_sequences: Vec::new(),
    }
}

async fn streamed(
    app: &Arc<App>,
    arrival: Arrival,
    body: &mut Fields,
    full_text: FullText,
) -> Result<Response, ApiError> {
    let request = GenerateRequest::parse(body, full_text)?;
    let GenerateRequest { text, full_text, wants_details } = request;
    if text.sampling.best_of.is_some_and(|best_of| best_of != 1) {
        let message = "`best_of` != 1 is not supported when streaming tokens";
        return Err(ApiError::invalid("best_of", message));
    }
    if text.prompt_logprobs == PromptLogprobs::Return {
        let message = "`decoder_input_details` == true is not supported when streaming tokens";
        return Err(ApiError::invalid("decoder_input_details", message));
    }
    let mut running = start(app, arrival, text).await?;
    running.open_stream().await;
    let headers = running.record.stream_headers();
    let mut so_far = String::new();
    if full_text == FullText::Include {
        so_far.push_str(running.prompt().map_or("", |prompt| &prompt.text));
    }
    let stream = NativeStream { app: Arc::clone(app), running, so_far, wants_details };
    Ok(sse::respond(stream.frames(), headers))
}

struct NativeStream {
    app: Arc<App>,
    running: Running,
    so_far: String,
    wants_details: bool,
}

impl NativeStream {
    fn frames(self) -> impl Stream<Item = Frame> + Send {
        futures::stream::unfold(Some(self), |state| async move {
            let mut stream = state?;
            let heard = stream.running.next().await;
            match heard.map(|heard| heard.token) {
                Ok(Some(token)) => {
                    let is_last = token.finish.is_some();
                    let frame = Frame::json(&stream.event(&token));
                    Some((frame, (!is_last).then_some(stream)))
                }
                Ok(None) => None,
                Err(error) => {
                    stream.running.record.fail_in_stream(&error);
                    Some((Frame::error(&error, Family::Native), None))
                }
            }
        })
    }

    fn event(&mut self, token: &GeneratedToken) -> StreamResponse {
        self.so_far.push_str(&token.delta);
        let record = &self.running.record;
        let details = token.finish.filter(|_| self.wants_details).map(|reason| StreamDetails {
            finish_reason: finish_reason(reason),
            generated_tokens: record.generated_tokens(),
            seed: self.running.prompt().and_then(|prompt| prompt.seed),
            input_length: record.prompt().tokens.0,
        });
        StreamResponse {
            index: record.generated_tokens(),
            token: Token::of(token),
            top_tokens: Token::top_of(token, self.app.model.tokenizer.vocabulary()),
            generated_text: token.finish.map(|_| std::mem::take(&mut self.so_far)),
            details,
        }
    }
}
