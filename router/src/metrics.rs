//! What the server tells of itself in numbers. `families.rs` declares every name.

mod families;
mod grammar;
mod replicas;
mod vllm;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lockstep_proto::{Blocks, ReplicaId, StepTimings, Tokens};
use lockstep_scheduler::{Stats, TokenOrigin};
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{
    BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};

use self::families::{BUILD_INFO, COUNTERS, GAUGES, HISTOGRAMS};
use self::replicas::Replicas;
use self::vllm::VllmAliases;
use crate::error::{ALL_KINDS, ErrorKind};

/// Metrics by `method`, which is a step's kind.
const STEP_HISTOGRAMS: [&str; 4] = [
    "tgi_batch_inference_duration",
    "tgi_batch_forward_duration",
    "tgi_batch_decode_duration",
    "tgi_batch_filter_duration",
];
const STEP_COUNTERS: [&str; 3] =
    ["tgi_batch_inference_count", "tgi_batch_inference_success", "tgi_batch_inference_failure"];
const RANK_HISTOGRAMS: [&str; 2] = ["lockstep_rank_forward_seconds", "lockstep_rank_communication_seconds"];
/// Why prompts join a batch: the first is ours, the others are the reference server's padded batches.
const CONCAT_REASONS: [&str; 3] = ["chunking", "backpressure", "wait_exceeded"];
/// The label of requests whose client has left.
const DROPPED: &str = "dropped";

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
    seen: Mutex<Seen>,
    vllm: Mutex<Option<VllmAliases>>,
}

/// What is needed again when a page is rendered or the group changes.
#[derive(Default)]
struct Seen {
    stats: Stats,
    block_size: Tokens,
    replicas: Replicas,
}

