//! What grammars cost and what they save.

use std::time::Duration;

use lockstep_scheduler::TokenOrigin;
use metrics::{Counter, Label};
use metrics_exporter_prometheus::PrometheusRecorder;

use super::{Metrics, counter};

impl Metrics {
    /// A grammar was compiled.
    pub fn on_grammar_compiled(&self, took: Duration) {
        self.record("lockstep_grammar_compile_seconds", took.as_secs_f64());
    }

    /// The tokens that may follow in one sequence were found out.
    pub fn on_mask(&self, took: Duration) {
        self.record("lockstep_grammar_mask_seconds", took.as_secs_f64());
    }

    /// A sequence that has a grammar got a token. Each that was forced saved it a step.
    pub fn on_grammar_token(&self, origin: TokenOrigin) {
        tokens(&self.recorder, origin).increment(1);
    }
}

pub(super) fn tokens(recorder: &PrometheusRecorder, origin: TokenOrigin) -> Counter {
    let origin = match origin {
        TokenOrigin::Sampled => "sampled",
        TokenOrigin::Forced => "forced",
    };
    counter(recorder, "lockstep_grammar_tokens_total", &[Label::from_static_parts("origin", origin)])
}
