//! Headers, sound and damaged; what is said of files that cannot be used; the files made from metadata.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::testing::{Flag, GgufWriter};

/// A file with values of most types, a tokenizer and a few tensors.
fn small() -> GgufWriter {
    let mut file = GgufWriter::new();
    file.text("general.architecture", "llama")
        .unsigned("llama.block_count", 1)
        .unsigned("llama.context_length", 128)
        .unsigned("llama.embedding_length", 32)
        .unsigned("llama.feed_forward_length", 64)
        .unsigned("llama.attention.head_count", 4)
        .float("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .text("tokenizer.ggml.model", "llama")
        .texts("tokenizer.ggml.tokens", &["<unk>", "<s>", "</s>", "\u{2581}", "a", "b", "ab", "\u{2581}ab"])
        .floats("tokenizer.ggml.scores", &[0.0, 0.0, 0.0, -10.0, -11.0, -12.0, -1.0, -2.0])
        .signeds("tokenizer.ggml.token_type", &[2, 3, 3, 1, 1, 1, 1, 1])
        .unsigned("tokenizer.ggml.bos_token_id", 1)
        .unsigned("tokenizer.ggml.eos_token_id", 2)
        .unsigned("tokenizer.ggml.unknown_token_id", 0)
        .flag("tokenizer.ggml.add_eos_token", Flag::True)
        .tensor("token_embd.weight", &[8, 32], 0, &[0; 8 * 32 * 4])
        .tensor("blk.0.attn_q.weight", &[32, 32], 8, &[0; 32 * 34])
        .tensor("blk.0.attn_norm.weight", &[32], 0, &[0; 32 * 4]);
    file
}

fn open(bytes: Vec<u8>) -> Result<Gguf, GgufError> {
    Gguf::from_bytes(FileBytes::Owned(bytes))
}

fn made(file: &GgufWriter, name: &str) -> Result<Value, GgufError> {
    let bytes = open(file.finish())?.synthesize(name)?.expect("a file of this name is made");
    Ok(serde_json::from_slice(&bytes).expect("what is made is JSON"))
}

fn check_refused(file: &GgufWriter, name: &str, expected: &str) {
    assert_eq!(made(file, name).expect_err(expected).to_string(), expected);
}

#[test]
fn a_sound_file_lists_its_tensors_as_a_checkpoint_would() {
    let gguf = open(small().finish()).unwrap();
    let tensors = gguf.tensors().unwrap();
    let names: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    let expected = [
        "model.layers.0.input_layernorm.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.embed_tokens.weight",
    ];
    assert_eq!(names, expected);
    let query = &tensors[1];
    assert_eq!((query.shape.as_slice(), query.element), ([32, 32].as_slice(), ElementType::Q8_0));
    assert_eq!((query.bytes.len(), query.bytes.start % 32), (32 * 34, 0));
    assert_eq!(query.rows, RowOrder::AdjacentPairs { head_width: 8 });
    assert_eq!(tensors[0].rows, RowOrder::Same);
}

#[test]
fn the_configuration_says_what_the_metadata_says() {
    let config = made(&small(), "config.json").unwrap();
    let expected = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32,
        "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4,
        "head_dim": 8, "vocab_size": 8, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "rope_scaling": null, "hidden_act": "silu", "tie_word_embeddings": true,
        "attention_bias": false, "mlp_bias": false, "bos_token_id": 1, "eos_token_id": 2,
    });
    assert_eq!(config, expected);
    let mut scaled = small();
    scaled.text("llama.rope.scaling.type", "yarn").float("llama.rope.scaling.factor", 4.0);
    scaled.unsigned("llama.rope.scaling.original_context_length", 32);
    scaled.unsigned("llama.attention.sliding_window", 64);
    let config = made(&scaled, "config.json").unwrap();
    let scaling = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32});
    assert_eq!(config["rope_scaling"], scaling);
    assert_eq!(
        (&config["architectures"][0], &config["sliding_window"]),
        (&json!("MistralForCausalLM"), &json!(64))
    );
}

