//! Every family against Hugging Face transformers and against itself: a tiny random model of each, with all of
//! its options on. `fixtures/README.md` says how the reference values are made.

mod support;

use std::path::{Path, PathBuf};

use lockstep_models::ModelFiles;
use lockstep_shard::decoder::{Dtype, ModelSpec};
use serde::Deserialize;
use support::{Runner, Sequence, on_every_rank};

/// Largest difference allowed in float32, relative to the row's largest logit.
const TOLERANCE: f32 = 1e-4;

/// Rows of a step of every comparison that does not vary them.
const CHUNK: usize = 31;

const DTYPES: [Dtype; 3] = [Dtype::Float32, Dtype::Bfloat16, Dtype::Float16];

/// What transformers computes for a fixture.
#[derive(Deserialize)]
struct Reference {
    /// Numbers of ranks that divide the model.
    ranks: Vec<u32>,
    /// Largest difference allowed in bfloat16, relative to the row's largest logit.
    bf16_tolerance: f32,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    prompt_ids: Vec<u32>,
    logits_last: Vec<f32>,
    bf16_logits_last: Vec<f32>,
    greedy_ids: Vec<u32>,
}

/// A fixture's model and reference.
struct Fixture {
    folder: PathBuf,
    files: ModelFiles,
    reference: Reference,
}

impl Fixture {
    fn read(name: &str) -> Self {
        let folder = families().join(name);
        let text = std::fs::read_to_string(folder.join("reference.json")).expect("the fixture is there");
        let reference: Reference = serde_json::from_str(&text).expect("the fixture is a reference");
        assert!(!reference.cases.is_empty());
        Self { files: ModelFiles::Folder(folder.clone()), folder, reference }
    }

    /// The longest prompt: beyond windows and original contexts.
    fn longest(&self) -> &[u32] {
        let prompts = self.reference.cases.iter().map(|case| case.prompt_ids.as_slice());
        prompts.max_by_key(|prompt| prompt.len()).expect("there are cases")
    }
}

fn families() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families")
}

/// The largest difference, relative to the largest expected.
fn distance(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    assert!(found.iter().all(|logit| logit.is_finite()));
    let scale = expected.iter().fold(0.0_f32, |largest, logit| largest.max(logit.abs()));
    let differences = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
    differences.fold(0.0_f32, f32::max) / scale
}

fn check_float32(name: &str) {
    let fixture = Fixture::read(name);
    let mut runner = Runner::solo(&fixture.files, Dtype::Float32);
    for case in &fixture.reference.cases {
        let (greedy, logits) = runner.greedy(&case.prompt_ids, case.greedy_ids.len());
        let off = distance(&logits, &case.logits_last);
        assert!(off <= TOLERANCE, "{name}: a prompt of {} is off by {off}", case.prompt_ids.len());
        assert_eq!(greedy, case.greedy_ids, "{name}: after a prompt of {}", case.prompt_ids.len());
    }
}

fn check_bfloat16(name: &str) {
    let fixture = Fixture::read(name);
    let allowed = fixture.reference.bf16_tolerance;
    let mut runner = Runner::solo(&fixture.files, Dtype::Bfloat16);
    for case in &fixture.reference.cases {
        let (_, logits) = runner.greedy(&case.prompt_ids, 1);
        let off = distance(&logits, &case.bf16_logits_last);
        let length = case.prompt_ids.len();
        assert!(off <= allowed, "{name}: a prompt of {length} is off by {off}, allowed is {allowed}");
    }
}

/// Three bits more than bfloat16 has leave an eighth of its difference to float32.
fn check_float16(name: &str) {
    let fixture = Fixture::read(name);
    let allowed = fixture.reference.bf16_tolerance / 8.0;
    let mut runner = Runner::solo(&fixture.files, Dtype::Float16);
    for case in &fixture.reference.cases {
        let (_, logits) = runner.greedy(&case.prompt_ids, 1);
        let off = distance(&logits, &case.logits_last);
        let length = case.prompt_ids.len();
        assert!(off <= allowed, "{name}: a prompt of {length} is off by {off}, allowed is {allowed}");
    }
}

fn check_ranks(name: &str) {
    let fixture = Fixture::read(name);
    let prompt = fixture.longest();
    for dtype in DTYPES {
        let alone = Runner::solo(&fixture.files, dtype).alone(prompt, CHUNK);
        for &world_size in &fixture.reference.ranks {
            let logits =
                on_every_rank(&fixture.files, dtype, world_size, |mut runner| runner.alone(prompt, CHUNK));
            for (rank, logits) in logits.iter().enumerate() {
                assert!(*logits == alone, "{name} {dtype}: rank {rank} of {world_size}");
            }
        }
    }
}

