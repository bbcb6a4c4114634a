//! `POST /v1/completions`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};

use super::body::JsonBody;
use super::chat::usage;
use super::generate::mean_logprob;
use super::intake::{Answer, Arrival, Heard, Running, RunningPrompt, start_all};
use super::models;
use super::openai::{
    Completion, CompletionChoice, CompletionChunk, CompletionLimits, CompletionLogprobs, CompletionRequest,
    Delivery, Echo, Envelope, UsageWish, in_completion_words,
};
use super::sse::{self, Frame, Outbox, Telling};
use crate::app::App;
use crate::engine::FinishReason;
use crate::error::{ApiError, Family};

/// Texts that continue the prompts, whole or as they come.
pub(super) async fn completions(
    State(app): State<Arc<App>>,
    arrival: Arrival,
    JsonBody(mut body): JsonBody,
) -> Result<Response, ApiError> {
    let limits =
        CompletionLimits { prompts: app.config.max_client_batch_size, best_of: app.limits().max_best_of };
    let request = CompletionRequest::parse(&mut body, limits)?;
    let CompletionRequest { mut texts, model, delivery, echo, logprobs, answers } = request;
    let model = models::name(&app, model)?;
    texts.iter_mut().for_each(|text| text.sampling.fill(&app.model.sampling_defaults));
    let mut running = start_all(&app, arrival, texts).await.map_err(in_completion_words)?;
    let envelope = Envelope::new("cmpl", model, app.fingerprint(), running.origin());
    let shape = Shape { app, envelope, echo, logprobs };
    match delivery {
        Delivery::Whole => whole(shape, running, answers as usize).await,
        Delivery::Stream(wish) => {
            running.open_stream().await;
            let headers = running.record.stream_headers();
            let begun = (0..running.prompts.len() * running.choices).map(|_| Begun::No).collect();
            let stream =
                Answering { shape, running, wish, begun, held: Vec::new(), outbox: Outbox::default() };
            Ok(sse::respond(sse::frames(stream), headers))
        }
    }
}

/// What answers look like.
struct Shape {
    app: Arc<App>,
    envelope: Envelope,
    echo: Echo,
    logprobs: bool,
}

impl Shape {
    /// What an answer begins with.
    fn opening(&self, prompt: &RunningPrompt) -> (String, Option<CompletionLogprobs>) {
        let vocabulary = self.app.model.tokenizer.vocabulary();
        let (text, logprobs) = match self.echo {
            Echo::Nothing => (String::new(), CompletionLogprobs::default()),
            Echo::Prompt => {
                let RunningPrompt { text, tokens, logprobs, .. } = prompt;
                let logprobs = CompletionLogprobs::of_prompt(text, tokens, logprobs, vocabulary);
                (text.clone(), logprobs)
            }
        };
        (text, self.logprobs.then_some(logprobs))
    }

    fn choice(&self, prompt: &RunningPrompt, index: usize, answer: Answer) -> CompletionChoice {
        let (mut text, mut logprobs) = self.opening(prompt);
        if let Some(logprobs) = &mut logprobs {
            let mut offset = text.chars().count();
            logprobs.extend(&answer.tokens, &mut offset, self.app.model.tokenizer.vocabulary());
        }
        text.push_str(&answer.text);
        CompletionChoice::new(index, text, logprobs, Some(answer.finish))
    }
}

async fn whole(shape: Shape, mut running: Running, wanted: usize) -> Result<Response, ApiError> {
    let mut answers = running.collect().await.map_err(in_completion_words)?.into_iter();
    let mut choices = Vec::new();
    for prompt in &running.prompts {
        let mut candidates: Vec<Answer> = answers.by_ref().take(running.choices).collect();
        if candidates.len() > wanted {
            // Stable: the first of equals stays the first.
            candidates.sort_by(|one, other| mean_logprob(other).total_cmp(&mean_logprob(one)));
            candidates.truncate(wanted);
        }
        for answer in candidates {
            choices.push(shape.choice(prompt, choices.len(), answer));
        }
    }
    let completion = Completion::new(shape.envelope, choices, usage(&running.record));
    Ok((running.record.headers(), Json(completion)).into_response())
}

struct Answering {
    shape: Shape,
    running: Running,
    wish: UsageWish,
    /// By place.
    begun: Vec<Begun>,
    /// Heard before the prompt they repeat was known whole.
    held: Vec<Heard>,
    outbox: Outbox,
}

/// How far an answer is.
#[derive(Clone, Copy)]
enum Begun {
    No,
    /// So many characters of its text have come.
    Yes(usize),
}

impl Telling for Answering {
    fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }

    async fn advance(&mut self) {
        match self.running.next().await {
            Ok(heard) => {
                self.held.push(heard);
                for heard in std::mem::take(&mut self.held) {
                    match self.is_prompt_known(heard.place) {
                        true => self.say(heard),
                        false => self.held.push(heard),
                    }
                }
                if self.running.is_over() {
                    self.end();
                }
            }
            Err(error) => {
                let error = in_completion_words(error);
                self.running.record.fail_in_stream(&error);
                self.outbox.end(Frame::error(&error, Family::OpenAi));
            }
        }
    }
}

impl Answering {
    fn prompt(&self, place: usize) -> Option<&RunningPrompt> {
        self.running.prompts.get(place / self.running.choices)
    }

    /// Whether the log-probabilities are there that an answer's first piece repeats.
    fn is_prompt_known(&self, place: usize) -> bool {
        self.prompt(place).is_none_or(|prompt| prompt.logprobs.len() + 1 >= prompt.tokens.len())
    }

    fn say(&mut self, Heard { place, token }: Heard) {
        let begun = self.begun.get(place).copied().unwrap_or(Begun::Yes(0));
        let (mut text, mut logprobs, mut offset) = match (begun, self.prompt(place)) {
            (Begun::No, Some(prompt)) => {
                let (text, logprobs) = self.shape.opening(prompt);
                let offset = text.chars().count();
                (text, logprobs, offset)
            }
            (Begun::No, None) => (String::new(), None, 0),
            (Begun::Yes(offset), _) => {
                (String::new(), self.shape.logprobs.then(CompletionLogprobs::default), offset)
            }
        };
        let finish = match token {
            Some(token) => {
                text.push_str(&token.delta);
                let vocabulary = self.shape.app.model.tokenizer.vocabulary();
                let tokens = std::slice::from_ref(&token);
                match &mut logprobs {
                    Some(logprobs) => logprobs.extend(tokens, &mut offset, vocabulary),
                    None => offset += token.text.chars().count(),
                }
                token.finish
            }
            None => Some(FinishReason::Length),
        };
        if let Some(begun) = self.begun.get_mut(place) {
            *begun = Begun::Yes(offset);
        }
        if text.is_empty() && logprobs.is_none() && finish.is_none() {
            return;
        }
        let choice = CompletionChoice::new(place, text, logprobs, finish);
        let usage = usage(&self.running.record);
        let usage = match (self.wish.always, self.wish.at_end) {
            (true, _) => Some(Some(usage)),
            (false, true) => Some(None),
            (false, false) => None,
        };
        let chunk = CompletionChunk::new(self.shape.envelope.clone(), Some(choice), usage);
        self.outbox.push(Frame::json(&chunk));
    }

    fn end(&mut self) {
        if self.wish.at_end {
            let usage = Some(Some(usage(&self.running.record)));
            let chunk = CompletionChunk::new(self.shape.envelope.clone(), None, usage);
            self.outbox.push(Frame::json(&chunk));
        }
        self.outbox.end(Frame::Done);
    }
}
