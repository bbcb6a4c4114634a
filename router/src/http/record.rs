//! One request's numbers: its log line, its metrics, its headers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use lockstep_proto::Tokens;
use lockstep_scheduler::Tenant;
use tracing::{Level, info};

use super::admission::name_of;
use super::frame::RequestId;
use super::intake::Arrival;
use super::native::finish_reason;
use super::trace::{RequestTrace, TracedUsage};
use crate::app::App;
use crate::clock;
use crate::engine::FinishReason;
use crate::error::ApiError;
use crate::metrics::RequestNumbers;

/// The status of an answer that is told, whatever becomes of it.
const OK: u16 = 200;

/// What is known of a request so far. Dropped before its end, the client has left.
pub(super) struct Record {
    app: Arc<App>,
    who: Who,
    arrived: Instant,
    submitted: Instant,
    prompt: PromptSize,
    queued: Option<Duration>,
    cached: Tokens,
    generated_tokens: u32,
    first_token: Option<Instant>,
    is_over: bool,
    // Dropped last: the request's span covers all of its answer.
    trace: RequestTrace,
}

/// Whose request it is, as every line about it says.
struct Who {
    id: RequestId,
    path: String,
    tenant: Tenant,
}

/// A prompt's size.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PromptSize {
    /// Characters of its text.
    pub(super) characters: usize,
    /// Tokens.
    pub(super) tokens: Tokens,
}

impl Record {
    /// A request that has just got its place.
    pub(super) fn new(app: Arc<App>, arrival: &Arrival) -> Self {
        Self {
            app,
            who: Who {
                id: arrival.id.clone(),
                path: arrival.path.clone(),
                tenant: arrival.service.tenant.clone(),
            },
            arrived: arrival.at,
            submitted: arrival.at,
            prompt: PromptSize::default(),
            queued: None,
            cached: Tokens::ZERO,
            generated_tokens: 0,
            first_token: None,
            is_over: false,
            trace: arrival.trace.clone(),
        }
    }

    /// It goes to the engine now.
    pub(super) fn on_submitted(&mut self, prompt: PromptSize) {
        self.submitted = clock::now();
        self.prompt = prompt;
    }

    /// One of its prompts left the queue.
    pub(super) fn on_admitted(&mut self, queued: Duration, cached: Tokens) {
        self.queued = self.queued.max(Some(queued));
        self.cached += cached;
    }

    /// When it has waited in the queue for too long; absent where it is out of it, or may wait as long as it takes.
    pub(super) fn waits_until(&self) -> Option<Instant> {
        let patience = self.app.config.patience.queue_timeout.filter(|_| self.queued.is_none());
        self.submitted.checked_add(patience?)
    }

    /// It has waited in the queue for too long.
    pub(super) fn waited_too_long(&self) -> ApiError {
        let waited = self.submitted.elapsed().as_secs();
        let message = format!("Model is overloaded: the request has waited for {waited} s");
        ApiError { message, ..self.app.overloaded() }
    }

    pub(super) fn on_token(&mut self) {
        self.generated_tokens += 1;
        if self.first_token.is_none() {
            self.first_token = Some(clock::now());
        }
    }

    /// The answer is complete.
    pub(super) fn finish(&mut self, reason: FinishReason) {
        self.is_over = true;
        let numbers = self.numbers();
        self.app.metrics.on_success(&numbers);
        self.app.load.on_finished(numbers.total);
        self.trace.on_finished(&TracedUsage {
            input_tokens: self.prompt.tokens.0,
            output_tokens: self.generated_tokens,
            cached_tokens: self.cached.0,
            arrived: self.arrived,
            first_token: self.first_token,
            finish: reason,
        });
        info!(
            id = self.who.id.0,
            path = self.who.path,
            tenant = name_of(&self.who.tenant),
            trace_id = self.trace.id(),
            status = OK,
            prompt_tokens = self.prompt.tokens.0,
            cached_tokens = self.cached.0,
            generated_tokens = self.generated_tokens,
            finish_reason = finish_reason(reason),
            total_ms = millis(numbers.total),
            validation_ms = millis(numbers.validation),
            queue_ms = millis(numbers.queue),
            inference_ms = millis(numbers.inference),
            "request finished"
        );
    }

