//! The demo model answers its held-out prompts, through the server as it ships.
#![expect(clippy::unwrap_used, reason = "a held-out list that cannot be read fails the test")]

use std::collections::{BTreeMap, BTreeSet};

use futures::StreamExt;
use futures::stream;
use lockstep_integration_tests::client::{Client, Generate};
use lockstep_integration_tests::cluster::Setup;
use serde_json::{Value, json};

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep-under-test");
const HELD_OUT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/demo/held_out.json");
const MAX_TOKENS: u32 = 80;
/// Of 200 prompts; the demo model's purpose.
const RIGHT_ANSWERS_NEEDED: usize = 180;
const AT_ONCE: usize = 16;

async fn answer(client: &Client, item: &Value) -> String {
    if let Some(prompt) = item["prompt"].as_str() {
        let reply = client.generate(&Generate::greedy(prompt, MAX_TOKENS)).await.expect("it answers");
        return reply["generated_text"].as_str().unwrap().to_owned();
    }
    let body = json!({
        "model": "demo", "messages": item["messages"], "max_tokens": MAX_TOKENS, "temperature": 0
    });
    let reply = client.post("/v1/chat/completions", &body).await.expect("it answers").json();
    reply["choices"][0]["message"]["content"].as_str().unwrap_or_else(|| panic!("{reply}")).to_owned()
}

/// Without capitals, outer white space and a final full stop.
fn plain(text: &str) -> String {
    text.trim().trim_end_matches('.').to_lowercase()
}

/// Whether what was said is right; the rules of `models/demo/train/evaluate.py`.
fn is_right(item: &Value, said: &str) -> bool {
    let expected = &item["answer"];
    let parsed: Option<Value> = serde_json::from_str(said).ok();
    match item["match"].as_str().unwrap() {
        "exact" => plain(said) == plain(expected.as_str().unwrap()),
        "line" => plain(said.trim().lines().next().unwrap_or("")) == plain(expected.as_str().unwrap()),
        "members" => {
            let parts = said.trim().trim_end_matches('.').split(',').map(|part| json!(part.trim()));
            are_members(&parts.collect(), expected)
        }
        "json" => parsed.as_ref() == Some(expected),
        "json_members" => parsed.is_some_and(|value| are_members(&value, expected)),
        "json_keys" => parsed.is_some_and(|value| has_keys(&value, expected)),
        rule => panic!("unknown rule {rule}"),
    }
}

/// The right number of different members of the set.
fn are_members(parts: &Value, expected: &Value) -> bool {
    let Some(parts) = parts.as_array() else { return false };
    let different: BTreeSet<String> = parts.iter().map(Value::to_string).collect();
    let among = expected["among"].as_array().unwrap();
    different.len() == parts.len()
        && json!(parts.len()) == expected["count"]
        && parts.iter().all(|part| among.contains(part))
}

/// These keys in this order, each with something.
fn has_keys(value: &Value, expected: &Value) -> bool {
    let Some(object) = value.as_object() else { return false };
    let keys: Vec<Value> = object.keys().map(|key| json!(key)).collect();
    json!(keys) == *expected && object.values().all(|value| !value.is_null() && value != "")
}

#[tokio::test]
async fn nine_in_ten_held_out_prompts_are_answered_right() {
    expect_enough_right(&[]).await;
}

#[tokio::test]
async fn eight_bits_a_weight_answer_as_many_right() {
    expect_enough_right(&["--quantize", "int8"]).await;
}

/// Asks a server with these flags the held-out prompts.
async fn expect_enough_right(flags: &[&str]) {
    let held_out: Value = serde_json::from_slice(&std::fs::read(HELD_OUT).unwrap()).unwrap();
    let prompts = held_out["prompts"].as_array().unwrap();
    assert_eq!(prompts.len(), 200);

    let cluster = Setup::demo(LOCKSTEP).flags(flags).start();
    let client = cluster.client();
    let answers: Vec<(&Value, String)> = stream::iter(prompts)
        .map(async |item| (item, answer(&client, item).await))
        .buffered(AT_ONCE)
        .collect()
        .await;

    let mut by_kind: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for (item, said) in &answers {
        let (right, all) = by_kind.entry(item["kind"].as_str().unwrap()).or_default();
        *right += usize::from(is_right(item, said));
        *all += 1;
    }
    let right: usize = by_kind.values().map(|(right, _)| right).sum();
    assert!(right >= RIGHT_ANSWERS_NEEDED, "{right} right answers: {by_kind:?}");
}
