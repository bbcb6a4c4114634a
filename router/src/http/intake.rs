//! From a request as a route understands it to a running sequence, and its tokens as they come.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use lockstep_proto::{PromptLogprobs, TokenId, TokenLogprobs, Tokens};
use lockstep_scheduler::{AdmissionError, ExpiredWhile, Service};
use tracing::{Span, debug};

use super::admission::{self, Place};
use super::auth::KeyName;
use super::encode::encode;
use super::excerpt::excerpt;
use super::frame::RequestId;
use super::grammar;
use super::record::{PromptSize, Record};
use super::registry::Registration;
use super::tape::{Journaling, Tape, submit_again};
use super::trace::RequestTrace;
use crate::app::App;
use crate::clock;
use crate::engine::{EngineError, FinishReason, GeneratedToken, Generation, GenerationEvent, Generations};
use crate::error::{ApiError, ErrorKind};
use crate::journal::Origin;
use crate::validation::{Prompt, TextRequest, ValidRequest};

/// Whether a request waits for a model that is not there yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WhenLoading {
    Refuse,
    Wait,
}

/// What a request brings besides its body.
pub(super) struct Arrival {
    pub(super) id: RequestId,
    /// Its address, as logs have it.
    pub(super) path: String,
    pub(super) at: Instant,
    pub(super) when_loading: WhenLoading,
    /// Whether an answer that is known will do.
    pub(super) takes_known: bool,
    pub(super) service: Service,
    /// The key it came with.
    pub(super) owner: Option<KeyName>,
    pub(super) trace: RequestTrace,
    /// Where streams are written down.
    pub(super) journaling: Option<Journaling>,
}

impl FromRequestParts<Arc<App>> for Arrival {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        let id = parts.extensions.get::<RequestId>().cloned();
        let id = id.ok_or_else(|| ApiError::new(ErrorKind::Internal, "The request has no id"))?;
        let waits = admission::flag(&parts.headers, "x-wait-for-model")?.unwrap_or(false);
        let when_loading = if waits { WhenLoading::Wait } else { WhenLoading::Refuse };
        let takes_known = admission::flag(&parts.headers, "x-use-cache")?.unwrap_or(true);
        let at = clock::now();
        let service = admission::service(parts, app.config.patience.request_timeout, at)?;
        if let Some(tenant) = admission::name_of(&service.tenant) {
            Span::current().record("tenant", tenant);
        }
        let path = excerpt(parts.uri.path()).into_owned();
        let trace = parts.extensions.get().cloned().unwrap_or_default();
        let journaling = parts.extensions.get().cloned();
        let owner = parts.extensions.get().cloned();
        Ok(Self { id, path, at, when_loading, takes_known, service, owner, trace, journaling })
    }
}

impl Arrival {
    /// Whether an earlier process has begun to answer it.
    fn is_replayed(&self) -> bool {
        self.journaling.as_ref().is_some_and(|journaling| journaling.past.is_some())
    }
}

/// A request that is being answered. Dropping it cancels it.
pub(super) struct Running {
    generations: Generations,
    pub(super) record: Record,
    registration: Registration,
    tape: Tape,
    origin: Option<Origin>,
    /// In the request's order, at least one.
    pub(super) prompts: Vec<RunningPrompt>,
    /// Sequences of each prompt, at least one. That of choice c of prompt p has place p × choices + c.
    pub(super) choices: usize,
    // Given back after the sequences are cancelled.
    _permit: Place,
}

/// A prompt that is being continued.
pub(super) struct RunningPrompt {
    pub(super) text: String,
    /// Those that are kept; empty unless their log-probabilities are wanted.
    pub(super) tokens: Vec<TokenId>,
    /// Log-probabilities of the prompt from its second token on, once they are known.
    pub(super) logprobs: Vec<TokenLogprobs>,
    /// The seed, when sampling.
    pub(super) seed: Option<u64>,
}

