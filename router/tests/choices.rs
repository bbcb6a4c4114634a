//! Several answers to one request: `best_of` and `n`.

mod support;

use std::collections::BTreeMap;

use futures::StreamExt;
use lockstep_router::shards::fake::FakeModel;
use proptest::prelude::*;
use serde_json::{Value, json};
use support::{Server, config, post};
use tower::ServiceExt;

async fn sampling_server() -> Server {
    Server::start_with(FakeModel::Seeded, config()).await
}

fn chat(n: u32, seed: u64) -> Value {
    json!({"messages": [{"role": "user", "content": "Tell me"}], "n": n, "seed": seed, "max_tokens": 6,
           "ignore_eos": true, "logprobs": true})
}

/// What a choice is, besides its place.
fn substance(choice: &Value) -> (Value, Value, Value) {
    (choice["message"].clone(), choice["logprobs"].clone(), choice["finish_reason"].clone())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn a_choice_is_the_same_however_many_there_are(seed in any::<u64>(), few in 1u32..4, more in 1u32..4) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let server = sampling_server().await;
            let choices = async |n| {
                let reply = server.post("/v1/chat/completions", chat(n, seed)).await.json();
                let choices = reply["choices"].as_array().unwrap().clone();
                assert_eq!(reply["usage"]["completion_tokens"], 6 * n);
                for (place, choice) in choices.iter().enumerate() {
                    assert_eq!(choice["index"], place);
                }
                choices.iter().map(substance).collect::<Vec<_>>()
            };
            let (fewer, all) = (choices(few).await, choices(few + more).await);
            assert_eq!(fewer, all[..few as usize]);
            let mut alone = chat(1, seed);
            alone.as_object_mut().unwrap().remove("n");
            let alone = server.post("/v1/chat/completions", alone).await.json();
            assert_eq!(substance(&alone["choices"][0]), all[0]);
            assert_ne!(all[0].0, all[1].0);
        });
    }
}

#[tokio::test]
async fn streamed_choices_join_to_the_whole_ones() {
    let server = sampling_server().await;
    let whole = server.post("/v1/chat/completions", chat(3, 5)).await.json();
    let mut body = chat(3, 5);
    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    let events = server.stream("/v1/chat/completions", body).await;
    let (done, chunks) = events.split_last().unwrap();
    assert_eq!(done, "[DONE]");
    let chunks: Vec<Value> = chunks.iter().map(|chunk| serde_json::from_str(chunk).unwrap()).collect();
    let (last, chunks) = chunks.split_last().unwrap();
    assert_eq!((&last["choices"], &last["usage"]["completion_tokens"]), (&json!([]), &json!(18)));
    assert_eq!(last["usage"]["prompt_tokens"], whole["usage"]["prompt_tokens"]);
    let mut texts: BTreeMap<u64, String> = BTreeMap::new();
    let mut finished = Vec::new();
    for chunk in chunks {
        let choice = &chunk["choices"][0];
        let index = choice["index"].as_u64().unwrap();
        let is_first = !texts.contains_key(&index);
        assert_eq!(choice["delta"]["role"] == "assistant", is_first, "{chunk}");
        texts.entry(index).or_default().push_str(choice["delta"]["content"].as_str().unwrap_or_default());
        if !choice["finish_reason"].is_null() {
            finished.push((index, choice["finish_reason"].clone()));
        }
    }
    for choice in whole["choices"].as_array().unwrap() {
        let index = choice["index"].as_u64().unwrap();
        assert_eq!(choice["message"]["content"], texts[&index]);
        assert!(finished.contains(&(index, choice["finish_reason"].clone())));
    }
    assert_eq!((texts.len(), finished.len()), (3, 3));
}

#[tokio::test]
async fn choices_compute_their_prompt_once() {
    let server = sampling_server().await;
    let prompt = "a prompt of several blocks that is computed only once";
    let parameters =
        json!({"best_of": 2, "do_sample": true, "seed": 3, "max_new_tokens": 4, "ignore_eos": true});
    let reply = server.post("/generate", json!({"inputs": prompt, "parameters": parameters})).await;
    assert_eq!((reply.status, reply.header("x-prompt-tokens")), (200, "53"), "{}", reply.text);
    // The second finds all whole blocks of four tokens but the last token's.
    assert_eq!(server.metric("lockstep_prefix_hit_tokens_total").await, 52.0);
}

