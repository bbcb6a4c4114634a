//! The names that endpoint pickers for vLLM scrape, as aliases of ours.

use lockstep_scheduler::Stats;
use metrics::{Gauge, KeyName, Label, Recorder};
use metrics_exporter_prometheus::PrometheusRecorder;

use super::{KvCache, gauge};

const WAITING: &str = "vllm:num_requests_waiting";
const RUNNING: &str = "vllm:num_requests_running";
const CACHE_USAGE: &str = "vllm:kv_cache_usage_perc";
const CACHE_CONFIG: &str = "vllm:cache_config_info";

const HELP: [(&str, &str); 4] = [
    (WAITING, "Requests in the queue"),
    (RUNNING, "Sequences that hold KV blocks"),
    (CACHE_USAGE, "Share of KV blocks held by sequences, from 0 to 1"),
    (CACHE_CONFIG, "Size of the KV cache, in labels; 1 for the cache there is, 0 for earlier ones"),
];

/// The aliases of one model.
pub(super) struct VllmAliases {
    model: Label,
    waiting: Gauge,
    running: Gauge,
    cache_usage: Gauge,
    /// The cache whose size is told, with the gauge that tells it.
    cache_config: Option<(KvCache, Gauge)>,
}

impl VllmAliases {
    pub(super) fn new(recorder: &PrometheusRecorder, model_id: &str) -> Self {
        for (name, help) in HELP {
            recorder.describe_gauge(KeyName::from(name), None, help.into());
        }
        let model = Label::new("model_name", model_id.to_owned());
        let of_model = |name| gauge(recorder, name, std::slice::from_ref(&model));
        let (waiting, running) = (of_model(WAITING), of_model(RUNNING));
        let cache_usage = of_model(CACHE_USAGE);
        Self { model, waiting, running, cache_usage, cache_config: None }
    }

    /// The scheduler in numbers, before a page is rendered.
    pub(super) fn observe(&mut self, recorder: &PrometheusRecorder, stats: &Stats, cache: KvCache) {
        self.waiting.set(stats.waiting as f64);
        self.running.set(stats.running as f64);
        let share = f64::from(stats.blocks_used.0) / f64::from(cache.blocks.0.max(1));
        self.cache_usage.set(share);
        if self.cache_config.as_ref().is_some_and(|(told, _)| *told == cache) || cache == KvCache::default()
        {
            return;
        }
        let labels = [
            self.model.clone(),
            Label::new("block_size", cache.block_size.to_string()),
            Label::new("num_gpu_blocks", cache.blocks.to_string()),
        ];
        let now = gauge(recorder, CACHE_CONFIG, &labels);
        if let Some((_, before)) = self.cache_config.take() {
            before.set(0.0);
        }
        now.set(1.0);
        self.cache_config = Some((cache, now));
    }
}
