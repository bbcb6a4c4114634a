//! Whatever the model, an answer keeps to its grammar: a demo model that means it, and one of random weights
//! that could not.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

#[path = "grammar/schemas.rs"]
mod schemas;

use std::path::{Path, PathBuf};

use futures::{StreamExt, stream};
use lockstep_integration_tests::client::Client;
use lockstep_integration_tests::cluster::Setup;
use serde_json::{Value, json};
use tempfile::TempDir;

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep-under-test");
const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/demo");
/// Layers of the random model: enough to be one.
const LAYERS: u64 = 1;
const AT_ONCE: usize = 24;

/// The demo model's folder with other weights: noise.
fn random_model() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in
        ["generation_config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"]
    {
        std::fs::copy(Path::new(DEMO).join(name), folder.path().join(name)).unwrap();
    }
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(Path::new(DEMO).join("config.json")).unwrap()).unwrap();
    config["num_hidden_layers"] = json!(LAYERS);
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let weights: PathBuf = folder.path().join("model.safetensors");
    std::fs::write(weights, noise(&std::fs::read(Path::new(DEMO).join("model.safetensors")).unwrap()))
        .unwrap();
    folder
}

/// A safetensors file with the first layers' names and shapes, all bf16, its numbers between -1/16 and 1/16,
/// those of vectors 1.
fn noise(original: &[u8]) -> Vec<u8> {
    let length = u64::from_le_bytes(original[..8].try_into().unwrap()) as usize;
    let header: serde_json::Map<String, Value> = serde_json::from_slice(&original[8..8 + length]).unwrap();
    let is_kept = |name: &str| {
        let layer =
            name.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next()?.parse::<u64>().ok());
        name != "__metadata__" && layer.is_none_or(|layer| layer < LAYERS)
    };
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let (mut kept, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, tensor) in header.into_iter().filter(|(name, _)| is_kept(name)) {
        let shape: Vec<u64> = serde_json::from_value(tensor["shape"].clone()).unwrap();
        let start = data.len();
        for _ in 0..shape.iter().product::<u64>() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let share = (state >> 40) as f32 / (1_u64 << 24) as f32;
            let number = if shape.len() == 1 { 1.0 } else { (share - 0.5) / 8.0 };
            data.extend_from_slice(&number.to_bits().to_le_bytes()[2..]);
        }
        kept.insert(name, json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, data.len()]}));
    }
    let header = Value::Object(kept).to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()
}

fn random_setup(folder: &TempDir, ranks: u32) -> Setup {
    let flags = ["--model-id", folder.path().to_str().unwrap(), "--prefix-caching", "false"];
    Setup::demo(LOCKSTEP).ranks(ranks).flags(&flags)
}

fn hot(schema: &Value, seed: usize) -> Value {
    json!({"inputs": "Answer:", "parameters": {
        "grammar": {"type": "json", "value": schema}, "do_sample": true, "temperature": 1.5, "seed": seed,
        "max_new_tokens": 1500, "details": true}})
}

async fn generate(client: &Client, body: &Value) -> Value {
    let reply = client.post("/generate", body).await.unwrap();
    assert_eq!(reply.status, 200, "{body}: {}", reply.text);
    reply.json()
}

/// A sum or a count of `/metrics`.
async fn metric(client: &Client, name: &str) -> f64 {
    let page = client.get("/metrics").await.unwrap().text;
    let line = page.lines().find(|line| line.split(' ').next() == Some(name)).unwrap_or_default();
    line.rsplit(' ').next().unwrap().parse().unwrap_or(0.0)
}

