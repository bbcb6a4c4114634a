//! However tokens cut a text, the stream's pieces joined equal the whole answer.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod support;

use lockstep_router::testing::ids;
use proptest::prelude::*;
use serde_json::{Value, json};
use support::Server;

/// Tokens of many shapes: single bytes, whole words, halves of characters, the end.
fn tokens() -> impl Strategy<Value = Vec<u32>> {
    let token = prop_oneof![
        4 => prop::sample::select("abEND!.\n x€é😀".as_bytes().to_vec()).prop_map(u32::from),
        1 => 0..256u32,
        3 => prop::sample::select(vec![ids::AB, ids::FULL_STOP_BREAK, ids::END_MARK, ids::EURO_START, ids::IM_START]),
        1 => Just(ids::IM_END),
    ];
    prop::collection::vec(token, 1..30)
}

fn stops() -> impl Strategy<Value = Vec<String>> {
    let stop = prop::sample::select(vec!["END", "b", ".\n", "\n\n", "ab", "a b", "€", "abab", "!E"]);
    prop::collection::vec(stop.prop_map(str::to_owned), 0..4)
}

fn parsed(events: &[String]) -> Vec<Value> {
    events.iter().map(|event| serde_json::from_str(event).unwrap()).collect()
}

async fn check_native(server: &Server, parameters: &Value) {
    let mut parameters = parameters.clone();
    parameters["details"] = json!(true);
    let body = json!({"inputs": "x", "parameters": parameters});
    let whole = server.post("/generate", body.clone()).await.json();
    let events = parsed(&server.stream("/generate_stream", body).await);
    let last = events.last().unwrap();
    assert_eq!(last["generated_text"], whole["generated_text"]);
    let tokens: Vec<&Value> = events.iter().map(|event| &event["token"]).collect();
    assert_eq!(json!(tokens), whole["details"]["tokens"]);
    for key in ["finish_reason", "generated_tokens", "seed"] {
        assert_eq!(last["details"][key], whole["details"][key]);
    }
    let mut text = String::new();
    for token in tokens.iter().filter(|token| token["special"] == false) {
        text.push_str(token["text"].as_str().unwrap());
    }
    let generated = whole["generated_text"].as_str().unwrap();
    // A character the model broke off at its end token is in no token's text.
    let broken_off = tokens.last().unwrap()["special"] == true && generated == format!("{text}\u{FFFD}");
    assert!(broken_off || generated == text, "{generated:?} {text:?}");
    for (index, event) in (1..).zip(&events) {
        assert_eq!(event["index"], index);
    }
}

async fn check_chat(server: &Server, parameters: &Value) {
    let mut body = json!({"messages": [{"role": "user", "content": "x"}], "temperature": 0, "logprobs": true,
        "stop": parameters["stop"], "max_tokens": parameters["max_new_tokens"]});
    let whole = server.post("/v1/chat/completions", body.clone()).await.json();
    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    let mut events = server.stream("/v1/chat/completions", body).await;
    assert_eq!(events.pop().unwrap(), "[DONE]");
    let chunks = parsed(&events);
    let (usage, chunks) = chunks.split_last().unwrap();
    let choices: Vec<&Value> = chunks.iter().map(|chunk| &chunk["choices"][0]).collect();
    let text: String = choices.iter().filter_map(|choice| choice["delta"]["content"].as_str()).collect();
    let choice = &whole["choices"][0];
    assert_eq!(json!(text), choice["message"]["content"]);
    let logprobs = choices.iter().filter_map(|choice| choice["logprobs"]["content"].as_array());
    assert_eq!(json!(logprobs.flatten().collect::<Vec<_>>()), choice["logprobs"]["content"]);
    assert_eq!(choices.last().unwrap()["finish_reason"], choice["finish_reason"]);
    for key in ["prompt_tokens", "completion_tokens", "total_tokens"] {
        assert_eq!(usage["usage"][key], whole["usage"][key]);
    }
    for stop in parameters["stop"].as_array().unwrap() {
        assert!(!text.contains(stop.as_str().unwrap()), "{text:?} shows {stop}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn pieces_joined_equal_the_whole(tokens in tokens(), stops in stops(), max_new_tokens in 1..30u32) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let server = Server::answering(&tokens).await;
            let parameters = json!({"stop": stops, "max_new_tokens": max_new_tokens});
            check_native(&server, &parameters).await;
            check_chat(&server, &parameters).await;
        });
    }
}