#[tokio::test]
async fn the_best_answer_comes_first_and_the_others_follow() {
    let server = sampling_server().await;
    let body = |best_of: u32, seed: u64| {
        let parameters = json!({"best_of": best_of, "do_sample": true, "seed": seed, "max_new_tokens": 5,
                                "ignore_eos": true, "details": true, "decoder_input_details": true, "top_n_tokens": 1});
        json!({"inputs": "ab", "parameters": parameters})
    };
    let mean = |sequence: &Value| {
        let tokens = sequence["tokens"].as_array().unwrap();
        tokens.iter().map(|token| token["logprob"].as_f64().unwrap()).sum::<f64>() / tokens.len() as f64
    };
    let mut winners = [0, 0];
    for seed in 0..20 {
        let reply = server.post("/generate", body(2, seed)).await;
        assert_eq!((reply.status, reply.header("x-generated-tokens")), (200, "10"), "{}", reply.text);
        let reply = reply.json();
        let details = &reply["details"];
        let others = details["best_of_sequences"].as_array().unwrap();
        assert_eq!(others.len(), 1);
        assert!(mean(details) >= mean(&others[0]));
        let mut keys: Vec<&String> = others[0].as_object().unwrap().keys().collect();
        keys.sort();
        assert_eq!(
            keys,
            [
                "finish_reason",
                "generated_text",
                "generated_tokens",
                "prefill",
                "seed",
                "tokens",
                "top_tokens"
            ]
        );
        assert_eq!(others[0]["prefill"], details["prefill"]);
        let alone = server.post("/generate", body(1, seed)).await.json();
        assert!(alone["details"].get("best_of_sequences").is_none());
        let first_won = alone["generated_text"] == reply["generated_text"];
        assert!(first_won || alone["generated_text"] == others[0]["generated_text"]);
        winners[usize::from(!first_won)] += 1;
    }
    assert!(winners.iter().all(|wins| *wins > 0), "{winners:?}");
}

#[tokio::test]
async fn counts_have_limits() {
    let server = sampling_server().await;
    for n in [0, 9] {
        let reply = server.post("/v1/chat/completions", chat(n, 1)).await;
        let error = reply.json();
        let message = format!("Input validation error: `n` must be >= 1 and <= 8. Given: {n}");
        assert_eq!((reply.status, &error["error"]["message"]), (422, &json!(message)));
        assert_eq!(error["error"]["param"], "n");
    }
    assert_eq!(server.post("/v1/chat/completions", chat(8, 1)).await.status, 200);
}

#[tokio::test]
async fn a_client_that_leaves_cancels_every_choice() {
    let server = sampling_server().await;
    server.control.pause();
    let mut body = chat(4, 1);
    body["stream"] = json!(true);
    let response = server.router().oneshot(post("/v1/chat/completions", &body)).await.unwrap();
    assert_eq!(server.app.requests_under_way(), 4);
    server.control.allow_steps(3);
    let mut stream = response.into_body().into_data_stream();
    assert!(stream.next().await.is_some());
    drop(stream);
    server.until(async |server| server.app.requests_under_way() == 0).await;
    server.control.resume();
    server
        .until(async |server| {
            server.metric("tgi_queue_size").await + server.metric("tgi_batch_current_size").await == 0.0
        })
        .await;
}

/// Each sequence takes a place, and what can never have as many is told what is too much.
#[tokio::test]
async fn more_sequences_than_places_are_refused_by_name() {
    let mut config = config();
    config.max_concurrent_requests = 1;
    config.limits.max_best_of = 4;
    let server = Server::start_with(FakeModel::Hash, config).await;
    let refusals = [
        ("/generate", json!({"inputs": "a", "parameters": {"best_of": 2, "do_sample": true}}), "best_of"),
        ("/v1/completions", json!({"prompt": "a", "n": 2}), "n"),
        ("/v1/completions", json!({"prompt": ["a", "b"]}), "prompt"),
    ];
    for (path, body, name) in refusals {
        let reply = server.post(path, body).await;
        assert_eq!(reply.status, 422, "{}", reply.text);
        assert!(reply.text.contains(&format!("`{name}` must")), "{}", reply.text);
    }
}
