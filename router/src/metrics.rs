//! Every metric: name, help, buckets, each declared once.

use std::time::{Duration, Instant};

use lockstep_proto::StepTimings;
use lockstep_scheduler::Stats;
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{
    BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};

use crate::error::ErrorKind;

/// What a histogram counts, which decides its buckets.
#[derive(Clone, Copy)]
enum Scale {
    /// Seconds: 19 buckets from half a millisecond, each twice the one before.
    Seconds,
    /// Seconds: 19 buckets from a microsecond, each twice the one before.
    Moments,
    /// Tokens or sequences: 18 powers of two.
    Count,
}

const HISTOGRAMS: [(&str, Scale, &str); 17] = [
    ("tgi_request_duration", Scale::Seconds, "Seconds from arrival to the last token"),
    ("tgi_request_validation_duration", Scale::Seconds, "Seconds from arrival to the queue"),
    ("tgi_request_queue_duration", Scale::Seconds, "Seconds in the queue"),
    ("tgi_request_inference_duration", Scale::Seconds, "Seconds from the queue to the last token"),
    ("tgi_request_mean_time_per_token_duration", Scale::Seconds, "Seconds of inference for each token"),
    ("tgi_request_input_length", Scale::Count, "Tokens of the prompt"),
    ("tgi_request_max_new_tokens", Scale::Count, "Tokens asked for"),
    ("tgi_request_generated_tokens", Scale::Count, "Tokens generated"),
    ("tgi_batch_inference_duration", Scale::Seconds, "Seconds of a step, as the router sees it"),
    ("tgi_batch_forward_duration", Scale::Seconds, "Seconds of a step's forward pass on rank 0"),
    ("tgi_batch_decode_duration", Scale::Seconds, "Seconds of a step's sampling on rank 0"),
    ("tgi_batch_next_size", Scale::Count, "Sequences in a step"),
    ("lockstep_time_to_first_token", Scale::Seconds, "Seconds from submission to the first token"),
    ("lockstep_inter_token_latency", Scale::Seconds, "Seconds between tokens of one sequence"),
    (
        "lockstep_step_communication_duration",
        Scale::Seconds,
        "Seconds of a step's exchange between ranks, on rank 0",
    ),
    ("lockstep_grammar_compile_duration", Scale::Seconds, "Seconds of compiling a grammar"),
    ("lockstep_grammar_mask_duration", Scale::Moments, "Seconds of finding out which tokens may follow"),
];

const COUNTERS: [(&str, &str); 9] = [
    ("tgi_request_count", "Requests that arrived"),
    ("tgi_request_success", "Requests answered in full"),
    ("tgi_request_failure", "Requests that failed, by cause"),
    ("tgi_batch_inference_count", "Steps planned"),
    ("tgi_batch_inference_success", "Steps done"),
    ("tgi_batch_inference_failure", "Steps lost with their group"),
    ("lockstep_prefix_hit_tokens", "Prompt tokens found in the prefix cache"),
    ("lockstep_preemptions", "Sequences that lost their blocks to an older one"),
    ("lockstep_group_restarts", "Groups of ranks lost"),
];

const GAUGES: [(&str, &str); 6] = [
    ("tgi_queue_size", "Requests in the queue"),
    ("tgi_batch_current_size", "Sequences that hold KV blocks"),
    ("lockstep_kv_blocks_used", "KV blocks held by sequences"),
    ("lockstep_kv_blocks_free", "KV blocks held by nobody"),
    ("lockstep_kv_blocks_cached", "KV blocks held by the prefix cache alone"),
    ("lockstep_tasks_alive", "Tasks of the runtime that have not ended"),
];

/// Whether a step computes prompts; the label `method` of the `tgi_batch_*` metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepKind {
    /// Some of its work is prompt.
    Prefill,
    /// Each of its sequences gets one token.
    Decode,
}

/// A finished request in numbers.
#[derive(Clone, Copy, Debug)]
pub struct RequestNumbers {
    /// From arrival to the last token.
    pub total: Duration,
    /// From arrival to the queue.
    pub validation: Duration,
    /// In the queue.
    pub queue: Duration,
    /// From the queue to the last token.
    pub inference: Duration,
    /// Tokens generated.
    pub generated_tokens: u32,
}