/// What comes next of an answer.
pub(super) struct Heard {
    /// Whose.
    pub(super) place: usize,
    /// Absent where the prompt is done and no token was asked for.
    pub(super) token: Option<GeneratedToken>,
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
    start_all(app, arrival, vec![request]).await
}

/// The same with several prompts, each as a request of its own with as many choices as the others.
pub(super) async fn start_all(
    app: &Arc<App>,
    arrival: Arrival,
    mut requests: Vec<TextRequest>,
) -> Result<Running, ApiError> {
    debug!("received");
    if let Some(journaling) = &arrival.journaling {
        for (index, request) in requests.iter_mut().enumerate() {
            request.sampling.seed.get_or_insert(journaling.seed(index));
        }
    }
    let origin = arrival.journaling.as_ref().map(|journaling| journaling.origin);
    let choices = requests.first().map_or(1, |request| request.choices);
    let (tenant, count) = (&arrival.service.tenant, sequences(app, &requests)?);
    let permit =
        if arrival.is_replayed() { app.admit_again(tenant, count) } else { app.admit(tenant, count) }?;
    // From here on a client that leaves is counted, whatever its request waits for.
    let mut record = Record::new(Arc::clone(app), &arrival);
    let started = begin(app, arrival, requests, &mut record).await;
    let Begun { generations, registration, tape, prompts } = started.inspect_err(|_| record.fail())?;
    let generations = Generations::new(generations);
    let choices = choices as usize;
    Ok(Running { generations, record, registration, tape, origin, prompts, choices, _permit: permit })
}

/// How many sequences a request is. One that needs more places than there are could wait for ever.
fn sequences(app: &App, requests: &[TextRequest]) -> Result<u32, ApiError> {
    let (prompts, places) = (requests.len().max(1), app.config.max_concurrent_requests);
    if prompts > places {
        let message = format!("`prompt` must have <= {places} texts. Given: {prompts}");
        return Err(ApiError::invalid("prompt", message));
    }
    let choices = requests.first().map_or(1, |request| request.choices);
    let most = u32::try_from(places / prompts).unwrap_or(u32::MAX);
    if !(1..=most).contains(&choices) {
        let best_of = requests.first().and_then(|request| request.sampling.best_of);
        let name = if best_of.is_some_and(|best_of| best_of > 1) { "best_of" } else { "n" };
        return Err(ApiError::invalid(
            name,
            format_args!("`{name}` must be >= 1 and <= {most}. Given: {choices}"),
        ));
    }
    Ok(choices.saturating_mul(u32::try_from(prompts).unwrap_or(u32::MAX)))
}

/// A request that the engine has.
struct Begun {
    /// By place; `None` where an earlier process has told the whole answer.
    generations: Vec<Option<Generation>>,
    registration: Registration,
    tape: Tape,
    prompts: Vec<RunningPrompt>,
}

