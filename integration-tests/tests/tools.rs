//! Tools with a real model: forced calls are valid whatever it would have said, streams say what answers say, and
//! twice asked is twice the same bytes.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use lockstep_integration_tests::client::Client;
use lockstep_integration_tests::cluster::Setup;
use serde_json::{Value, json};

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep-under-test");
const PATH: &str = "/v1/chat/completions";
const STYLES: [&str; 6] = ["auto", "llama3", "hermes", "mistral", "mistral-args", "json"];

fn tools() -> Value {
    json!([
        {"type": "function", "function": {"name": "capital_of", "description": "Looks up a capital", "parameters": {
            "type": "object", "properties": {"country": {"type": "string", "maxLength": 20},
                "language": {"enum": ["en", "fr"]}}, "required": ["country"], "additionalProperties": false}}},
        {"type": "function", "function": {"name": "roll", "parameters": {
            "type": "object", "properties": {"dice": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["dice"], "additionalProperties": false}}}
    ])
}

fn is_valid(call: &Value) -> bool {
    let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
    let has_only =
        |names: &[&str]| arguments.as_object().unwrap().keys().all(|name| names.contains(&name.as_str()));
    match call["function"]["name"].as_str().unwrap() {
        "capital_of" => {
            let language = arguments.get("language").is_none_or(|word| word == "en" || word == "fr");
            let country = arguments["country"].as_str().is_some_and(|name| name.chars().count() <= 20);
            has_only(&["country", "language"]) && language && country
        }
        "roll" => {
            has_only(&["dice"]) && arguments["dice"].as_u64().is_some_and(|dice| (1..=9).contains(&dice))
        }
        _ => false,
    }
}

fn ask(choice: &Value, seed: u64) -> Value {
    json!({"messages": [{"role": "user", "content": "What is the capital of France?"}], "tools": tools(),
        "tool_choice": choice, "parallel_tool_calls": false, "max_tokens": 300, "seed": seed,
        "temperature": if seed == 0 { 0.0 } else { 1.5 }})
}

/// What a choice says, without ids.
#[derive(Debug, Default, PartialEq)]
struct Said {
    content: String,
    calls: Vec<(String, String)>,
    reason: String,
}

async fn whole(client: &Client, body: &Value) -> (Said, Value) {
    let reply = client.post(PATH, body).await.unwrap();
    assert_eq!(reply.status, 200, "{}", reply.text);
    let choice = reply.json()["choices"][0].take();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let message = &choice["message"];
    let calls = message["tool_calls"].as_array().cloned().unwrap_or_default();
    let call = |call: &Value| (text(&call["function"]["name"]), text(&call["function"]["arguments"]));
    let said = Said {
        content: text(&message["content"]),
        calls: calls.iter().map(call).collect(),
        reason: text(&choice["finish_reason"]),
    };
    (said, choice)
}

async fn streamed(client: &Client, body: &Value) -> Said {
    let mut body = body.clone();
    body["stream"] = json!(true);
    let events = client.open(PATH, &body).await.unwrap().rest().await.unwrap();
    let (done, chunks) = events.split_last().unwrap();
    assert_eq!(done, "[DONE]");
    let mut said = Said::default();
    for chunk in chunks {
        let chunk: Value = serde_json::from_str(chunk).unwrap();
        let choice = &chunk["choices"][0];
        said.content.push_str(choice["delta"]["content"].as_str().unwrap_or_default());
        said.reason.push_str(choice["finish_reason"].as_str().unwrap_or_default());
        for call in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
            let function = &call["function"];
            if let Some(name) = function["name"].as_str() {
                assert_eq!(call["index"], said.calls.len());
                said.calls.push((name.to_owned(), String::new()));
            }
            said.calls.last_mut().unwrap().1.push_str(function["arguments"].as_str().unwrap());
        }
    }
    said
}

#[tokio::test]
async fn forced_calls_are_valid_and_the_same_twice_and_streamed() {
    let roll = json!({"type": "function", "function": {"name": "roll"}});
    for style in STYLES {
        let cluster = Setup::demo(LOCKSTEP).flags(&["--tool-call-style", style]).start();
        let client = cluster.client();
        for (choice, seed) in
            [(json!("required"), 0), (json!("required"), 1), (roll.clone(), 0), (roll.clone(), 2)]
        {
            let body = ask(&choice, seed);
            let (said, told) = whole(&client, &body).await;
            assert_eq!((said.reason.as_str(), said.calls.len()), ("tool_calls", 1), "{style}: {told}");
            assert!(
                told["message"]["content"].is_null() && is_valid(&told["message"]["tool_calls"][0]),
                "{told}"
            );
            assert!(!told["message"]["tool_calls"][0]["id"].as_str().unwrap().is_empty());
            if choice == roll {
                assert_eq!(said.calls[0].0, "roll");
            }
            assert_eq!(streamed(&client, &body).await, said, "{style}: a stream says what an answer says");
            assert_eq!(whole(&client, &body).await.0, said, "{style}: twice asked, twice the same");
        }
    }
}

#[tokio::test]
async fn a_model_that_may_call_still_speaks() {
    let cluster = Setup::demo(LOCKSTEP).start();
    let client = cluster.client();
    for seed in 0..3 {
        let body = ask(&json!("auto"), seed);
        let (said, told) = whole(&client, &body).await;
        assert!(!said.content.is_empty() || !said.calls.is_empty(), "{told}");
        assert_eq!(streamed(&client, &body).await, said);
    }
    // Functions that may not be called are not in the prompt.
    let (none, _) = whole(&client, &ask(&json!("none"), 0)).await;
    assert!(none.content.contains("Paris") && none.calls.is_empty(), "{none:?}");
    let page = client.get("/metrics").await.unwrap().text;
    let value = |name: &str| -> f64 {
        let line = page.lines().find(|line| line.split(' ').next() == Some(name)).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    let mean = |name: &str| value(&format!("{name}_sum")) / value(&format!("{name}_count")) * 1e6;
    let (mask, compile) = (mean("lockstep_grammar_mask_seconds"), mean("lockstep_grammar_compile_seconds"));
    println!("a mask takes {mask:.0} µs and a grammar {compile:.0} µs in the mean");
}