fn check_chunks(name: &str) {
    let fixture = Fixture::read(name);
    let prompt = fixture.longest();
    for dtype in DTYPES {
        let mut runner = Runner::solo(&fixture.files, dtype);
        let whole = runner.alone(prompt, prompt.len());
        for chunk in [1, 7, 64] {
            assert!(runner.alone(prompt, chunk) == whole, "{name} {dtype}: in chunks of {chunk}");
        }
    }
}

fn check_batch(name: &str) {
    let fixture = Fixture::read(name);
    let cases = &fixture.reference.cases;
    // Of each prompt, and of what follows it, so that lengths and contents differ.
    let prompts: Vec<Vec<u32>> = cases
        .iter()
        .flat_map(|case| [case.prompt_ids.clone(), [&case.prompt_ids[..], &case.greedy_ids].concat()])
        .collect();
    for dtype in DTYPES {
        let mut runner = Runner::solo(&fixture.files, dtype);
        let mut sequences: Vec<Sequence> = prompts.iter().map(|prompt| Sequence::new(prompt)).collect();
        let mut together = vec![Vec::new(); sequences.len()];
        // Some prefill in large chunks, some in small, some decode.
        while sequences.iter().any(|sequence| sequence.left() > 0) {
            let chunks = [3, 64, 1, 17, 5].into_iter().cycle();
            let mut work: Vec<(&mut Sequence, usize)> = sequences.iter_mut().zip(chunks).collect();
            for (rows, new) in together.iter_mut().zip(runner.step(&mut work)) {
                rows.extend(new);
            }
        }
        for (prompt, together) in prompts.iter().zip(&together) {
            let alone = runner.alone(prompt, prompt.len());
            assert!(alone == *together, "{name} {dtype}: a prompt of {}", prompt.len());
        }
    }
}

/// transformers 5 saves the same config in other words.
fn check_words(name: &str) {
    let fixture = Fixture::read(name);
    let folder = tempfile::tempdir().expect("a folder");
    let newer = fixture.folder.join("config-transformers-5.json");
    std::fs::copy(newer, folder.path().join("config.json")).expect("the fixture is there");
    let newer = ModelSpec::read(&ModelFiles::Folder(folder.path().to_owned())).expect("it is served");
    assert_eq!(newer, ModelSpec::read(&fixture.files).expect("it is served"), "{name}");
}

/// The tests of each fixture, in a module of its name.
macro_rules! families {
    ($($module:ident: $name:literal,)*) => {
        const NAMES: &[&str] = &[$($name),*];

        $(mod $module {
            #[test]
            fn computes_in_float32_what_transformers_does() {
                super::check_float32($name);
            }

            #[test]
            fn computes_in_bfloat16_what_transformers_does() {
                super::check_bfloat16($name);
            }

            #[test]
            fn computes_in_float16_what_transformers_does_in_float32() {
                super::check_float16($name);
            }

            #[test]
            fn gives_the_same_bits_on_any_number_of_ranks() {
                super::check_ranks($name);
            }

            #[test]
            fn gives_the_same_bits_for_any_cut_of_a_prompt() {
                super::check_chunks($name);
            }

            #[test]
            fn gives_the_same_bits_in_a_batch_as_alone() {
                super::check_batch($name);
            }

            #[test]
            fn is_configured_in_the_words_of_transformers_5_too() {
                super::check_words($name);
            }
        })*
    };
}

families! {
    gemma: "gemma",
    gemma2: "gemma2",
    gemma3: "gemma3",
    granite: "granite",
    llama2: "llama2",
    llama3: "llama3",
    llama_dynamic: "llama-dynamic",
    llama_linear: "llama-linear",
    llama_yarn: "llama-yarn",
    llama_yarn_mscale: "llama-yarn-mscale",
    mistral: "mistral",
    mixtral: "mixtral",
    olmo2: "olmo2",
    olmo3: "olmo3",
    phi3: "phi3",
    phi3_short: "phi3-short",
    phi4: "phi4",
    qwen2: "qwen2",
    qwen3: "qwen3",
    qwen3_moe: "qwen3-moe",
    qwen3_moe_open: "qwen3-moe-open",
    smollm: "smollm",
    smollm3: "smollm3",
    starcoder2: "starcoder2",
}

#[test]
fn every_fixture_is_tested() {
    let entries = std::fs::read_dir(families()).expect("the fixtures are there");
    let name = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.expect("the fixtures are there").file_name().to_string_lossy().into_owned()
    };
    let mut found: Vec<String> = entries.map(name).collect();
    found.sort();
    let mut tested = NAMES.to_vec();
    tested.sort_unstable();
    assert_eq!(found, tested);
}
