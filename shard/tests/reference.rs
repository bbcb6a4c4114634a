//! Logits and greedy tokens against those of Hugging Face transformers, in float32. `fixtures/generate.py`
//! makes the reference values.

mod support;

use std::path::{Path, PathBuf};

use lockstep_models::ModelFiles;
use support::reference::check;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

#[test]
fn a_random_llama_computes_what_transformers_does() {
    check(&ModelFiles::Folder(fixture("tiny-llama")), &fixture("tiny-llama-reference.json"));
}

#[test]
fn the_demo_computes_what_transformers_does() {
    check(&ModelFiles::EmbeddedDemo, &fixture("demo-reference.json"));
}
