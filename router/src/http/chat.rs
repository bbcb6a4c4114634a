//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};

use super::body::JsonBody;
use super::intake::{Answer, Arrival, Heard, Running, start};
use super::models;
use super::openai::{
    ChatCompletion, ChatRequest, ChatStream, Choice, Delivery, Envelope, Listener, Logprobs, Usage,
    entries, in_openai_words,
};
use super::record::Record;
use super::sse::{self, Frame, Outbox, Telling};
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
    let mut running = start(&app, arrival, text).await.map_err(|error| tools.in_words(error))?;
    let listener = Listener::new(tools.rules.as_ref(), app.model.calls.style);
    let envelope = Envelope::new("chatcmpl", model, app.fingerprint(), running.origin());
    match delivery {
        Delivery::Whole => whole(&app, running, envelope, (logprobs, listener)).await,
        Delivery::Stream(usage) => {
            running.open_stream().await;
            let headers = running.record.stream_headers();
            let calls = running.origin().map(|origin| origin.calls);
            let named = |choice| listener.clone().named(calls, choice);
            let listeners = (0..running.choices).map(named).collect();
            let chunks = ChatStream::new(envelope, logprobs, usage, listeners);
            let stream = Answering { app, running, chunks, outbox: Outbox::default() };
            Ok(sse::respond(sse::frames(stream), headers))
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
    outbox: Outbox,
}

impl Telling for Answering {
    fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }

    async fn advance(&mut self) {
        match self.running.next().await {
            Ok(Heard { place, token }) => {
                let usage = usage(&self.running.record);
                if let Some(token) = token {
                    let vocabulary = self.app.model.tokenizer.vocabulary();
                    let chunks = self.chunks.on_token((place, &token), vocabulary, usage);
                    chunks.iter().map(Frame::json).for_each(|frame| self.outbox.push(frame));
                }
                if self.running.is_over() {
                    self.chunks
                        .on_end(usage)
                        .iter()
                        .map(Frame::json)
                        .for_each(|frame| self.outbox.push(frame));
                    self.outbox.end(Frame::Done);
                }
            }
            Err(error) => {
                let error = in_openai_words(error);
                self.running.record.fail_in_stream(&error);
                self.outbox.end(Frame::error(&error, Family::OpenAi));
            }
        }
    }
}

pub(super) fn usage(record: &Record) -> Usage {
    Usage::new(record.prompt().tokens.0, record.cached().0, record.generated_tokens())
}