impl RequestNumbers {
    /// Inference for each token.
    pub fn time_per_token(&self) -> Duration {
        self.inference.checked_div(self.generated_tokens).unwrap_or_default()
    }
}

/// The server's metrics. Each app has its own; nothing is global.
pub struct Metrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    requests: Counter,
    successes: Counter,
    time_to_first_token: Histogram,
    inter_token_latency: Histogram,
}

impl Metrics {
    /// All of them, at zero.
    ///
    /// # Errors
    /// When a histogram's buckets are refused.
    pub fn new() -> Result<Self, BuildError> {
        let mut builder = PrometheusBuilder::new();
        for (name, scale, _) in HISTOGRAMS {
            builder = builder.set_buckets_for_metric(Matcher::Full(name.to_owned()), &scale.buckets())?;
        }
        let recorder = builder.build_recorder();
        for (name, _, help) in HISTOGRAMS {
            recorder.describe_histogram(KeyName::from(name), None, help.into());
        }
        for (name, help) in COUNTERS {
            recorder.describe_counter(KeyName::from(name), None, help.into());
        }
        for (name, help) in GAUGES {
            recorder.describe_gauge(KeyName::from(name), None, help.into());
        }
        let handle = recorder.handle();
        let requests = counter(&recorder, "tgi_request_count", &[]);
        let successes = counter(&recorder, "tgi_request_success", &[]);
        let time_to_first_token = histogram(&recorder, "lockstep_time_to_first_token", &[]);
        let inter_token_latency = histogram(&recorder, "lockstep_inter_token_latency", &[]);
        let metrics =
            Self { recorder, handle, requests, successes, time_to_first_token, inter_token_latency };
        // Present from the start, so that a dashboard shows zero and not nothing.
        metrics.observe_scheduler(&Stats::default());
        metrics.count("lockstep_group_restarts", 0);
        metrics.requests.increment(0);
        metrics.successes.increment(0);
        Ok(metrics)
    }