#[tokio::test]
async fn a_random_model_keeps_to_every_schema() {
    let folder = random_model();
    let cluster = random_setup(&folder, 1).start();
    let client = cluster.client();
    let schemas = schemas::all();
    assert!(schemas.len() >= 300, "{}", schemas.len());
    let ask = async |(seed, schema): (usize, &Value)| {
        let answer = generate(&client, &hot(schema, seed)).await;
        (schema.clone(), answer)
    };
    let answers: Vec<(Value, Value)> =
        stream::iter(schemas.iter().enumerate()).map(ask).buffer_unordered(AT_ONCE).collect().await;
    for (schema, answer) in &answers {
        assert_eq!(answer["details"]["finish_reason"], "eos_token", "{schema}: {answer}");
        let text = answer["generated_text"].as_str().unwrap();
        let value: Value =
            serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text:?} for {schema}"));
        assert!(schemas::is_valid(schema, schema, &value), "{value} for {schema}");
    }
    let tokens: u64 =
        answers.iter().map(|(_, answer)| answer["details"]["generated_tokens"].as_u64().unwrap()).sum();
    let mean = async |name: &str| {
        metric(&client, &format!("{name}_sum")).await / metric(&client, &format!("{name}_count")).await
            * 1e6
    };
    let (mask_us, compile_us) =
        (mean("lockstep_grammar_mask_seconds").await, mean("lockstep_grammar_compile_seconds").await);
    let forced = metric(&client, "lockstep_grammar_tokens_total{origin=\"forced\"}").await;
    let sampled = metric(&client, "lockstep_grammar_tokens_total{origin=\"sampled\"}").await;
    assert_eq!(forced + sampled, tokens as f64, "every token is one or the other");
    assert!(forced > 0.0);
    let share = 100.0 * forced / (forced + sampled);
    println!(
        "{} schemas, {tokens} tokens, all valid; a mask takes {mask_us:.0} µs and a grammar {compile_us:.0} µs in the \
         mean; {forced} tokens, {share:.1} %, are forced: as many steps are saved of {tokens}",
        answers.len()
    );
}

#[tokio::test]
async fn the_same_seed_gives_the_same_bytes_in_any_company() {
    let folder = random_model();
    let schemas: Vec<Value> = schemas::all().into_iter().step_by(23).collect();
    let one = random_setup(&folder, 1).start();
    let client = one.client();
    let mut alone = Vec::new();
    for (seed, schema) in schemas.iter().enumerate() {
        alone.push(generate(&client, &hot(schema, seed)).await);
    }
    let two = random_setup(&folder, 2).start();
    for client in [client, two.client()] {
        let ask = async |(seed, schema): (usize, &Value)| generate(&client, &hot(schema, seed)).await;
        let crowd: Vec<Value> =
            stream::iter(schemas.iter().enumerate()).map(ask).buffered(AT_ONCE).collect().await;
        assert_eq!(crowd, alone);
    }
}

#[tokio::test]
async fn the_demo_model_answers_within_its_grammar() {
    let cluster = Setup::demo(LOCKSTEP).start();
    let client = cluster.client();
    let schema = json!({"type": "object", "properties": {"capital": {"type": "string", "maxLength": 20}},
        "required": ["capital"], "additionalProperties": false});
    let chat = |format: Value| {
        json!({"messages": [{"role": "user", "content": "What is the capital of France?"}], "max_tokens": 200,
            "temperature": 0, "response_format": format})
    };
    let content = async |format: Value| {
        let reply = client.post("/v1/chat/completions", &chat(format)).await.unwrap();
        assert_eq!(reply.status, 200, "{}", reply.text);
        let choice = reply.json()["choices"][0].clone();
        assert_eq!(choice["finish_reason"], "stop", "{choice}");
        choice["message"]["content"].as_str().unwrap().to_owned()
    };
    let format = json!({"type": "json_schema", "json_schema": {"name": "capital", "schema": schema}});
    let value: Value = serde_json::from_str(&content(format).await).unwrap();
    assert!(schemas::is_valid(&schema, &schema, &value), "{value}");
    assert!(
        serde_json::from_str::<Value>(&content(json!({"type": "json_object"})).await).unwrap().is_object()
    );
    let regex = content(json!({"type": "regex", "value": "(Paris|London), [A-Z][a-z]{3,9}"})).await;
    assert!(regex.starts_with("Paris, "), "{regex}");
    // Log-probabilities are the model's, whatever the grammar leaves: that of a forced token is low.
    let mut body = json!({"inputs": "Once upon a", "parameters": {"max_new_tokens": 1, "details": true,
        "grammar": {"type": "regex", "value": " time"}}});
    let free = json!({"inputs": "Once upon a", "parameters": {"max_new_tokens": 1, "details": true}});
    let token = async |body: &Value| generate(&client, body).await["details"]["tokens"][0].clone();
    let (held, free) = (token(&body).await, token(&free).await);
    assert_eq!(held, free, "a grammar that allows what the model says anyway changes nothing");
    body["parameters"]["grammar"]["value"] = json!("%");
    let forced = token(&body).await;
    assert!(forced["logprob"].as_f64().unwrap() < -1.0, "{forced}");
}
