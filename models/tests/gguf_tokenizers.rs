//! Tokenizers made from GGUF files: the ids that sentencepiece, or the tokenizer.json of models that go by a
//! pre-tokenizer's name, gives the same texts. `fixtures/gguf/generate.py` makes the files and the ids.

use std::path::{Path, PathBuf};

use lockstep_models::{ModelFiles, testing};
use proptest::prelude::*;
use serde::Deserialize;
use tokenizers::Tokenizer;

#[derive(Deserialize)]
struct Reference {
    texts: Vec<Text>,
}

#[derive(Deserialize)]
struct Text {
    text: String,
    ids: Vec<u32>,
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf").join(name)
}

fn tokenizer(files: &ModelFiles) -> Tokenizer {
    let json = files.require("tokenizer.json").expect("the metadata makes a tokenizer");
    Tokenizer::from_bytes(&*json).expect("what is made is a tokenizer")
}

fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode_fast(text, true).expect("every text has tokens").get_ids().to_vec()
}

fn check(name: &str) {
    let tokenizer = tokenizer(&ModelFiles::Gguf(fixture(&format!("{name}.gguf"))));
    let text = std::fs::read_to_string(fixture(&format!("{name}.json"))).expect("the fixture is there");
    let reference: Reference = serde_json::from_str(&text).expect("the fixture is a reference");
    assert!(reference.texts.len() > 20);
    for Text { text, ids: expected } in &reference.texts {
        assert_eq!(&ids(&tokenizer, text), expected, "{name}: {text:?}");
    }
}

#[test]
fn sentence_piece_gives_the_ids_of_sentencepiece() {
    check("llama");
}

#[test]
fn byte_level_with_the_expression_of_llama_3_takes_whole_words() {
    check("llama3");
}

#[test]
fn byte_level_with_the_expression_of_qwen_2_composes_characters() {
    check("qwen2");
    check("qwen3");
}

#[test]
fn byte_level_with_digits_apart() {
    check("tokenizer-smollm");
}

#[test]
fn byte_level_of_gpt_2() {
    check("tokenizer-gpt-2");
}

#[test]
fn byte_level_of_tekken_takes_whole_words() {
    check("tokenizer-tekken");
}

/// The demo model's tokenizer, and the same by way of a GGUF file.
fn both() -> (Tokenizer, Tokenizer) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("demo.gguf");
    std::fs::write(&path, testing::demo_as_gguf()).expect("room for a model");
    (tokenizer(&ModelFiles::EmbeddedDemo), tokenizer(&ModelFiles::Gguf(path)))
}

#[test]
fn the_demo_tokenizer_is_the_same_by_way_of_a_gguf_file() {
    let (original, converted) = both();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(400));
    let word = prop_oneof![
        "[a-zA-Z]{1,12}",
        "[0-9]{1,8}",
        "[ \t\n\r]{1,4}",
        "\\PC{1,6}",
        Just("<|im_start|>".to_owned()),
        Just("<|im_end|>".to_owned()),
        Just("<|endoftext|>".to_owned()),
        Just("<|im_".to_owned()),
        Just("don't I'LL ".to_owned()),
    ];
    let text = proptest::collection::vec(word, 0..24).prop_map(|words| words.concat());
    let same = |text: String| {
        let (one, other) = (ids(&original, &text), ids(&converted, &text));
        prop_assert_eq!(&one, &other, "{:?}", text);
        let decode = |tokenizer: &Tokenizer| tokenizer.decode(&one, true).expect("ids have text");
        prop_assert_eq!(decode(&original), decode(&converted));
        Ok(())
    };
    runner.run(&text, same).expect("the two tokenizers agree");
}

#[test]
fn the_demo_configuration_is_the_same_by_way_of_a_gguf_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("demo.gguf");
    std::fs::write(&path, testing::demo_as_gguf()).expect("room for a model");
    let converted = ModelFiles::Gguf(path);
    for (file, keys) in [
        (
            "config.json",
            ["hidden_size", "head_dim", "rms_norm_eps", "rope_theta", "vocab_size", "tie_word_embeddings"]
                .as_slice(),
        ),
        ("generation_config.json", &["eos_token_id", "bos_token_id"]),
        (
            "tokenizer_config.json",
            &["chat_template", "bos_token", "eos_token", "pad_token", "add_bos_token"],
        ),
    ] {
        let read = |files: &ModelFiles| files.require_json::<serde_json::Value>(file).expect("it is there");
        let (original, converted) = (read(&ModelFiles::EmbeddedDemo), read(&converted));
        for key in keys {
            assert_eq!(converted[key], original[key], "{file} {key}");
        }
    }
}
