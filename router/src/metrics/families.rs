//! Every metric: name, help, buckets, each declared once.

use super::replicas::READY;

/// What a histogram counts, which decides its buckets.
#[derive(Clone, Copy)]
pub(super) enum Scale {
    /// Seconds: 22 buckets from a tenth of a millisecond to three and a half minutes, each twice the one
    /// before.
    Seconds,
    /// Seconds: 19 buckets from a microsecond to a quarter of a second, each twice the one before.
    Moments,
    /// Tokens or sequences: 18 powers of two.
    Count,
}

pub(super) const HISTOGRAMS: [(&str, Scale, &str); 21] = [
    ("tgi_request_duration", Scale::Seconds, "Seconds from arrival to the last token"),
    ("tgi_request_validation_duration", Scale::Seconds, "Seconds from arrival to the queue"),
    ("tgi_request_queue_duration", Scale::Seconds, "Seconds in the queue"),
    ("tgi_request_inference_duration", Scale::Seconds, "Seconds from the queue to the last token"),
    ("tgi_request_mean_time_per_token_duration", Scale::Seconds, "Seconds of inference for each token"),
    ("tgi_request_input_length", Scale::Count, "Tokens of the prompt"),
    ("tgi_request_max_new_tokens", Scale::Count, "Tokens asked for"),
    ("tgi_request_generated_tokens", Scale::Count, "Tokens generated"),
    (
        "tgi_request_skipped_tokens",
        Scale::Count,
        "Tokens that were guessed right before their step; nothing guesses",
    ),
    ("tgi_batch_inference_duration", Scale::Seconds, "Seconds of a step, as the router sees it"),
    ("tgi_batch_forward_duration", Scale::Seconds, "Seconds of a step's forward pass on rank 0"),
    ("tgi_batch_decode_duration", Scale::Seconds, "Seconds of a step's sampling on rank 0"),
    (
        "tgi_batch_filter_duration",
        Scale::Moments,
        "Seconds of taking in a step's results and who has ended",
    ),
    (
        "tgi_batch_concat_duration",
        Scale::Moments,
        "Seconds of planning a step in which prompts join a batch",
    ),
    ("tgi_batch_next_size", Scale::Count, "Sequences in a step"),
    ("lockstep_time_to_first_token_seconds", Scale::Seconds, "Seconds from submission to the first token"),
    ("lockstep_inter_token_latency_seconds", Scale::Seconds, "Seconds between tokens of one sequence"),
    ("lockstep_rank_forward_seconds", Scale::Seconds, "Seconds of a step's forward pass, by rank"),
    (
        "lockstep_rank_communication_seconds",
        Scale::Moments,
        "Seconds of a step's exchange with other ranks, by rank",
    ),
    ("lockstep_grammar_compile_seconds", Scale::Seconds, "Seconds of compiling a grammar"),
    ("lockstep_grammar_mask_seconds", Scale::Moments, "Seconds of finding out which tokens may follow"),
];

pub(super) const COUNTERS: [(&str, &str); 15] = [
    ("tgi_request_count", "Requests that arrived"),
    ("tgi_request_success", "Requests answered in full"),
    ("tgi_request_failure", "Requests that failed, by cause"),
    ("tgi_batch_inference_count", "Steps planned"),
    ("tgi_batch_inference_success", "Steps done"),
    ("tgi_batch_inference_failure", "Steps lost with their group"),
    ("tgi_batch_concat", "Steps in which prompts join a batch that generates, by reason"),
    ("lockstep_prefix_hit_tokens_total", "Prompt tokens found in the prefix cache"),
    ("lockstep_preemptions_total", "Sequences that lost their blocks to an older one"),
    ("lockstep_grammar_tokens_total", "Tokens of answers with a grammar, by origin: sampled or forced"),
    ("lockstep_group_losses_total", "Groups of ranks lost"),
    ("lockstep_group_restarts_total", "Groups of ranks that took an earlier one's place"),
    ("lockstep_group_drains_total", "Groups of ranks that left because they were asked to"),
    ("lockstep_sequence_moves_total", "Sequences that went on with another replica"),
    ("lockstep_response_cache_hits_total", "Requests answered from the response cache"),
];

pub(super) const GAUGES: [(&str, &str); 14] = [
    ("tgi_queue_size", "Requests in the queue"),
    ("tgi_batch_current_size", "Sequences that hold KV blocks"),
    ("tgi_batch_current_max_tokens", "Tokens that the KV blocks held by sequences have room for"),
    ("tgi_batch_max_total_tokens", "Tokens that all KV blocks have room for"),
    ("lockstep_ranks_ready", "Ranks of the groups that serve; 0 while there is none"),
    ("lockstep_replicas_ready", "Replicas whose group serves"),
    (READY, "Whether the group of this replica serves, by replica"),
    ("lockstep_kv_blocks_used", "KV blocks held by sequences"),
    ("lockstep_kv_blocks_free", "KV blocks held by nobody"),
    ("lockstep_kv_blocks_cached", "KV blocks held by the prefix cache alone"),
    (
        "lockstep_journal_on",
        "Whether streams are written down: 1, or 0 where nobody asked for it or the disk failed",
    ),
    ("lockstep_tasks_alive", "Tasks of the runtime that have not ended"),
    ("lockstep_connections", "Connections of clients that are open"),
    (BUILD_INFO, "What serves, in labels: the server's version and the model; 1"),
];

/// The gauge of what serves.
pub(super) const BUILD_INFO: &str = "lockstep_build_info";

impl Scale {
    /// Upper bounds.
    pub(super) fn buckets(self) -> Vec<f64> {
        let (first, count) = match self {
            Self::Seconds => (0.0001, 22),
            Self::Moments => (0.000_001, 19),
            Self::Count => (1.0, 18),
        };
        (0..count).map(|step| first * f64::powi(2.0, step)).collect()
    }
}