/// A KV cache's size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct KvCache {
    blocks: Blocks,
    block_size: Tokens,
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
        let time_to_first_token = histogram(&recorder, "lockstep_time_to_first_token_seconds", &[]);
        let inter_token_latency = histogram(&recorder, "lockstep_inter_token_latency_seconds", &[]);
        let metrics = Self {
            recorder,
            handle,
            requests,
            successes,
            time_to_first_token,
            inter_token_latency,
            seen: Mutex::default(),
            vllm: Mutex::default(),
        };
        metrics.show_from_the_start();
        Ok(metrics)
    }

    /// Registers every series that is known, so that a dashboard shows zero and not nothing.
    fn show_from_the_start(&self) {
        let recorder = &self.recorder;
        let methods = [StepKind::Prefill.label(), StepKind::Decode.label()];
        for method in &methods {
            let label = std::slice::from_ref(method);
            STEP_HISTOGRAMS.iter().for_each(|name| drop(histogram(recorder, name, label)));
            STEP_COUNTERS.iter().for_each(|name| counter(recorder, name, label).increment(0));
        }
        for name in RANK_HISTOGRAMS {
            drop(histogram(recorder, name, &[rank_label(0)]));
        }
        drop(histogram(recorder, "tgi_batch_concat_duration", &[StepKind::Decode.label()]));
        for reason in CONCAT_REASONS {
            counter(recorder, "tgi_batch_concat", &[Label::new("reason", reason)]).increment(0);
        }
        for origin in [TokenOrigin::Sampled, TokenOrigin::Forced] {
            grammar::tokens(recorder, origin).increment(0);
        }
        for cause in ALL_KINDS.into_iter().map(ErrorKind::metric).chain([DROPPED]) {
            counter(recorder, "tgi_request_failure", &[Label::new("err", cause)]).increment(0);
        }
        let labelled = [&STEP_HISTOGRAMS[..], &RANK_HISTOGRAMS, &["tgi_batch_concat_duration"]].concat();
        let plain = HISTOGRAMS.iter().filter(|(name, ..)| !labelled.contains(name));
        plain.for_each(|(name, ..)| drop(histogram(recorder, name, &[])));
        let labelled = [
            &STEP_COUNTERS[..],
            &["tgi_batch_concat", "tgi_request_failure", "lockstep_grammar_tokens_total"],
        ]
        .concat();
        let plain = COUNTERS.iter().filter(|(name, _)| !labelled.contains(name));
        plain.for_each(|(name, _)| counter(recorder, name, &[]).increment(0));
        let plain = GAUGES.iter().filter(|(name, _)| ![replicas::READY, BUILD_INFO].contains(name));
        plain.for_each(|(name, _)| gauge(recorder, name, &[]).set(0.0));
    }

    /// Tells what serves.
    pub fn tell_build(&self, model_id: &str) {
        let labels = [
            Label::from_static_parts("version", env!("CARGO_PKG_VERSION")),
            Label::new("model", model_id.to_owned()),
        ];
        gauge(&self.recorder, BUILD_INFO, &labels).set(1.0);
    }

    /// Tells the numbers that an endpoint picker for vLLM reads under the names it knows, for this model.
    pub fn alias_for_vllm(&self, model_id: &str) {
        *self.vllm() = Some(VllmAliases::new(&self.recorder, model_id));
    }

    /// The page that is scraped.
    pub fn render(&self) -> String {
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            gauge(&self.recorder, "lockstep_tasks_alive", &[])
                .set(runtime.metrics().num_alive_tasks() as f64);
        }
        let (stats, cache) = {
            let seen = self.seen();
            (seen.stats, seen.cache())
        };
        self.show_scheduler(&stats, cache);
        if let Some(vllm) = &mut *self.vllm() {
            vllm.observe(&self.recorder, &stats, cache);
        }
        self.handle.render()
    }

    /// Folds samples into buckets; without it memory grows between scrapes. Call it every few seconds.
    pub fn run_upkeep(&self) {
        self.handle.run_upkeep();
    }

    /// So many connections of clients more are open, or fewer.
    pub fn on_connections(&self, more: f64) {
        gauge(&self.recorder, "lockstep_connections", &[]).increment(more);
    }

    /// Streams are written down.
    pub fn on_journal_on(&self) {
        gauge(&self.recorder, "lockstep_journal_on", &[]).set(1.0);
    }

    /// The disk failed: streams are not written down any more.
    pub fn on_journal_off(&self) {
        gauge(&self.recorder, "lockstep_journal_on", &[]).set(0.0);
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
        self.record("tgi_request_skipped_tokens", 0.0);
        self.record("tgi_request_generated_tokens", f64::from(numbers.generated_tokens));
    }

    /// A request failed.
    pub fn on_failure(&self, kind: ErrorKind) {
        let labels = [Label::from_static_parts("err", kind.metric())];
        counter(&self.recorder, "tgi_request_failure", &labels).increment(1);
    }

    /// A client left before its answer was complete.
    pub fn on_dropped(&self) {
        let labels = [Label::from_static_parts("err", DROPPED)];
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

    /// Prompts joined sequences that generate, in a step that took this long to plan.
    pub fn on_batch_joined(&self, planning: Duration) {
        let reason = Label::from_static_parts("reason", CONCAT_REASONS[0]);
        counter(&self.recorder, "tgi_batch_concat", &[reason]).increment(1);
        let label = [StepKind::Decode.label()];
        histogram(&self.recorder, "tgi_batch_concat_duration", &label).record(planning.as_secs_f64());
    }

    /// A step's results were taken in, and the sequences that ended were let go.
    pub fn on_batch_filtered(&self, kind: StepKind, took: Duration) {
        let label = [kind.label()];
        histogram(&self.recorder, "tgi_batch_filter_duration", &label).record(took.as_secs_f64());
    }

    /// What a step cost each rank of a replica, in their order. Which replica is told where there are several.
    pub fn on_ranks_done(&self, replica: ReplicaId, ranks: &[StepTimings]) {
        let several = self.seen().replicas.are_several();
        for (rank, timings) in ranks.iter().enumerate() {
            let mut label = vec![rank_label(rank)];
            if several {
                label.push(replicas::label(replica));
            }
            for (name, nanoseconds) in
                RANK_HISTOGRAMS.into_iter().zip([timings.forward_ns, timings.comm_ns])
            {
                let took = Duration::from_nanos(nanoseconds);
                histogram(&self.recorder, name, &label).record(took.as_secs_f64());
            }
        }
    }

    /// A step came back.
    pub fn on_step_done(&self, kind: StepKind, took: Duration, timings: &StepTimings) {
        let label = [kind.label()];
        counter(&self.recorder, "tgi_batch_inference_success", &label).increment(1);
        let seconds = [
            ("tgi_batch_inference_duration", took),
            ("tgi_batch_forward_duration", Duration::from_nanos(timings.forward_ns)),
            ("tgi_batch_decode_duration", Duration::from_nanos(timings.sample_ns)),
        ];
        for (name, duration) in seconds {
            histogram(&self.recorder, name, &label).record(duration.as_secs_f64());
        }
    }

    /// A step was lost with its group.
    pub fn on_step_failed(&self, kind: StepKind) {
        counter(&self.recorder, "tgi_batch_inference_failure", &[kind.label()]).increment(1);
    }

    /// A request was answered from the response cache.
    pub fn on_cache_hit(&self) {
        counter(&self.recorder, "lockstep_response_cache_hits_total", &[]).increment(1);
    }

    /// The scheduler in numbers, told to whoever reads the page next.
    pub fn observe_scheduler(&self, stats: &Stats) {
        self.seen().stats = *stats;
    }

    fn show_scheduler(&self, stats: &Stats, cache: KvCache) {
        let block_tokens = f64::from(cache.block_size.0);
        let gauges = [
            ("tgi_queue_size", stats.waiting as f64),
            ("tgi_batch_current_size", stats.running as f64),
            ("tgi_batch_current_max_tokens", f64::from(stats.blocks_used.0) * block_tokens),
            ("tgi_batch_max_total_tokens", f64::from(cache.blocks.0) * block_tokens),
            ("lockstep_kv_blocks_used", f64::from(stats.blocks_used.0)),
            ("lockstep_kv_blocks_free", f64::from(stats.blocks_free.0)),
            ("lockstep_kv_blocks_cached", f64::from(stats.blocks_cached.0)),
        ];
        for (name, value) in gauges {
            gauge(&self.recorder, name, &[]).set(value);
        }
        let absolute = [
            ("lockstep_prefix_hit_tokens_total", stats.prefix_hit_tokens_total),
            ("lockstep_preemptions_total", stats.preemptions_total),
            ("lockstep_sequence_moves_total", stats.moves_total),
        ];
        for (name, value) in absolute {
            counter(&self.recorder, name, &[]).absolute(value);
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn vllm(&self) -> MutexGuard<'_, Option<VllmAliases>> {
        self.vllm.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, name: &'static str, value: f64) {
        histogram(&self.recorder, name, &[]).record(value);
    }
}

impl Seen {
    fn cache(&self) -> KvCache {
        let Stats { blocks_used, blocks_cached, blocks_free, .. } = self.stats;
        KvCache { blocks: blocks_used + blocks_cached + blocks_free, block_size: self.block_size }
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

fn rank_label(rank: usize) -> Label {
    Label::new("rank", rank.to_string())
}

const METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, Some(module_path!()));

fn counter(recorder: &PrometheusRecorder, name: &'static str, labels: &[Label]) -> Counter {
    recorder.register_counter(&Key::from_parts(name, labels.to_vec()), &METADATA)
}

fn gauge(recorder: &PrometheusRecorder, name: &'static str, labels: &[Label]) -> Gauge {
    recorder.register_gauge(&Key::from_parts(name, labels.to_vec()), &METADATA)
}

fn histogram(recorder: &PrometheusRecorder, name: &'static str, labels: &[Label]) -> Histogram {
    recorder.register_histogram(&Key::from_parts(name, labels.to_vec()), &METADATA)
}
