//! The native routes: shapes, headers, values.

mod support;

use lockstep_router::shards::fake::FakeModel;
use lockstep_router::testing::ids;
use serde_json::{Value, json};
use support::{Server, config};

#[tokio::test]
async fn an_answer_is_an_object_with_its_text() {
    let server = Server::saying("Hi").await;
    let reply = server.post("/generate", json!({"inputs": "ab"})).await;
    assert_eq!((reply.status, reply.json()), (200, json!({"generated_text": "Hi"})));
}

#[tokio::test]
async fn details_have_the_reference_shape() {
    let server = Server::saying("Hi").await;
    let parameters = json!({"details": true, "decoder_input_details": true, "top_n_tokens": 2});
    let reply = server.post("/generate", json!({"inputs": "ab", "parameters": parameters})).await;
    let expected = json!({
        "generated_text": "Hi",
        "details": {
            "finish_reason": "eos_token",
            "generated_tokens": 3,
            "seed": null,
            "prefill": [
                {"id": 97, "text": "a", "logprob": null},
                {"id": 98, "text": "b", "logprob": -0.5}
            ],
            "tokens": [
                {"id": 72, "text": "H", "logprob": -0.5, "special": false},
                {"id": 105, "text": "i", "logprob": -0.5, "special": false},
                {"id": 257, "text": "<|im_end|>", "logprob": -0.5, "special": true}
            ],
            "top_tokens": [
                [{"id": 72, "text": "H", "logprob": -0.5, "special": false},
                 {"id": 73, "text": "I", "logprob": -1.5, "special": false}],
                [{"id": 105, "text": "i", "logprob": -0.5, "special": false},
                 {"id": 106, "text": "j", "logprob": -1.5, "special": false}],
                [{"id": 257, "text": "<|im_end|>", "logprob": -0.5, "special": true},
                 {"id": 258, "text": "ab", "logprob": -1.5, "special": false}]
            ]
        }
    });
    assert_eq!(reply.json(), expected);
    let plain =
        server.post("/generate", json!({"inputs": "ab", "parameters": {"details": true}})).await.json();
    assert_eq!(plain["details"]["prefill"], json!([]));
    assert!(plain["details"].get("top_tokens").is_none());
}

#[tokio::test]
async fn whole_answers_carry_their_timings_in_headers() {
    let server = Server::saying("Hi").await;
    let reply = server.post("/generate", json!({"inputs": "aé"})).await;
    assert_eq!(reply.header("x-compute-type"), "1-fake");
    assert_eq!(reply.header("x-compute-characters"), "2");
    assert_eq!(reply.header("x-prompt-tokens"), "3");
    assert_eq!(reply.header("x-generated-tokens"), "3");
    assert!(reply.header("x-compute-time").parse::<f64>().is_ok());
    for name in
        ["x-total-time", "x-validation-time", "x-queue-time", "x-inference-time", "x-time-per-token"]
    {
        assert!(reply.header(name).parse::<u64>().is_ok(), "{name}: {:?}", reply.header(name));
    }
}

#[tokio::test]
async fn a_stream_has_an_event_for_each_token() {
    let server = Server::saying("H€").await;
    let body = json!({"inputs": "ab", "parameters": {"details": true}});
    let events = server.stream("/generate_stream", body).await;
    let expected = [
        r#"{"index":1,"token":{"id":72,"text":"H","logprob":-0.5,"special":false},"generated_text":null,"details":null}"#,
        r#"{"index":2,"token":{"id":226,"text":"","logprob":-0.5,"special":false},"generated_text":null,"details":null}"#,
        r#"{"index":3,"token":{"id":130,"text":"","logprob":-0.5,"special":false},"generated_text":null,"details":null}"#,
        r#"{"index":4,"token":{"id":172,"text":"€","logprob":-0.5,"special":false},"generated_text":null,"details":null}"#,
        r#"{"index":5,"token":{"id":257,"text":"<|im_end|>","logprob":-0.5,"special":true},"generated_text":"H€","details":{"finish_reason":"eos_token","generated_tokens":5,"seed":null,"input_length":2}}"#,
    ];
    assert_eq!(events, expected);
    let without = server.stream("/generate_stream", json!({"inputs": "ab"})).await;
    let last: Value = serde_json::from_str(without.last().unwrap()).unwrap();
    assert_eq!((&last["details"], &last["generated_text"]), (&Value::Null, &json!("H€")));
}

