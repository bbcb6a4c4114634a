//! Spans, sent to an OpenTelemetry collector over OTLP.
//!
//! Whether a request is sampled is decided once, where it comes in; what follows has a parent only if it was.
//! Without a collector, and for requests that are not sampled, there are no spans at all: whoever would make one
//! holds `None`.

mod config;
mod export;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lockstep_proto::TraceParent;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{
    Link, Span as _, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId,
    TraceState, Tracer, TracerProvider,
};
use opentelemetry::{Array, Context, KeyValue};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, Span as SdkSpan};
use thiserror::Error;

pub use config::{Role, TraceConfig};
pub use opentelemetry::Value;

/// Spans cannot be sent as configured.
#[derive(Debug, Error)]
pub enum TraceError {
    /// A share that is none.
    #[error("sample {found} of all traces: it must be a number from 0 to 1; see --trace-sampling-ratio")]
    Ratio {
        /// What was given.
        found: f64,
    },
    /// The collector's address cannot be used.
    #[error(
        "send spans to {endpoint}: {reason}; --otlp-endpoint takes http://host:port of a gRPC receiver"
    )]
    Endpoint {
        /// Where.
        endpoint: String,
        /// Why not.
        reason: String,
    },
}

/// Where spans go; clones lead to the same place. The default is nowhere.
#[derive(Clone, Debug, Default)]
pub struct Traces(Option<Arc<Sending>>);

#[derive(Debug)]
struct Sending {
    tracer: SdkTracer,
    provider: SdkTracerProvider,
    losses: Arc<export::Losses>,
}

/// A request's `traceparent` and `tracestate` headers (W3C Trace Context).
#[derive(Clone, Copy, Debug, Default)]
pub struct Incoming<'a> {
    /// Names the trace and the span the request comes from.
    pub parent: Option<&'a str>,
    /// What others carry along.
    pub state: Option<&'a str>,
}

/// What a new span hangs on.
#[derive(Clone, Copy, Debug)]
pub enum Origin<'a> {
    /// The request of a client, which may have named a span of its own.
    Client(Incoming<'a>),
    /// A span of this process or of another.
    Span(TraceParent),
}

/// A span that is being measured. It ends when it is dropped.
#[derive(Debug)]
pub struct Span(SdkSpan);

impl Traces {
    /// Starts sending; without an endpoint there is nothing to send. Needs a tokio runtime around it, which must
    /// live until [`Self::stop`] is done.
    ///
    /// # Errors
    /// When the configuration makes no sense. A collector that is not there is none: it may come.
    pub fn start(config: &TraceConfig) -> Result<Self, TraceError> {
        config.check()?;
        let Some(endpoint) = &config.endpoint else { return Ok(Self::default()) };
        let (provider, losses) = export::provider(endpoint, config)?;
        let tracer = provider.tracer("lockstep");
        Ok(Self(Some(Arc::new(Sending { tracer, provider, losses }))))
    }

    /// A span of a request that came in; `None` where it is not sampled.
    pub fn serve(&self, name: String, client: Incoming<'_>) -> Option<Span> {
        self.begin(name.into(), SpanKind::Server, Origin::Client(client), None)
    }

    /// A span of work for `parent`.
    pub fn child(&self, name: &'static str, parent: TraceParent) -> Option<Span> {
        self.begin(name.into(), SpanKind::Internal, Origin::Span(parent), None)
    }

    /// The same, of work that began at `start`.
    pub fn child_since(&self, name: &'static str, parent: TraceParent, start: SystemTime) -> Option<Span> {
        self.begin(name.into(), SpanKind::Internal, Origin::Span(parent), Some(start))
    }

    fn begin(
        &self,
        name: Cow<'static, str>,
        kind: SpanKind,
        origin: Origin<'_>,
        start: Option<SystemTime>,
    ) -> Option<Span> {
        let sending = self.0.as_ref()?;
        let mut builder = sending.tracer.span_builder(name).with_kind(kind);
        builder.start_time = start;
        let span = sending.tracer.build_with_context(builder, &origin.context());
        // Sampled is what the parent or the ratio says; all else is never sent.
        span.span_context().is_sampled().then_some(Span(span))
    }