async fn begin(
    app: &Arc<App>,
    arrival: Arrival,
    requests: Vec<TextRequest>,
    record: &mut Record,
) -> Result<Begun, ApiError> {
    wait_for_model(app, &arrival).await?;
    // All are checked before the first is computed.
    let mut ready = Vec::with_capacity(requests.len());
    let mut size = PromptSize::default();
    let mut whole_prompts = Vec::new();
    for (index, request) in requests.into_iter().enumerate() {
        let keep = request.prompt_logprobs;
        let salt = app.keys.salts.of(arrival.owner.as_ref(), request.cache_salt.as_deref());
        let (mut valid, prompt) = validate(app, request, (arrival.journaling.as_ref(), index)).await?;
        valid.assignments.iter_mut().for_each(|assignment| assignment.submission.cache_salt = salt);
        whole_prompts.extend(prompt);
        size.characters += valid.prompt_text.chars().count();
        size.tokens += Tokens::of_len(valid.prompt_tokens.len());
        arrival.trace.on_valid(&valid);
        ready.push((valid, keep));
    }
    record.on_submitted(size);
    let origin = arrival.trace.origin(&arrival.id);
    let is_replayed = arrival.is_replayed();
    let registration = Registration::new(Arc::clone(app), arrival.id, arrival.owner);
    let tape = arrival.journaling.as_ref().map(|of| Tape::new(of, whole_prompts, app.fingerprint()));
    let tape = tape.unwrap_or_default();
    let mut begun = Begun { generations: Vec::new(), registration, tape, prompts: Vec::new() };
    for (valid, keep) in ready {
        let tokens = if keep == PromptLogprobs::Return { valid.prompt_tokens } else { Vec::new() };
        let prompt =
            RunningPrompt { text: valid.prompt_text, tokens, logprobs: Vec::new(), seed: valid.seed };
        begun.prompts.push(prompt);
        for mut assignment in valid.assignments {
            assignment.submission.service = arrival.service.clone();
            assignment.trace.clone_from(&origin);
            let Some(assignment) = begun.tape.resume(begun.generations.len(), assignment) else {
                begun.generations.push(None);
                continue;
            };
            let submitted = if is_replayed {
                submit_again(&app.engine, assignment).await
            } else {
                app.engine.submit(assignment).await
            };
            let generation = submitted.map_err(|error| of_engine(app, &error))?;
            debug!(sequence = %generation.sequence(), "queued");
            begun.generations.push(Some(generation));
        }
    }
    Ok(begun)
}

/// What will be done, and the whole prompt of the `index`-th request where streams are written down.
async fn validate(
    app: &Arc<App>,
    request: TextRequest,
    (journaling, index): (Option<&Journaling>, usize),
) -> Result<(ValidRequest, Option<Prompt>), ApiError> {
    let limits = app.limits();
    let (source, awaiting) = request.check(&limits)?.split();
    let prompt = match journaling.and_then(|journaling| journaling.prompt(index)) {
        Some(prompt) => prompt,
        None => encode(app, source).await?,
    };
    debug!(prompt = prompt.text, tokens = prompt.tokens.len(), "tokenized");
    let whole = journaling.map(|_| prompt.clone());
    let mut valid = awaiting.with_prompt(prompt, &limits, &app.model.end_tokens)?;
    if let Some(grammar) = valid.grammar.take() {
        let grammar = grammar::compile(app, grammar).await?;
        for assignment in &mut valid.assignments {
            assignment.grammar = Some(grammar.clone());
        }
    }
    let max_new_tokens =
        valid.assignments.first().map_or(0, |assignment| assignment.submission.max_new_tokens.0);
    app.metrics.on_validated(Tokens::of_len(valid.prompt_tokens.len()).0, max_new_tokens);
    Ok((valid, whole))
}

impl Running {
    /// The first prompt, which most requests have alone.
    pub(super) fn prompt(&self) -> Option<&RunningPrompt> {
        self.prompts.first()
    }

    /// Whether every answer is complete.
    pub(super) fn is_over(&self) -> bool {
        self.generations.is_over() && self.tape.is_played()
    }

    /// What comes is told as a stream, which may be written down.
    pub(super) async fn open_stream(&mut self) {
        self.tape.open().await;
    }

    /// What was drawn when it arrived, where streams are written down.
    pub(super) fn origin(&self) -> Option<&Origin> {
        self.origin.as_ref()
    }

