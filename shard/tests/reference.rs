//! Logits and greedy tokens against those of Hugging Face transformers, in float32. `fixtures/generate.py`
//! makes the reference values.

mod support;

use std::path::{Path, PathBuf};

use lockstep_models::ModelFiles;
use lockstep_shard::decoder::Dtype;
use serde::Deserialize;
use support::Runner;

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

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn check(files: &ModelFiles, reference: &str) {
    let text = std::fs::read_to_string(fixture(reference)).expect("the fixture is there");
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

#[test]
fn a_random_llama_computes_what_transformers_does() {
    check(&ModelFiles::Folder(fixture("tiny-llama")), "tiny-llama-reference.json");
}

#[test]
fn the_demo_computes_what_transformers_does() {
    check(&ModelFiles::EmbeddedDemo, "demo-reference.json");
}
