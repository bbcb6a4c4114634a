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
    assert_eq!(older.choices.rope.theta, 5e5);
}

#[test]
fn an_unknown_architecture_names_the_known_ones() {
    check_refused(
        |config| config["architectures"] = json!(["MambaForCausalLM"]),
        "serve architecture MambaForCausalLM: known are LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, \
         Qwen3ForCausalLM, Qwen3MoeForCausalLM, MixtralForCausalLM, GemmaForCausalLM, Gemma2ForCausalLM, \
         Gemma3ForCausalLM, Phi3ForCausalLM, GraniteForCausalLM, Olmo2ForCausalLM, Olmo3ForCausalLM, Starcoder2ForCausalLM, \
         SmolLM3ForCausalLM",
    );
}

#[test]
fn what_is_not_implemented_names_its_field() {
    check_refused(
        |config| config["rope_scaling"] = json!({"rope_type": "mrope", "factor": 8.0}),
        "serve a model with rope_type = mrope in config.json: \
         supported is default, linear, dynamic, yarn, llama3 or longrope",
    );
    check_refused(
        |config| config["rope_scaling"] = json!({"factor": 8.0, "low_freq_factor": 1.0}),
        "serve a model with rope_scaling = {low_freq_factor, factor, no rope_type} in config.json: \
         supported is default, linear, dynamic, yarn, llama3 or longrope",
    );
    check_refused(
        |config| config["hidden_act"] = json!("gelu"),
        "serve a model with hidden_act = gelu in config.json: supported is silu or gelu_pytorch_tanh",
    );
}

#[test]
fn what_the_family_does_not_heed_names_its_field() {
    fn mistral(field: &str, value: &Value) -> String {
        let changed = read_with(|config| {
            config["architectures"] = json!(["MistralForCausalLM"]);
            config["sliding_window"] = json!(64);
            config[field] = value.clone();
        });
        changed.map_or_else(|error| error.to_string(), |_| "served".to_owned())
    }
    let refused = |field, found, supported| {
        format!("serve a model with {field} = {found} in config.json: supported is {supported}")
    };
    assert_eq!(mistral("attention_bias", &json!(true)), refused("attention_bias", "true", "false"));
    assert_eq!(mistral("mlp_bias", &json!(true)), refused("mlp_bias", "true", "false"));
    let cap = "attn_logit_softcapping";
    assert_eq!(mistral(cap, &json!(50.0)), refused(cap, "50", "null"));
    let cap = "final_logit_softcapping";
    assert_eq!(mistral(cap, &json!(30.0)), refused(cap, "30", "null"));
    let kinds = "sliding_attention or full_attention";
    assert_eq!(
        mistral("layer_types", &json!(["chunked_attention"])),
        refused("layer_types", "chunked_attention", kinds)
    );
    assert_eq!(mistral("attention_bias", &json!(false)), "served");
    check_refused(
        |config| {
            config["sliding_window"] = json!(64);
            config["use_sliding_window"] = json!(true);
        },
        &refused("sliding_window", "64", "null"),
    );
}

#[test]
fn windows_are_in_the_layers_that_slide() {
    let windows = |change: fn(&mut Value)| {
        let spec = read_with(|config| {
            config["num_hidden_layers"] = json!(4);
            config["sliding_window"] = json!(64);
            change(config);
        });
        spec.unwrap().layers.iter().map(|layer| u8::from(layer.window.is_some())).collect::<Vec<_>>()
    };
    assert_eq!(windows(|config| config["architectures"] = json!(["MistralForCausalLM"])), [1, 1, 1, 1]);
    assert_eq!(windows(|config| config["architectures"] = json!(["Gemma2ForCausalLM"])), [1, 0, 1, 0]);
    let qwen = |config: &mut Value| {
        config["architectures"] = json!(["Qwen2ForCausalLM"]);
        config["max_window_layers"] = json!(3);
    };
    assert_eq!(windows(qwen), [0, 0, 0, 0]);
    let slides = |config: &mut Value| {
        config["architectures"] = json!(["Qwen2ForCausalLM"]);
        config["max_window_layers"] = json!(3);
        config["use_sliding_window"] = json!(true);
    };
    assert_eq!(windows(slides), [0, 0, 0, 1]);
    let gemma = |config: &mut Value| {
        config["architectures"] = json!(["Gemma3ForCausalLM"]);
        config["sliding_window_pattern"] = json!(3);
    };
    assert_eq!(windows(gemma), [1, 1, 0, 1]);
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
        config["partial_rotary_factor"] = json!(0.5);
        config["rope_scaling"] = json!({});
    });
    assert_eq!(allowed.unwrap().shape.norm_epsilon, 0.0);
}