#[tokio::test]
async fn streams_tell_proxies_not_to_wait() {
    let server = Server::saying("Hi").await;
    let reply = server.post("/generate_stream", json!({"inputs": "ab"})).await;
    assert_eq!(reply.header("content-type"), "text/event-stream");
    assert_eq!(reply.header("x-accel-buffering"), "no");
    assert_eq!(reply.header("x-compute-characters"), "2");
}

#[tokio::test]
async fn the_root_route_answers_in_a_list_and_repeats_the_prompt() {
    let server = Server::saying("Hi").await;
    let whole = server.post("/", json!({"inputs": "ab", "stream": false})).await.json();
    assert_eq!(whole, json!([{"generated_text": "abHi"}]));
    let short = json!({"inputs": "ab", "parameters": {"return_full_text": false}});
    assert_eq!(server.post("/", short).await.json(), json!([{"generated_text": "Hi"}]));
    let events = server.stream("/", json!({"inputs": "ab", "stream": true})).await;
    assert_eq!(events.len(), 3);
    assert!(events[2].contains(r#""generated_text":"abHi""#), "{}", events[2]);
}

#[tokio::test]
async fn null_is_absent() {
    let server = Server::saying("Hi").await;
    let parameters = json!({"adapter_id": null, "best_of": null, "details": false, "do_sample": false, "grammar": null,
        "frequency_penalty": null, "max_new_tokens": null, "repetition_penalty": null, "seed": null, "stop": [],
        "temperature": null, "top_k": null, "top_n_tokens": null, "top_p": null, "truncate": null, "typical_p": null,
        "watermark": false, "return_full_text": null, "decoder_input_details": false});
    let reply =
        server.post("/generate", json!({"inputs": "ab", "parameters": parameters, "extra": 1})).await;
    assert_eq!(reply.json(), json!({"generated_text": "Hi"}));
}

#[tokio::test]
async fn the_end_is_told_by_its_first_cause() {
    let cases = [
        (json!({"max_new_tokens": 2}), "length", "ab"),
        (json!({"max_new_tokens": 4}), "eos_token", "abc"),
        (json!({"max_new_tokens": 3}), "length", "abc"),
        (json!({"stop": ["c"], "max_new_tokens": 3}), "stop_sequence", "abc"),
        (json!({"stop": ["bc"], "max_new_tokens": 4}), "stop_sequence", "abc"),
        (json!({"ignore_eos": true, "max_new_tokens": 6}), "length", "abc"),
    ];
    let server = Server::saying("abc").await;
    for (mut parameters, reason, text) in cases {
        parameters["details"] = json!(true);
        let reply = server.post("/generate", json!({"inputs": "x", "parameters": parameters})).await.json();
        assert_eq!(reply["details"]["finish_reason"], reason, "{parameters}");
        assert_eq!(reply["generated_text"], text, "{parameters}");
    }
}

#[tokio::test]
async fn a_stop_inside_a_token_cuts_the_token() {
    let server = Server::answering(&[104, ids::FULL_STOP_BREAK, ids::IM_END]).await;
    let parameters = json!({"stop": [".\n"], "details": true});
    let reply = server.post("/generate", json!({"inputs": "x", "parameters": parameters})).await.json();
    assert_eq!(reply["generated_text"], "h.\n");
    assert_eq!(reply["details"]["tokens"][1]["text"], ".\n");
    assert_eq!(reply["details"]["generated_tokens"], 2);
}

#[tokio::test]
async fn a_seed_is_reported_when_sampling() {
    let server = Server::saying("a").await;
    let cases = [
        (json!({"seed": u64::MAX}), Value::Null),
        (json!({"seed": u64::MAX, "do_sample": true}), json!(u64::MAX)),
        (json!({"seed": 0, "temperature": 0.7}), json!(0)),
        (json!({"seed": 3, "top_p": 1.0}), Value::Null),
    ];
    for (mut parameters, seed) in cases {
        parameters["details"] = json!(true);
        let reply = server.post("/generate", json!({"inputs": "x", "parameters": parameters})).await.json();
        assert_eq!(reply["details"]["seed"], seed, "{parameters}");
    }
    let random = json!({"inputs": "x", "parameters": {"do_sample": true, "details": true}});
    assert!(server.post("/generate", random).await.json()["details"]["seed"].is_u64());
}

#[tokio::test]
async fn prompts_share_the_prefix_cache() {
    let server = Server::start_with(FakeModel::Hash, config()).await;
    let body = json!({"inputs": "the same prompt every time", "parameters": {"max_new_tokens": 5, "ignore_eos": true}});
    let first = server.post("/generate", body.clone()).await.json();
    assert_eq!(server.post("/generate", body).await.json(), first);
    assert!(server.metric("lockstep_prefix_hit_tokens_total").await >= 16.0);
}
