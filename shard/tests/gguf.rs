//! GGUF files compute what transformers computes with their weights widened, in float32, on one rank and on two;
//! the demo model computes the same bits from a GGUF file as from its own files.
//! `models/tests/fixtures/gguf/generate.py` makes the files and the reference values.

mod support;

use std::path::{Path, PathBuf};

use lockstep_models::{ModelFiles, testing};
use lockstep_shard::decoder::{Dtype, Precision, Quantize};
use support::reference::check;
use support::{Runner, on_every_rank, relative_error, tokens};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/fixtures/gguf").join(name)
}

fn check_model(name: &str) {
    let files = ModelFiles::Gguf(fixture(&format!("{name}.gguf")));
    check(&files, &fixture(&format!("{name}.json")));
}

#[test]
fn a_llama_of_mixed_types_computes_what_transformers_does() {
    check_model("llama");
}

#[test]
fn a_llama_with_frequency_factors_computes_what_transformers_does_with_their_scaling() {
    check_model("llama3");
}

#[test]
fn a_qwen_2_computes_what_transformers_does() {
    check_model("qwen2");
}

#[test]
fn a_qwen_3_computes_what_transformers_does() {
    check_model("qwen3");
}

/// Slices of 2 ranks begin within blocks of 256.
#[test]
fn two_ranks_compute_the_bits_of_one() {
    let files = ModelFiles::Gguf(fixture("llama.gguf"));
    let prompt = tokens(40, 7, 512);
    for dtype in [Dtype::Float32, Dtype::Bfloat16, Dtype::Float16] {
        let alone = Runner::solo(&files, dtype).alone(&prompt, 16);
        for rank in on_every_rank(&files, dtype, 2, |mut runner| runner.alone(&prompt, 16)) {
            assert_eq!(rank, alone, "{dtype}");
        }
    }
}

#[test]
fn the_demo_computes_the_same_bits_by_way_of_a_gguf_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("demo.gguf");
    std::fs::write(&path, testing::demo_as_gguf()).expect("room for a model");
    let prompt = tokens(60, 3, 4096);
    for dtype in [Dtype::Float32, Dtype::Bfloat16, Dtype::Float16] {
        let original = Runner::solo(&ModelFiles::EmbeddedDemo, dtype).alone(&prompt, 32);
        let converted = Runner::solo(&ModelFiles::Gguf(path.clone()), dtype).alone(&prompt, 32);
        assert_eq!(converted, original, "{dtype}");
    }
}

/// Blocks are multiplied as they are stored, by activations of eight bits.
#[test]
fn weights_as_they_are_stored_compute_nearly_what_they_do_widened() {
    for name in ["llama", "llama3", "qwen2", "qwen3"] {
        let files = ModelFiles::Gguf(fixture(&format!("{name}.gguf")));
        let prompt = tokens(40, 7, 512);
        let logits = |dtype, quantize| {
            let rows = Runner::solo(&files, Precision { dtype, quantize }).alone(&prompt, 16);
            rows.concat().into_iter().map(f32::from_bits).collect::<Vec<f32>>()
        };
        let widened = logits(Dtype::Float32, Quantize::None);
        let stored = logits(Dtype::Bfloat16, Quantize::AsStored);
        assert_ne!(
            stored,
            logits(Dtype::Bfloat16, Quantize::None),
            "{name}: nothing is multiplied as stored"
        );
        let error = relative_error(&stored, &widened);
        eprintln!("{name}: {error}");
        assert!(error < 0.03, "{name}: off by {error}");
    }
}