    /// What comes next, of any of the answers.
    ///
    /// # Errors
    /// When there will be no more; it is the request's last word.
    ///
    /// # Cancel safety
    /// No token is lost.
    pub(super) async fn next(&mut self) -> Result<Heard, ApiError> {
        loop {
            let heard = tokio::select! {
                biased;
                () = self.registration.cancelled.cancelled() => {
                    return Err(ApiError::new(ErrorKind::Cancelled, "The request was cancelled"));
                }
                heard = self.tape.next(&mut self.generations) => heard,
                () = until(self.record.waits_until()) => return Err(self.record.waited_too_long()),
            };
            let incomplete = || ApiError::new(ErrorKind::Incomplete, "Incomplete generation");
            let (place, event) = heard.ok_or_else(incomplete)?;
            let (prompt, choice) = (place / self.choices, place % self.choices);
            match event.ok_or_else(incomplete)? {
                GenerationEvent::Admitted { queued, cached } => {
                    // The others find the prompt computed by the first.
                    if choice == 0 {
                        self.record.on_admitted(queued, cached);
                    }
                }
                GenerationEvent::Prompt(tokens) => {
                    if let Some(prompt) = self.prompts.get_mut(prompt) {
                        prompt.logprobs.extend(tokens);
                    }
                }
                GenerationEvent::Token(token) => {
                    self.record.on_token();
                    if let Some(reason) = token.finish {
                        self.on_end(reason);
                    }
                    return Ok(Heard { place, token: Some(token) });
                }
                GenerationEvent::PromptDone => {
                    self.on_end(FinishReason::Length);
                    return Ok(Heard { place, token: None });
                }
                GenerationEvent::Failed(error) => return Err(of_failure(&error)),
            }
        }
    }

    /// An answer has ended; with the last one, the request.
    fn on_end(&mut self, reason: FinishReason) {
        if self.is_over() {
            self.record.finish(reason);
        }
    }

    /// Every answer, by place.
    pub(super) async fn collect(&mut self) -> Result<Vec<Answer>, ApiError> {
        let empty = || Answer { text: String::new(), tokens: Vec::new(), finish: FinishReason::Length };
        let mut answers: Vec<Answer> = (0..self.prompts.len() * self.choices).map(|_| empty()).collect();
        while !self.is_over() {
            let Heard { place, token } = self.next().await.inspect_err(|_| self.record.fail())?;
            let Some((answer, token)) = answers.get_mut(place).zip(token) else { continue };
            answer.text.push_str(&token.delta);
            answer.finish = token.finish.unwrap_or(answer.finish);
            answer.tokens.push(token);
        }
        Ok(answers)
    }
}

/// Until then; without a time, for ever.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

/// Waits, or refuses, until the shards are there.
async fn wait_for_model(app: &App, arrival: &Arrival) -> Result<(), ApiError> {
    if app.is_ready() {
        return Ok(());
    }
    match (arrival.when_loading, arrival.service.deadline) {
        (WhenLoading::Refuse, _) => Err(app.loading()),
        (WhenLoading::Wait, None) => {
            debug!("waiting for the model");
            app.wait_until_ready().await
        }
        (WhenLoading::Wait, Some(deadline)) => {
            debug!("waiting for the model, until the deadline");
            let waited = tokio::time::timeout_at(deadline.into(), app.wait_until_ready()).await;
            waited
                .unwrap_or_else(|_| Err(of_failure(&EngineError::Expired { state: ExpiredWhile::Waiting })))
        }
    }
}

fn of_engine(app: &App, error: &EngineError) -> ApiError {
    match error {
        EngineError::Refused(AdmissionError::Full { .. } | AdmissionError::QueueFull { .. }) => {
            app.overloaded()
        }
        EngineError::Refused(AdmissionError::TooLate { wait, left }) => {
            let (wait, left) = (wait.as_secs_f32(), left.as_secs_f32());
            let message = format!(
                "Model is overloaded: the request has {left:.2} s left and about {wait:.2} s of work wait before it"
            );
            ApiError { message, ..app.overloaded() }
        }
        EngineError::Refused(refusal) => ApiError::invalid("inputs", refusal),
        EngineError::Failed(_) | EngineError::GroupLost { .. } => of_failure(error),
        EngineError::Expired { .. } | EngineError::Stopping => of_failure(error),
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
        EngineError::Expired { state } => {
            let message = match state {
                ExpiredWhile::Waiting => "The request's deadline has come while it waited",
                ExpiredWhile::Running => "The request's deadline has come before its answer was complete",
            };
            ApiError::new(ErrorKind::Timeout, message)
        }
        EngineError::Stopping => ApiError::draining(),
    }
}
