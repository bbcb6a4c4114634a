//! `POST /v1/chat/completions`.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures::Stream;

use super::body::JsonBody;
use super::intake::{Arrival, Running, start};
use super::openai::{
    ChatCompletion, ChatRequest, ChatStream, Delivery, Envelope, Logprobs, Usage, entries, in_openai_words,
};
use super::record::Record;
use super::sse::{self, Frame};
use crate::app::App;
use crate::error::{ApiError, Family};

/// A conversation's next message, whole or as it comes.
pub(super) async fn completions(
    State(app): State<Arc<App>>,
    arrival: Arrival,
    JsonBody(mut body): JsonBody,
) -> Result<Response, ApiError> {
    let ChatRequest { mut text, model, logprobs, delivery } = ChatRequest::parse(&mut body)?;
    text.sampling.fill(&app.model.sampling_defaults);
    let running = start(&app, arrival, text).await.map_err(in_openai_words)?;
    let envelope = Envelope::new(model.unwrap_or_else(|| app.model.id.clone()), app.fingerprint());
    match delivery {
        Delivery::Whole => whole(&app, running, envelope, logprobs).await,
        Delivery::Stream(usage) => {
            let headers = running.record.stream_headers();
            let chunks = ChatStream::new(envelope, logprobs, usage);
            let frames = VecDeque::new();
            let stream = Answering { app, running, chunks, frames, is_over: false };
            Ok(sse::respond(stream.frames(), headers))
        }
    }
}

async fn whole(
    app: &App,
    mut running: Running,
    envelope: Envelope,
    logprobs: Logprobs,
) -> Result<Response, ApiError> {
    let answer = running.collect().await?;
    let logprobs = entries(logprobs, &answer.tokens, app.model.tokenizer.vocabulary());
    let completion =
        ChatCompletion::new(envelope, answer.text, logprobs, answer.finish, usage(&running.record));
    Ok((running.record.headers(), Json(completion)).into_response())
}

struct Answering {
    app: Arc<App>,
    running: Running,
    chunks: ChatStream,
    /// Ready to be sent, oldest first.
    frames: VecDeque<Frame>,
    is_over: bool,
}

impl Answering {
    fn frames(self) -> impl Stream<Item = Frame> + Send {
        futures::stream::unfold(self, |mut stream| async move {
            loop {
                if let Some(frame) = stream.frames.pop_front() {
                    return Some((frame, stream));
                }
                if stream.is_over {
                    return None;
                }
                stream.advance().await;
            }
        })
    }

    async fn advance(&mut self) {
        match self.running.next().await {
            Ok(token) => {
                let usage = usage(&self.running.record);
                let chunks = self.chunks.on_token(&token, self.app.model.tokenizer.vocabulary(), usage);
                self.frames.extend(chunks.iter().map(Frame::json));
                if token.finish.is_some() {
                    self.frames.push_back(Frame::Done);
                    self.is_over = true;
                }
            }
            Err(error) => {
                let error = in_openai_words(error);
                self.running.record.fail_in_stream(&error);
                self.frames.push_back(Frame::error(&error, Family::OpenAi));
                self.is_over = true;
            }
        }
    }
}

fn usage(record: &Record) -> Usage {
    Usage::new(record.prompt().tokens.0, record.cached().0, record.generated_tokens())
}