    /// Whether there is a collector to send to.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Sends what has ended so far, within `limit`. Blocks.
    pub fn flush(&self, limit: Duration) {
        let Some(sending) = &self.0 else { return };
        let provider = sending.provider.clone();
        let (done, wait) = std::sync::mpsc::channel();
        // The library's own limit is 5 s. What comes of it is told by whoever sends.
        std::thread::spawn(move || done.send(provider.force_flush()));
        let _ = wait.recv_timeout(limit);
    }

    /// Sends what is left, within `limit`. Blocks.
    pub fn stop(&self, limit: Duration) {
        let Some(sending) = &self.0 else { return };
        let sent = sending.provider.shutdown_with_timeout(limit);
        sending.losses.report(sent.err().map(|error| error.to_string()));
    }
}

impl Origin<'_> {
    fn context(self) -> Context {
        match self {
            Self::Client(incoming) => incoming.context(),
            Self::Span(parent) => Context::new().with_remote_span_context(span_context(parent)),
        }
    }
}

impl Incoming<'_> {
    fn context(self) -> Context {
        match self.parent.filter(|parent| is_traceparent(parent)) {
            None => Context::new(),
            Some(_) => TraceContextPropagator::new().extract_with_context(&Context::new(), &self),
        }
    }

    /// The trace the client names, as 32 hexadecimal digits.
    pub fn trace_id(self) -> Option<String> {
        let context = self.context();
        let span = context.span();
        let named = span.span_context();
        named.is_valid().then(|| named.trace_id().to_string())
    }
}

/// Whether it has the standard's form, as far as lengths go; the library reads shorter ones as well.
fn is_traceparent(header: &str) -> bool {
    let mut parts = header.split('-').map(str::len);
    [2, 32, 16, 2].into_iter().all(|length| parts.next() == Some(length))
}

impl Extractor for Incoming<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            "traceparent" => self.parent,
            "tracestate" => self.state,
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent", "tracestate"]
    }
}

impl Span {
    /// What spans elsewhere hang on it by.
    pub fn parent(&self) -> TraceParent {
        let context = self.0.span_context();
        let trace_id = u128::from_be_bytes(context.trace_id().to_bytes());
        TraceParent { trace_id, span_id: u64::from_be_bytes(context.span_id().to_bytes()) }
    }

    /// The trace it is in, as 32 hexadecimal digits.
    pub fn trace_id(&self) -> String {
        self.0.span_context().trace_id().to_string()
    }

    /// Says something of it.
    pub fn set(&mut self, name: &'static str, value: impl Into<Value>) {
        self.0.set_attribute(KeyValue::new(name, value));
    }

    /// Says a list of texts of it.
    pub fn set_list(&mut self, name: &'static str, texts: Vec<&'static str>) {
        let texts = texts.into_iter().map(Into::into).collect();
        self.0.set_attribute(KeyValue::new(name, Value::Array(Array::String(texts))));
    }

    /// Something happened, now.
    pub fn event(&mut self, name: &'static str) {
        self.0.add_event(name, Vec::new());
    }

    /// What it measures failed.
    pub fn fail(&mut self, reason: impl Into<Cow<'static, str>>) {
        self.0.set_status(Status::error(reason));
    }

    /// Work for `other` as well.
    pub fn link(&mut self, other: TraceParent) {
        let Link { span_context, attributes, .. } = Link::with_context(span_context(other));
        self.0.add_link(span_context, attributes);
    }

    /// Ends it at a time other than now.
    pub fn end_at(mut self, end: SystemTime) {
        self.0.end_with_timestamp(end);
    }
}

fn span_context(parent: TraceParent) -> SpanContext {
    let trace_id = TraceId::from_bytes(parent.trace_id.to_be_bytes());
    let span_id = SpanId::from_bytes(parent.span_id.to_be_bytes());
    // Only sampled requests have parents to hand on.
    SpanContext::new(trace_id, span_id, TraceFlags::SAMPLED, true, TraceState::NONE)
}

#[cfg(test)]
mod tests;
