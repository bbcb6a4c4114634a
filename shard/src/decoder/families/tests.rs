//! config.json files, and what is said of those that cannot be served.

use serde_json::{Value, json};

use super::*;
use crate::testing::TinyLlama;

fn read_with(change: impl FnOnce(&mut Value)) -> Result<ModelSpec, SpecError> {
    let folder = tempfile::tempdir().unwrap();
    let mut config = TinyLlama::new(0).config();
    change(&mut config);
    std::fs::write(folder.path().join(CONFIG), config.to_string()).unwrap();
    ModelSpec::read(&ModelFiles::Folder(folder.path().to_owned()))
}

fn check_refused(change: impl FnOnce(&mut Value), expected: &str) {
    assert_eq!(read_with(change).unwrap_err().to_string(), expected);
}

#[test]
fn older_and_newer_words_say_the_same() {
    let older = read_with(|config| config["rope_theta"] = json!(5e5)).unwrap();
    let newer = read_with(|config| {
        let object = config.as_object_mut().unwrap();
        object.remove("rope_theta");
        object.remove("rope_scaling");
        object.remove("torch_dtype");
        object.insert("rope_parameters".into(), json!({"rope_theta": 5e5, "rope_type": "default"}));
        object.insert("dtype".into(), json!("bfloat16"));
    });
    assert_eq!(newer.unwrap(), older);
    assert_eq!(older.shape.rope_theta, 5e5);
}

#[test]
fn an_unknown_architecture_names_the_known_ones() {
    check_refused(
        |config| config["architectures"] = json!(["MambaForCausalLM"]),
        "serve architecture MambaForCausalLM: known are LlamaForCausalLM",
    );
}

#[test]
fn what_is_not_implemented_names_its_field() {
    check_refused(
        |config| config["rope_scaling"] = json!({"rope_type": "llama3", "factor": 8.0}),
        "serve a model with rope_scaling = {rope_type: llama3} in config.json: supported is null or rope_type default",
    );
    check_refused(
        |config| config["rope_scaling"] = json!({"factor": 8.0, "low_freq_factor": 1.0}),
        "serve a model with rope_scaling = {factor, low_freq_factor, no rope_type} in config.json: supported is null or rope_type default",
    );
    let partial = "serve a model with partial_rotary_factor = 0.5 in config.json: supported is 1";
    check_refused(|config| config["partial_rotary_factor"] = json!(0.5), partial);
    check_refused(
        |config| config["rope_parameters"] = json!({"rope_type": "default", "partial_rotary_factor": 0.5}),
        partial,
    );
    check_refused(
        |config| config["attention_bias"] = json!(true),
        "serve a model with attention_bias = true in config.json: supported is false",
    );
    check_refused(
        |config| config["hidden_act"] = json!("gelu"),
        "serve a model with hidden_act = gelu in config.json: supported is silu",
    );
}

#[test]
fn numbers_that_make_no_model_name_their_field() {
    check_refused(
        |config| config["num_key_value_heads"] = json!(3),
        "serve a model with num_key_value_heads = 3 in config.json: expected a divisor of num_attention_heads, 8",
    );
    check_refused(
        |config| config["num_attention_heads"] = json!(0),
        "serve a model with num_attention_heads = 0 in config.json: expected a number from 1 to 16384",
    );
}

#[test]
fn numbers_that_give_no_rotation_or_norm_name_their_field() {
    for (theta, found) in [(0.0, "0"), (-1e4, "-10000"), (1e300, "1")] {
        let error = read_with(|config| config["rope_theta"] = json!(theta)).unwrap_err().to_string();
        assert!(error.starts_with(&format!("serve a model with rope_theta = {found}")), "{error}");
        assert!(error.ends_with("in config.json: expected a number above 0 that f32 holds"), "{error}");
    }
    check_refused(
        |config| config["rms_norm_eps"] = json!(-1e-5),
        "serve a model with rms_norm_eps = -0.00001 in config.json: expected a number from 0 that f32 holds",
    );
    let allowed = read_with(|config| {
        config["rms_norm_eps"] = json!(0.0);
        config["partial_rotary_factor"] = json!(1.0);
        config["rope_scaling"] = json!({});
    });
    assert_eq!(allowed.unwrap().shape.norm_epsilon, 0.0);
}
