//! The way to the collector: batches, a bound on what waits, and a word on what is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{SpanExporter as OtlpExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider, Span, SpanData, SpanExporter,
    SpanProcessor,
};
use tracing::{info, warn};

use super::{TraceConfig, TraceError};

/// Spans that wait to be sent at most; one more is lost. A rank makes four for a step of a sampled request:
/// this is 2,000 steps, or some MiB.
const WAITING_SPANS: usize = 8_192;
/// Spans of one message.
const BATCH_SPANS: usize = 512;
/// How long a span waits for others to go with.
const DELAY: Duration = Duration::from_secs(1);
/// How long the collector may take for a batch. Nobody but the thread that sends waits for it.
const SEND_LIMIT: Duration = Duration::from_secs(5);

/// What did not reach the collector.
#[derive(Debug, Default)]
pub(super) struct Losses {
    waiting: AtomicUsize,
    dropped: AtomicU64,
    is_failing: AtomicBool,
}

/// Everything behind a tracer.
pub(super) fn provider(
    endpoint: &str,
    config: &TraceConfig,
) -> Result<(SdkTracerProvider, Arc<Losses>), TraceError> {
    let builder = OtlpExporter::builder().with_tonic().with_endpoint(endpoint).with_timeout(SEND_LIMIT);
    let exporter = builder.build().map_err(|error| TraceError::Endpoint {
        endpoint: endpoint.to_owned(),
        reason: error.to_string(),
    })?;
    let losses = Arc::new(Losses::default());
    let watched = Watched { exporter, losses: Arc::clone(&losses) };
    let batches = BatchConfigBuilder::default()
        .with_max_queue_size(WAITING_SPANS)
        .with_max_export_batch_size(BATCH_SPANS)
        .with_scheduled_delay(DELAY)
        .build();
    let processor = BatchSpanProcessor::builder(watched).with_batch_config(batches).build();
    let resource = Resource::builder()
        .with_service_name(config.service.clone())
        .with_attributes([
            KeyValue::new("service.instance.id", config.instance.clone()),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        ])
        .build();
    let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.sampling_ratio)));
    let provider = SdkTracerProvider::builder()
        .with_span_processor(Bounded { processor, losses: Arc::clone(&losses) })
        .with_sampler(sampler)
        .with_resource(resource)
        .build();
    Ok((provider, losses))
}

impl Losses {
    /// Whether there is room for one more; counts it either way.
    fn take_room(&self) -> bool {
        let waiting = self.waiting.fetch_add(1, Ordering::Relaxed);
        if waiting < WAITING_SPANS {
            return true;
        }
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        self.on_dropped(1);
        false
    }

    fn on_dropped(&self, spans: usize) {
        if self.dropped.fetch_add(spans as u64, Ordering::Relaxed) == 0 {
            warn!("spans are lost; how many is told at the end");
        }
    }

    /// A batch has left the queue.
    fn on_sent(&self, spans: usize, result: &OTelSdkResult) {
        self.waiting.fetch_sub(spans, Ordering::Relaxed);
        match result {
            Ok(()) => {
                if self.is_failing.swap(false, Ordering::Relaxed) {
                    info!("spans reach the collector again");
                }
            }
            Err(error) => {
                if !self.is_failing.swap(true, Ordering::Relaxed) {
                    warn!(%error, "spans do not reach the collector; requests are served all the same");
                }
                self.on_dropped(spans);
            }
        }
    }

    /// The last word.
    pub(super) fn report(&self, failure: Option<String>) {
        let dropped = self.dropped.load(Ordering::Relaxed);
        if dropped > 0 {
            warn!(dropped, "spans were lost");
        }
        if let Some(error) = failure {
            warn!(error, "the last spans were not sent in time");
        }
    }
}

/// Never lets more spans wait than there is room for, and knows how many it turned away.
#[derive(Debug)]
struct Bounded {
    processor: BatchSpanProcessor,
    losses: Arc<Losses>,
}

impl SpanProcessor for Bounded {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.processor.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && self.losses.take_room() {
            self.processor.on_end(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.processor.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.processor.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.processor.set_resource(resource);
    }
}

/// Knows what reached the collector.
#[derive(Debug)]
struct Watched {
    exporter: OtlpExporter,
    losses: Arc<Losses>,
}

impl SpanExporter for Watched {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let result = self.exporter.export(batch).await;
        self.losses.on_sent(spans, &result);
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_sdk::error::OTelSdkError;

    use super::*;

    #[test]
    fn what_has_no_room_is_counted_and_turned_away() {
        let losses = Losses::default();
        assert!((0..WAITING_SPANS).all(|_| losses.take_room()));
        assert!(!losses.take_room());
        losses.on_sent(BATCH_SPANS, &Ok(()));
        assert!((0..BATCH_SPANS).all(|_| losses.take_room()));
        assert!(!losses.take_room());
        assert_eq!(losses.dropped.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn what_the_collector_does_not_take_is_lost() {
        let losses = Losses::default();
        assert!((0..3).all(|_| losses.take_room()));
        losses.on_sent(3, &Err(OTelSdkError::Timeout(DELAY)));
        assert_eq!(losses.dropped.load(Ordering::Relaxed), 3);
        assert_eq!(losses.waiting.load(Ordering::Relaxed), 0);
        assert!(losses.is_failing.load(Ordering::Relaxed));
        losses.on_sent(0, &Ok(()));
        assert!(!losses.is_failing.load(Ordering::Relaxed));
    }
}
