//! What transformers computes for a model, and whether a decoder computes the same.

use std::path::Path;

use lockstep_models::ModelFiles;
use lockstep_shard::decoder::Dtype;
use serde::Deserialize;

use super::Runner;

/// Largest difference allowed, relative to the row's largest logit.
const TOLERANCE: f32 = 1e-4;

#[derive(Deserialize)]
struct Reference {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    prompt_ids: Vec<u32>,
    logits_last: Vec<f32>,
    greedy_ids: Vec<u32>,
}

/// Logits after each prompt of the reference in the file, and the likeliest tokens from there on, in float32.
#[track_caller]
pub(crate) fn check(files: &ModelFiles, reference: &Path) {
    let text = std::fs::read_to_string(reference).expect("the fixture is there");
    let reference: Reference = serde_json::from_str(&text).expect("the fixture is a reference");
    assert!(!reference.cases.is_empty());
    let mut runner = Runner::solo(files, Dtype::Float32);
    for case in &reference.cases {
        let (greedy, logits) = runner.greedy(&case.prompt_ids, case.greedy_ids.len());
        assert_eq!(logits.len(), case.logits_last.len());
        let scale = case.logits_last.iter().fold(0.0_f32, |largest, logit| largest.max(logit.abs()));
        let differences = logits.iter().zip(&case.logits_last).map(|(a, b)| (a - b).abs());
        let worst = differences.fold(0.0_f32, f32::max) / scale;
        assert!(worst <= TOLERANCE, "{files}: a prompt of {} is off by {worst}", case.prompt_ids.len());
        assert_eq!(greedy, case.greedy_ids, "{files}: after a prompt of {}", case.prompt_ids.len());
    }
}
