//! `POST /v1/chat/completions`.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures::Stream;

use super::body::JsonBody;
use super::intake::{Answer, Arrival, Heard, Running, start};
use super::models;
use super::openai::{
    ChatCompletion, ChatRequest, ChatStream, Choice, Delivery, Envelope, Listener, Logprobs, Usage,
    entries, in_openai_words,
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
    let mut request = ChatRequest::parse(&mut body)?;
    request.fit(&app.model)?;
    let ChatRequest { text, model, logprobs, delivery, tools } = request;
    let model = models::name(&app, model)?;
    let running = start(&app, arrival, text).await.map_err(|error| tools.in_words(error))?;
    let listener = Listener::new(tools.rules.as_ref(), app.model.calls.style);
    let envelope = Envelope::new("chatcmpl", model, app.fingerprint());
    match delivery {
        Delivery::Whole => whole(&app, running, envelope, (logprobs, listener)).await,
        Delivery::Stream(usage) => {
            let headers = running.record.stream_headers();
            let chunks = ChatStream::new(envelope, logprobs, usage, vec![listener; running.choices]);
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
    (logprobs, listener): (Logprobs, Listener),
) -> Result<Response, ApiError> {
    let answers = running.collect().await?;
    let vocabulary = app.model.tokenizer.vocabulary();
    let choice = |(index, answer): (u32, Answer)| {
        let logprobs = entries(logprobs, &answer.tokens, vocabulary);
        Choice::new(index, listener.clone().hear_all(answer.text, answer.finish), logprobs)
    };
    let choices = (0..).zip(answers).map(choice).collect();
    let completion = ChatCompletion::new(envelope, choices, usage(&running.record));
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
            Ok(Heard { place, token }) => {
                let usage = usage(&self.running.record);
                if let Some(token) = token {
                    let vocabulary = self.app.model.tokenizer.vocabulary();
                    let chunks = self.chunks.on_token((place, &token), vocabulary, usage);
                    self.frames.extend(chunks.iter().map(Frame::json));
                }
                if self.running.is_over() {
                    self.frames.extend(self.chunks.on_end(usage).iter().map(Frame::json));
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

pub(super) fn usage(record: &Record) -> Usage {
    Usage::new(record.prompt().tokens.0, record.cached().0, record.generated_tokens())
}