#[test]
fn scores_become_merges_and_roles_become_marks() {
    let tokenizer = made(&small(), "tokenizer.json").unwrap();
    assert_eq!(tokenizer["model"]["merges"], json!([["a", "b"], ["\u{2581}", "ab"]]));
    assert_eq!(tokenizer["model"]["unk_token"], "<unk>");
    let marks: Vec<&Value> =
        tokenizer["added_tokens"].as_array().unwrap().iter().map(|token| &token["content"]).collect();
    assert_eq!(marks, ["<unk>", "<s>", "</s>"]);
    let mut listed = small();
    listed.texts("tokenizer.ggml.merges", &["\u{2581} a", "a b"]);
    let tokenizer_of_list = made(&listed, "tokenizer.json").unwrap();
    assert_eq!(tokenizer_of_list["model"]["merges"], json!([["\u{2581}", "a"], ["a", "b"]]));
    let around = json!([
        {"SpecialToken": {"id": "<s>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "</s>", "type_id": 0}},
    ]);
    assert_eq!(tokenizer["post_processor"]["single"], around);
    let config = made(&small(), "tokenizer_config.json").unwrap();
    assert_eq!((&config["bos_token"], &config["eos_token"]), (&json!("<s>"), &json!("</s>")));
    assert_eq!(config.get("chat_template"), None);
    assert_eq!(made(&small(), "generation_config.json").unwrap()["eos_token_id"], json!([2]));
}

#[test]
fn several_templates_keep_their_names() {
    let mut file = small();
    file.text("tokenizer.chat_template", "a").text("tokenizer.chat_template.tool_use", "b");
    file.texts("tokenizer.chat_templates", &["tool_use"]);
    let config = made(&file, "tokenizer_config.json").unwrap();
    let expected = json!([{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]);
    assert_eq!(config["chat_template"], expected);
}

#[test]
fn what_is_not_supported_is_said_with_what_is() {
    let with = |key: &str, value: &str| {
        let mut file = GgufWriter::new();
        file.text(key, value);
        file
    };
    check_refused(
        &GgufWriter::new(),
        "config.json",
        "general.architecture is not there, expected llama, qwen2, qwen3",
    );
    check_refused(
        &with("general.architecture", "mamba"),
        "config.json",
        "general.architecture is mamba, supported is llama, qwen2, qwen3",
    );
    check_refused(
        &with("tokenizer.ggml.model", "bert"),
        "tokenizer.json",
        "tokenizer.ggml.model is bert, supported is gpt2, llama",
    );
    let mut experts = small();
    experts.unsigned("llama.expert_count", 8);
    check_refused(
        &experts,
        "config.json",
        "llama.expert_count is 8, supported is 0: no mixture of experts",
    );
    let mut tokenizer = with("tokenizer.ggml.model", "gpt2");
    tokenizer.text("tokenizer.ggml.pre", "no-such").texts("tokenizer.ggml.tokens", &["a"]);
    let error = made(&tokenizer, "tokenizer.json").unwrap_err().to_string();
    assert!(error.starts_with("tokenizer.ggml.pre is no-such, supported is llama-bpe, "), "{error}");
    let mut element = small();
    element.tensor("output.weight", &[8, 256], 23, &[0; 1]);
    let error = open(element.finish()).err().unwrap().to_string();
    assert!(
        error.starts_with("the element type of tensor output.weight is IQ4_XS, supported is F32, "),
        "{error}"
    );
}

#[test]
fn damage_is_named() {
    let check = |bytes: Vec<u8>, expected: &str| {
        let error = open(bytes).err().expect(expected).to_string();
        assert!(error.contains(expected), "{error}");
    };
    let sound = small().finish();
    check(b"PK\x03\x04 and more".to_vec(), "it begins with \"PK\\x03\\x04\", expected \"GGUF\"");
    check(b"GG".to_vec(), "the magic number takes 4 bytes from byte 0 on and the file has 2");
    check([b"GGUF", 1_u32.to_le_bytes().as_slice()].concat(), "its version is 1, expected 2 or 3");
    check([b"GGUF", 3_u32.to_be_bytes().as_slice()].concat(), "expected 2 or 3 in little-endian order");
    check(sound[..sound.len() - 1].to_vec(), "tensor blk.0.attn_norm.weight takes 128 bytes");
    let mut many = sound.clone();
    many[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    check(many, "the number of tensors is 18446744073709551615, expected at most 1048576");
    let mut twice = small();
    twice.unsigned("llama.block_count", 2);
    check(twice.finish(), "key llama.block_count is there twice");
    let mut uneven = small();
    uneven.tensor("output.weight", &[8, 33], 8, &[0; 64]);
    check(uneven.finish(), "the row length of tensor output.weight is 33, expected a multiple of 32");
    let mut huge = small();
    huge.tensor("output.weight", &[usize::MAX / 32, 32, 2], 0, &[0; 64]);
    check(huge.finish(), "the shape of tensor output.weight is [2, 32, ");
    let mut token = small();
    token.unsigned("tokenizer.ggml.eot_token_id", 8);
    let error = made(&token, "generation_config.json").unwrap_err().to_string();
    assert_eq!(error, "tokenizer.ggml.eot_token_id is 8, expected less than 8, the number of tokens");
}

/// Everything a header leads to, whatever it says.
fn use_all(bytes: Vec<u8>) {
    let length = bytes.len();
    let Ok(gguf) = open(bytes) else { return };
    for tensor in gguf.tensors().unwrap_or_default() {
        assert!(tensor.bytes.end <= length && tensor.bytes.start % 2 == 0);
        let columns = tensor.shape.last().copied().unwrap_or(1);
        let rows = tensor.shape.iter().rev().skip(1).product::<usize>();
        let row = columns / tensor.element.block_elements() * tensor.element.block_bytes();
        assert_eq!(rows * row, tensor.bytes.len());
    }
    for name in FILES {
        if let Ok(made) = gguf.synthesize(name) {
            let made = made.expect("it is one of the files that are made");
            serde_json::from_slice::<Value>(&made).expect("what is made is JSON");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_damage_brings_a_panic(damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = small().finish();
        // The header is where it matters; it is the first part.
        let header = bytes.len() - 8 * 32 * 4 - 32 * 34 - 32 * 4;
        for (at, byte) in damage {
            bytes[at.index(header)] = byte;
        }
        use_all(bytes);
    }

    #[test]
    fn no_cut_brings_a_panic_or_a_sound_file(cut in any::<prop::sample::Index>()) {
        let mut bytes = small().finish();
        bytes.truncate(cut.index(bytes.len()));
        prop_assert!(open(bytes).is_err());
    }

    #[test]
    fn no_bytes_bring_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        use_all([b"GGUF\x03\0\0\0".to_vec(), bytes].concat());
    }
}