    /// The page that is scraped.
    pub fn render(&self) -> String {
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            gauge(&self.recorder, "lockstep_tasks_alive").set(runtime.metrics().num_alive_tasks() as f64);
        }
        self.handle.render()
    }

    /// Folds samples into buckets; without it memory grows between scrapes. Call it every few seconds.
    pub fn run_upkeep(&self) {
        self.handle.run_upkeep();
    }

    /// A request for text arrived.
    pub fn on_request(&self) {
        self.requests.increment(1);
    }

    /// A request passed validation.
    pub fn on_validated(&self, input_tokens: u32, max_new_tokens: u32) {
        self.record("tgi_request_input_length", f64::from(input_tokens));
        self.record("tgi_request_max_new_tokens", f64::from(max_new_tokens));
    }

    /// A request was answered in full.
    pub fn on_success(&self, numbers: &RequestNumbers) {
        self.successes.increment(1);
        let seconds = [
            ("tgi_request_duration", numbers.total),
            ("tgi_request_validation_duration", numbers.validation),
            ("tgi_request_queue_duration", numbers.queue),
            ("tgi_request_inference_duration", numbers.inference),
            ("tgi_request_mean_time_per_token_duration", numbers.time_per_token()),
        ];
        for (name, duration) in seconds {
            self.record(name, duration.as_secs_f64());
        }
        self.record("tgi_request_generated_tokens", f64::from(numbers.generated_tokens));
    }

    /// A request failed.
    pub fn on_failure(&self, kind: ErrorKind) {
        let labels = [Label::from_static_parts("err", kind.metric())];
        counter(&self.recorder, "tgi_request_failure", &labels).increment(1);
    }

    /// A client left before its answer was complete.
    pub fn on_dropped(&self) {
        let labels = [Label::from_static_parts("err", "dropped")];
        counter(&self.recorder, "tgi_request_failure", &labels).increment(1);
    }

    /// A sequence got a token.
    pub fn observe_token(&self, submitted: Instant, previous: Option<Instant>, now: Instant) {
        match previous {
            None => self.time_to_first_token.record(now.saturating_duration_since(submitted)),
            Some(previous) => self.inter_token_latency.record(now.saturating_duration_since(previous)),
        }
    }

    /// A step goes to the ranks.
    pub fn on_step_planned(&self, kind: StepKind, sequences: usize) {
        counter(&self.recorder, "tgi_batch_inference_count", &[kind.label()]).increment(1);
        self.record("tgi_batch_next_size", sequences as f64);
    }

    /// A step came back.
    pub fn on_step_done(&self, kind: StepKind, took: Duration, timings: &StepTimings) {
        let label = [kind.label()];
        counter(&self.recorder, "tgi_batch_inference_success", &label).increment(1);
        let seconds = [
            ("tgi_batch_inference_duration", took),
            ("tgi_batch_forward_duration", Duration::from_nanos(timings.forward_ns)),
            ("tgi_batch_decode_duration", Duration::from_nanos(timings.sample_ns)),
            ("lockstep_step_communication_duration", Duration::from_nanos(timings.comm_ns)),
        ];
        for (name, duration) in seconds {
            histogram(&self.recorder, name, &label).record(duration.as_secs_f64());
        }
    }

    /// A step was lost with its group.
    pub fn on_step_failed(&self, kind: StepKind) {
        counter(&self.recorder, "tgi_batch_inference_failure", &[kind.label()]).increment(1);
    }

    /// A grammar was compiled.
    pub fn on_grammar_compiled(&self, took: Duration) {
        self.record("lockstep_grammar_compile_duration", took.as_secs_f64());
    }

    /// The tokens that may follow in one sequence were found out.
    pub fn on_mask(&self, took: Duration) {
        self.record("lockstep_grammar_mask_duration", took.as_secs_f64());
    }

    /// A group was lost.
    pub fn on_group_lost(&self) {
        self.count("lockstep_group_restarts", 1);
    }

    /// The scheduler in numbers.
    pub fn observe_scheduler(&self, stats: &Stats) {
        let gauges = [
            ("tgi_queue_size", stats.waiting as f64),
            ("tgi_batch_current_size", stats.running as f64),
            ("lockstep_kv_blocks_used", f64::from(stats.blocks_used.0)),
            ("lockstep_kv_blocks_free", f64::from(stats.blocks_free.0)),
            ("lockstep_kv_blocks_cached", f64::from(stats.blocks_cached.0)),
        ];
        for (name, value) in gauges {
            gauge(&self.recorder, name).set(value);
        }
        let absolute = [
            ("lockstep_prefix_hit_tokens", stats.prefix_hit_tokens_total),
            ("lockstep_preemptions", stats.preemptions_total),
        ];
        for (name, value) in absolute {
            counter(&self.recorder, name, &[]).absolute(value);
        }
    }

    fn count(&self, name: &'static str, by: u64) {
        counter(&self.recorder, name, &[]).increment(by);
    }

    fn record(&self, name: &'static str, value: f64) {
        histogram(&self.recorder, name, &[]).record(value);
    }
}

impl StepKind {
    fn label(self) -> Label {
        match self {
            Self::Prefill => Label::from_static_parts("method", "prefill"),
            Self::Decode => Label::from_static_parts("method", "decode"),
        }
    }
}

impl Scale {
    fn buckets(self) -> Vec<f64> {
        let (first, count) = match self {
            Self::Seconds => (0.0005, 19),
            Self::Moments => (0.000_001, 19),
            Self::Count => (1.0, 18),
        };
        (0..count).map(|step| first * f64::powi(2.0, step)).collect()
    }
}

const METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, Some(module_path!()));

fn counter(recorder: &PrometheusRecorder, name: &'static str, labels: &[Label]) -> Counter {
    recorder.register_counter(&Key::from_parts(name, labels.to_vec()), &METADATA)
}

fn gauge(recorder: &PrometheusRecorder, name: &'static str) -> Gauge {
    recorder.register_gauge(&Key::from_name(name), &METADATA)
}

fn histogram(recorder: &PrometheusRecorder, name: &'static str, labels: &[Label]) -> Histogram {
    recorder.register_histogram(&Key::from_parts(name, labels.to_vec()), &METADATA)
}
