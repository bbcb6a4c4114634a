//! The span of a request, from its arrival to the last byte of its answer.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, Method, StatusCode};
use lockstep_process::traces::{Incoming, Span};
use lockstep_proto::Selection;

use super::excerpt::excerpt;
use super::frame::RequestId;
use crate::app::App;
use crate::engine::{FinishReason, TraceOrigin};
use crate::validation::ValidRequest;

/// The trace of one request, shared by all who answer it. Its span ends when the last of them is done.
#[derive(Clone, Default)]
pub(super) struct RequestTrace {
    span: Option<Arc<Mutex<Span>>>,
    /// The trace's name, which the client may have given though nothing is sampled.
    id: Option<Arc<str>>,
}

impl RequestTrace {
    /// The trace of a request that has just come. Probes, scrapes and pages have none.
    pub(super) fn begin(app: &App, request: &Request, id: &RequestId) -> Self {
        let client = incoming(request.headers());
        if request.method() != Method::POST {
            return Self::default();
        }
        let route = request.extensions().get::<MatchedPath>().map_or("unknown", MatchedPath::as_str);
        let traces = &app.config.traces;
        let span = if traces.is_on() { traces.serve(format!("POST {route}"), client) } else { None };
        let Some(mut span) = span else {
            return Self { span: None, id: client.trace_id().map(Into::into) };
        };
        span.set("http.request.method", "POST");
        span.set("http.route", route.to_owned());
        span.set("url.path", excerpt(request.uri().path()).into_owned());
        span.set("lockstep.request.id", id.0.clone());
        span.set("gen_ai.operation.name", operation(route));
        span.set("gen_ai.provider.name", "lockstep");
        span.set("gen_ai.request.model", app.model.id.clone());
        let id = Some(span.trace_id().into());
        Self { span: Some(Arc::new(Mutex::new(span))), id }
    }

    /// The trace's name, for logs.
    pub(super) fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// What the sequences of request `id` hang on.
    pub(super) fn origin(&self, id: &RequestId) -> Option<TraceOrigin> {
        let span = self.span.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        Some(TraceOrigin { parent: span.parent(), request: id.0.as_str().into() })
    }

    /// What it asks for is known.
    pub(super) fn on_valid(&self, request: &ValidRequest) {
        let Some(assignment) = request.assignments.first() else { return };
        let submission = &assignment.submission;
        self.with(|span| {
            span.set("gen_ai.request.max_tokens", i64::from(submission.max_new_tokens.0));
            span.set("gen_ai.request.choice.count", count(request.assignments.len()));
            if let Selection::Seeded(seeded) = &submission.sampling.selection {
                span.set("gen_ai.request.seed", seeded.seed as i64);
                span.set("gen_ai.request.temperature", f64::from(seeded.temperature));
                span.set("gen_ai.request.top_p", f64::from(seeded.top_p));
            }
        });
    }

    /// Its status is sent. One of a stream says nothing of the stream's end.
    pub(super) fn on_response(&self, status: StatusCode, error_type: Option<&'static str>) {
        self.with(|span| {
            span.set("http.response.status_code", i64::from(status.as_u16()));
            if let Some(error_type) = error_type {
                span.set("error.type", error_type);
            }
            if status.is_server_error() {
                span.fail(error_type.unwrap_or("internal"));
            }
        });
    }

    /// Its answer is complete.
    pub(super) fn on_finished(&self, usage: &TracedUsage) {
        self.with(|span| {
            span.set("gen_ai.usage.input_tokens", i64::from(usage.input_tokens));
            span.set("gen_ai.usage.output_tokens", i64::from(usage.output_tokens));
            span.set("gen_ai.usage.cache_read.input_tokens", i64::from(usage.cached_tokens));
            if let Some(first) = usage.first_token {
                let waited = first.saturating_duration_since(usage.arrived);
                span.set("gen_ai.response.time_to_first_chunk", waited.as_secs_f64());
            }
            let reason = match usage.finish {
                FinishReason::Length => "length",
                FinishReason::EndOfSequence | FinishReason::StopSequence => "stop",
            };
            span.set_list("gen_ai.response.finish_reasons", vec![reason]);
        });
    }

    /// Its answer ends with an error after its status was sent, or its client has left.
    pub(super) fn on_broken(&self, error_type: &'static str) {
        self.with(|span| {
            span.set("error.type", error_type);
            span.fail(error_type);
        });
    }

    fn with(&self, say: impl FnOnce(&mut Span)) {
        if let Some(span) = &self.span {
            say(&mut span.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }
}

/// What an answer was made of.
pub(super) struct TracedUsage {
    pub(super) input_tokens: u32,
    pub(super) output_tokens: u32,
    pub(super) cached_tokens: u32,
    pub(super) arrived: Instant,
    pub(super) first_token: Option<Instant>,
    pub(super) finish: FinishReason,
}

fn incoming(headers: &HeaderMap) -> Incoming<'_> {
    let text = |name| headers.get(name).and_then(|value: &axum::http::HeaderValue| value.to_str().ok());
    Incoming { parent: text("traceparent"), state: text("tracestate") }
}

/// What OpenTelemetry's conventions for generative models call what a route does.
fn operation(route: &str) -> &'static str {
    if route.contains("/chat/") { "chat" } else { "text_completion" }
}

fn count(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