    /// The answer ends with an error. Where the status is sent already, nobody else counts it.
    pub(super) fn fail_in_stream(&mut self, error: &ApiError) {
        self.is_over = true;
        self.app.metrics.on_failure(error.kind);
        self.trace.on_broken(error.kind.error_type());
        self.log_broken(error);
    }

    /// As loud as its kind is, as `frame::log`.
    fn log_broken(&self, error: &ApiError) {
        macro_rules! line {
            ($level:ident $(, $name:ident = $value:expr)?) => {
                tracing::$level!(
                    id = self.who.id.0,
                    path = self.who.path,
                    tenant = name_of(&self.who.tenant),
                    trace_id = self.trace.id(),
                    status = OK,
                    error_type = error.kind.error_type(),
                    $($name = $value,)?
                    "stream failed"
                )
            };
        }
        match error.kind.level() {
            Level::ERROR => line!(error, error = error.message),
            Level::WARN => line!(warn, error = error.message),
            Level::INFO => line!(info),
            _ => line!(debug, error = error.message),
        }
    }

    /// The answer is an error, which the layers above count and log.
    pub(super) fn fail(&mut self) {
        self.is_over = true;
    }

    pub(super) fn prompt(&self) -> PromptSize {
        self.prompt
    }

    pub(super) fn cached(&self) -> Tokens {
        self.cached
    }

    pub(super) fn generated_tokens(&self) -> u32 {
        self.generated_tokens
    }

    fn numbers(&self) -> RequestNumbers {
        let total = clock::since(self.arrived);
        let validation = self.submitted.saturating_duration_since(self.arrived);
        let queue = self.queued.unwrap_or_default();
        let inference = total.saturating_sub(validation).saturating_sub(queue);
        RequestNumbers { total, validation, queue, inference, generated_tokens: self.generated_tokens }
    }

    /// Headers of an answer that comes whole.
    pub(super) fn headers(&self) -> HeaderMap {
        let numbers = self.numbers();
        let mut headers = self.stream_headers();
        let values = [
            ("x-compute-time", numbers.total.as_secs_f64().to_string()),
            ("x-total-time", millis(numbers.total).to_string()),
            ("x-validation-time", millis(numbers.validation).to_string()),
            ("x-queue-time", millis(numbers.queue).to_string()),
            ("x-inference-time", millis(numbers.inference).to_string()),
            ("x-time-per-token", millis(numbers.time_per_token()).to_string()),
            ("x-prompt-tokens", self.prompt.tokens.to_string()),
            ("x-generated-tokens", self.generated_tokens.to_string()),
        ];
        for (name, value) in values {
            insert(&mut headers, name, &value);
        }
        headers
    }

    /// Headers known before the answer.
    pub(super) fn stream_headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        insert(&mut headers, "x-compute-type", &self.app.compute_type());
        insert(&mut headers, "x-compute-characters", &self.prompt.characters.to_string());
        headers
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if !self.is_over {
            self.app.metrics.on_dropped();
            self.trace.on_broken("client_left");
            info!(
                id = self.who.id.0,
                path = self.who.path,
                tenant = name_of(&self.who.tenant),
                trace_id = self.trace.id(),
                prompt_tokens = self.prompt.tokens.0,
                generated_tokens = self.generated_tokens,
                total_ms = millis(clock::since(self.arrived)),
                "request cancelled: its client has left"
            );
        }
    }
}

fn insert(headers: &mut HeaderMap, name: &'static str, value: &str) {
    // A value that is no header text, such as an odd `--compute-type`, is left out.
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(HeaderName::from_static(name), value);
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