#[test]
fn sizes_that_make_no_model_are_refused() {
    check_refused(
        |config| {
            config["hidden_size"] = json!(1 << 20);
            config["num_hidden_layers"] = json!(4096);
            config["intermediate_size"] = json!(1 << 20);
        },
        "serve a model with num_hidden_layers = 4096 beside the other sizes in config.json: \
         expected a model of at most 1e14 parameters in 1048576 tensors",
    );
}

#[test]
fn weights_that_were_quantized_are_refused_by_their_method() {
    check_refused(
        |config| {
            config["quantization_config"] = json!({"quant_method": "fp8", "activation_scheme": "dynamic"})
        },
        "serve a model with quantization_config = fp8 in config.json: \
         supported is null: weights in bf16, f16 or f32",
    );
}

#[test]
fn windows_and_caps_of_nothing_are_refused() {
    let with = |field: &'static str, value: Value| {
        let changed = read_with(|config| {
            config["architectures"] = json!(["Gemma2ForCausalLM"]);
            config[field] = value;
        });
        changed.unwrap_err().to_string()
    };
    let expected = "serve a model with sliding_window = 0 in config.json: expected null or a number from 1";
    assert_eq!(with("sliding_window", json!(0)), expected);
    let expected =
        "serve a model with attn_logit_softcapping = 0 in config.json: expected a number above 0";
    assert_eq!(with("attn_logit_softcapping", json!(0.0)), expected);
}

#[test]
fn caps_that_are_not_named_are_the_familys() {
    let caps = |change: fn(&mut Value)| {
        let spec = read_with(|config| {
            config["architectures"] = json!(["Gemma2ForCausalLM"]);
            change(config);
        });
        let choices = spec.unwrap().choices;
        (choices.attention.softcap, choices.scales.logits_softcap)
    };
    assert_eq!(caps(|_| {}), (Some(50.0), Some(30.0)));
    assert_eq!(caps(|config| config["attn_logit_softcapping"] = Value::Null), (None, Some(30.0)));
}

#[test]
fn numbers_of_a_rotation_are_checked() {
    let refused = |field, found, expected| {
        format!("serve a model with {field} = {found} in config.json: expected {expected}")
    };
    check_refused(
        |config| config["partial_rotary_factor"] = json!(0.35),
        &refused("partial_rotary_factor", "0.35", "a part of 20 that is an even number of elements"),
    );
    check_refused(
        |config| config["rope_scaling"] = json!({"rope_type": "linear", "factor": 0.0}),
        &refused("factor", "0", "a number above 0"),
    );
    check_refused(
        |config| config["rope_scaling"] = json!({"rope_type": "llama3", "factor": 8.0}),
        &refused("low_freq_factor", "null", "a number above 0"),
    );
    check_refused(
        |config| config["rope_scaling"] = json!({"type": "longrope", "short_factor": [1.0, 2.0]}),
        &refused("short_factor", "[1.0,2.0]", "10 numbers above 0"),
    );
}

#[test]
fn a_stretched_context_has_more_positions() {
    let positions =
        |scaling: Value| read_with(|config| config["rope_scaling"] = scaling).unwrap().shape.max_positions;
    assert_eq!(positions(json!({"type": "linear", "factor": 4.0})), 2048);
    assert_eq!(positions(json!({"type": "dynamic", "factor": 2.0})), 1024);
    assert_eq!(positions(json!({"type": "yarn", "factor": 4.0})), 2048);
    let named = json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128});
    assert_eq!(positions(named), 512);
}
