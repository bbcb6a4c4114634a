//! What keeps a server from starting is said in one line with a hint, and in the exit code.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};

use lockstep_models::ModelFiles;

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep-under-test");

/// Runs the binary to its end, and returns the one line it failed with.
#[track_caller]
fn failure(flags: &[&str]) -> String {
    let output = Command::new(LOCKSTEP)
        .args(["--hostname", "127.0.0.1", "--port", "0"])
        .args(flags)
        .stdin(Stdio::null())
        .output()
        .expect("the binary is there");
    let stderr = String::from_utf8(output.stderr).expect("it is text");
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(output.stdout.is_empty(), "nothing is announced that does not come");
    let lines: Vec<&str> = stderr.lines().filter(|line| line.starts_with("lockstep: ")).collect();
    let [line] = lines[..] else { panic!("not one line but {lines:?} in {stderr}") };
    line.strip_prefix("lockstep: failed to ").unwrap_or_else(|| panic!("{line}")).to_owned()
}

fn write(folder: &Path, files: &[(&str, &str)]) {
    for (name, text) in files {
        std::fs::write(folder.join(name), text).expect("a file");
    }
}

#[test]
fn a_taken_port() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("it is bound");
    assert_eq!(
        failure(&["--port", &address.port().to_string()]),
        format!("listen on {address}: the port is taken; stop what has it or choose another with --port")
    );
}

#[test]
fn missing_model_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().display().to_string();
    let missing = format!(
        "find config.json in {path}: a model folder holds config.json, tokenizer.json and *.safetensors"
    );
    assert_eq!(failure(&["--model-id", &path]), missing);
    write(folder.path(), &[("config.json", "{}")]);
    let error = failure(&["--model-id", &path]);
    let expected = format!("load the tokenizer of {path}: found no tokenizer, expected tokenizer.json; ");
    assert!(error.starts_with(&expected), "{error}");
    write(folder.path(), &[("tokenizer.model", "")]);
    let error = failure(&["--model-id", &path]);
    assert!(error.contains(": found tokenizer.model, expected tokenizer.json; "), "{error}");
}

/// What a copy of the demo model with other weights fails with.
fn demo_with(weights: &[(&str, &[u8])]) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        let bytes = ModelFiles::EmbeddedDemo.require(name).expect("the demo has it");
        std::fs::write(folder.path().join(name), &*bytes).expect("a file");
    }
    for (name, bytes) in weights {
        std::fs::write(folder.path().join(name), bytes).expect("a file");
    }
    failure(&["--model-id", &folder.path().display().to_string()])
}

#[test]
fn weights_that_cannot_be_read_are_told_before_anything_starts() {
    let whole = ModelFiles::EmbeddedDemo.require("model.safetensors").expect("the demo has it");
    let cut = demo_with(&[("model.safetensors", &whole[..5_000_000])]);
    let expected = "; its 5000000 bytes are cut off, damaged or never fetched: download it again";
    assert!(cut.starts_with("parse model.safetensors: ") && cut.ends_with(expected), "{cut}");
    let pointer =
        demo_with(&[("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")]);
    assert!(pointer.ends_with("never fetched: download it again"), "{pointer}");
    let pickled = demo_with(&[("pytorch_model.bin", b"")]);
    let expected = ": found pytorch_model.bin, expected model.safetensors, or parts of it with ";
    assert!(pickled.starts_with("find weights in ") && pickled.contains(expected), "{pickled}");
    let index = br#"{"weight_map": {"a": "model-00001-of-00002.safetensors"}}"#;
    let part = demo_with(&[("model.safetensors.index.json", index)]);
    assert!(part.starts_with("find model-00001-of-00002.safetensors in "), "{part}");
}

#[test]
fn a_folder_that_is_not_there() {
    let error = failure(&["--model-id", "/nonexistent/model"]);
    let expected = "find model \"/nonexistent/model\": it is no folder here and no name on the Hub, which reads org/name";
    assert_eq!(error, expected);
}

#[test]
fn an_unknown_architecture() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = r#"{ "architectures": ["MambaForCausalLM"], "model_type": "mamba" }"#;
    write(folder.path(), &[("config.json", config), ("tokenizer.json", "{}"), ("model.safetensors", "")]);
    let error = failure(&["--model-id", &folder.path().display().to_string()]);
    assert!(
        error.contains("MambaForCausalLM") || error.contains("mamba"),
        "it says what was found: {error}"
    );
    assert!(
        error.contains("LlamaForCausalLM") || error.contains("llama"),
        "it says what would work: {error}"
    );
}

#[test]
fn ranks_that_do_not_divide_the_heads() {
    let error = failure(&["--num-shard", "3"]);
    let expected = "over 3 ranks: 1 or 2 or 4 ranks work; choose their number with --num-shard";
    assert!(error.ends_with(expected), "it says which counts work: {error}");
    assert_eq!(failure(&["--num-shard", "0"]), "split a model over 0 shards; --num-shard is at least 1");
}

#[test]
fn not_enough_memory() {
    let error = failure(&["--kv-cache-memory", "4000000GiB"]);
    assert!(error.starts_with("fit the model in memory: "), "{error}");
    assert!(
        error.ends_with("; free memory, lower --kv-cache-memory or --max-batch-prefill-tokens"),
        "{error}"
    );
}
