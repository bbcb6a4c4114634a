//! `/v1/completions`: prompts of every kind, echo, log-probabilities, streams, refusals.

mod support;

use lockstep_router::shards::fake::FakeModel;
use lockstep_router::testing::ids;
use serde_json::{Value, json};
use support::{Server, config};

const PATH: &str = "/v1/completions";

async fn ask(server: &Server, body: Value) -> Value {
    let reply = server.post(PATH, body).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    reply.json()
}

#[tokio::test]
async fn an_answer_has_openais_shape() {
    let server = Server::saying("Hi").await;
    let mut reply = ask(&server, json!({"model": "any", "prompt": "abc"})).await;
    assert!(reply["id"].as_str().is_some_and(|id| id.starts_with("cmpl-")));
    assert!(reply["created"].as_u64().is_some_and(|created| created > 1_700_000_000));
    (reply["id"], reply["created"]) = (json!("ID"), json!(0));
    let fingerprint = format!("lockstep-{}-local-fake", env!("CARGO_PKG_VERSION"));
    let expected = json!({
        "id": "ID", "object": "text_completion", "created": 0, "model": "any", "system_fingerprint": fingerprint,
        "choices": [{"index": 0, "text": "Hi", "logprobs": null, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6,
                  "prompt_tokens_details": {"cached_tokens": 0}}
    });
    assert_eq!(reply, expected);
}

#[tokio::test]
async fn a_prompt_is_a_text_or_tokens_or_a_list_of_either() {
    let server = Server::start_with(FakeModel::Hash, config()).await;
    let texts = async |prompt: Value| -> Vec<String> {
        let body = json!({"prompt": prompt, "max_tokens": 5, "temperature": 0, "ignore_eos": true});
        let reply = ask(&server, body).await;
        let choices = reply["choices"].as_array().map_or(&[][..], Vec::as_slice);
        for (place, choice) in choices.iter().enumerate() {
            assert_eq!(choice["index"], place);
        }
        choices.iter().map(|choice| choice["text"].to_string()).collect()
    };
    let one = texts(json!("ac")).await;
    let other = texts(json!("d")).await;
    assert_ne!(one, other);
    let both = [one.clone(), other].concat();
    assert_eq!(texts(json!([97, 99])).await, one);
    assert_eq!(texts(json!(["ac", "d"])).await, both);
    assert_eq!(texts(json!([[97, 99], [100]])).await, both);
}

#[tokio::test]
async fn prompts_and_choices_are_counted_and_ordered() {
    let server = Server::start_with(FakeModel::Seeded, config()).await;
    let body = |prompt: Value, n: u32| json!({"prompt": prompt, "n": n, "max_tokens": 4, "seed": 5, "ignore_eos": true});
    let reply = ask(&server, body(json!(["a", "bc"]), 2)).await;
    assert_eq!(reply["usage"]["prompt_tokens"], 3);
    assert_eq!(reply["usage"]["completion_tokens"], 16);
    let texts = |reply: &Value| -> Vec<Value> {
        reply["choices"]
            .as_array()
            .map_or(&[][..], Vec::as_slice)
            .iter()
            .map(|choice| choice["text"].clone())
            .collect()
    };
    let both = texts(&reply);
    assert_eq!(both.len(), 4);
    assert_eq!(texts(&ask(&server, body(json!("bc"), 2)).await), both[2..]);
}

#[tokio::test]
async fn what_scoring_a_text_takes() {
    // As lm-eval asks: the whole text as ids, one token more, the log-probability of each.
    let server = Server::saying("x").await;
    let body = json!({"model": "m", "prompt": [[97, 195, 169, 98]], "max_tokens": 1, "logprobs": 1, "echo": true,
                      "seed": 1234, "temperature": 0});
    let reply = ask(&server, body.clone()).await;
    let expected = json!({
        "tokens": ["a", "bytes:\\xc3", "bytes:\\xa9", "b", "x"],
        "token_logprobs": [null, -0.5, -0.5, -0.5, -0.5],
        "top_logprobs": [null, {"bytes:\\xc3": -0.5}, {"bytes:\\xa9": -0.5}, {"b": -0.5}, {"x": -0.5}],
        "text_offset": [0, 1, 2, 2, 3]
    });
    assert_eq!(reply["choices"][0]["text"], "aébx");
    assert_eq!(reply["choices"][0]["logprobs"], expected);
    let mut prompt_alone = body;
    prompt_alone["max_tokens"] = json!(0);
    let reply = ask(&server, prompt_alone.clone()).await;
    assert_eq!(reply["choices"][0]["text"], "aéb");
    assert_eq!(reply["choices"][0]["finish_reason"], "length");
    assert_eq!(reply["choices"][0]["logprobs"]["token_logprobs"], json!([null, -0.5, -0.5, -0.5]));
    assert_eq!(reply["usage"]["completion_tokens"], 0);
    prompt_alone["stream"] = json!(true);
    let events = server.stream(PATH, prompt_alone).await;
    assert_eq!((events.len(), events[1].as_str()), (2, "[DONE]"));
    let streamed: Value = serde_json::from_str(&events[0]).unwrap_or_default();
    assert_eq!(streamed["choices"], reply["choices"]);
}

/// Joins the pieces of each choice.
fn joined(events: &[String]) -> Vec<Value> {
    let (done, events) = events.split_last().expect("a last event");
    assert_eq!(done, "[DONE]");
    let mut choices: Vec<Value> = Vec::new();
    for event in events {
        let chunk: Value = serde_json::from_str(event).expect("JSON");
        let Some(piece) = chunk["choices"].get(0) else { continue };
        let index = piece["index"].as_u64().expect("an index");
        let Some(choice) = choices.iter_mut().find(|choice| choice["index"] == index) else {
            choices.push(piece.clone());
            continue;
        };
        assert_eq!(choice["finish_reason"], Value::Null, "nothing follows the end");
        let text = format!(
            "{}{}",
            choice["text"].as_str().unwrap_or_default(),
            piece["text"].as_str().unwrap_or_default()
        );
        choice["text"] = json!(text);
        choice["finish_reason"] = piece["finish_reason"].clone();
        for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            let Some(more) = piece["logprobs"][list].as_array() else { continue };
            choice["logprobs"][list].as_array_mut().expect("a list").extend(more.iter().cloned());
        }
    }
    choices.sort_by_key(|choice| choice["index"].as_u64());
    choices
}

#[tokio::test]
async fn streams_join_to_the_whole_answers() {
    let server = Server::start_with(FakeModel::Seeded, config()).await;
    let base = json!({"prompt": ["ab", "a prompt of more than one block", [97, 195]], "seed": 9, "max_tokens": 7, "n": 2});
    for (echo, logprobs) in [(false, Value::Null), (true, Value::Null), (false, json!(2)), (true, json!(0))]
    {
        let mut body = base.clone();
        (body["echo"], body["logprobs"]) = (json!(echo), logprobs);
        let whole = ask(&server, body.clone()).await;
        body["stream"] = json!(true);
        let events = server.stream(PATH, body).await;
        assert_eq!(Value::Array(joined(&events)), whole["choices"]);
    }
}

#[tokio::test]
async fn usage_comes_when_it_is_asked_for() {
    let server = Server::saying("Hi").await;
    let options = json!({"include_usage": true, "continuous_usage_stats": true});
    let body = json!({"prompt": "abc", "stream": true, "stream_options": options});
    let events = server.stream(PATH, body).await;
    let chunks: Vec<Value> = events.iter().filter_map(|event| serde_json::from_str(event).ok()).collect();
    let counts: Vec<&Value> = chunks.iter().map(|chunk| &chunk["usage"]["completion_tokens"]).collect();
    assert_eq!(counts, [1, 2, 3, 3]);
    assert_eq!(chunks[3]["choices"], json!([]));
    let plain = server.stream(PATH, json!({"prompt": "abc", "stream": true})).await;
    assert!(plain.iter().all(|event| !event.contains("usage")));
}

#[tokio::test]
async fn sixteen_tokens_unless_more_are_asked_for_or_fewer_fit() {
    let server = Server::answering(&[97]).await;
    let count = async |prompt: String| {
        ask(&server, json!({"prompt": prompt})).await["usage"]["completion_tokens"].clone()
    };
    assert_eq!(count("b".to_owned()).await, 16);
    assert_eq!(count("b".repeat(190)).await, 10);
}

#[tokio::test]
async fn the_best_of_several_are_sent() {
    let server = Server::start_with(FakeModel::Seeded, config()).await;
    let body = |n: u32, best_of: u32| json!({"prompt": "ab", "n": n, "best_of": best_of, "seed": 2, "max_tokens": 5, "logprobs": 0, "ignore_eos": true});
    let mean = |choice: &Value| -> f64 {
        choice["logprobs"]["token_logprobs"]
            .as_array()
            .map_or(0.0, |all| all.iter().filter_map(Value::as_f64).sum())
    };
    let all = ask(&server, body(2, 2)).await;
    let best = ask(&server, body(1, 2)).await;
    assert_eq!(best["usage"]["completion_tokens"], 10);
    let means = [mean(&all["choices"][0]), mean(&all["choices"][1])];
    assert_eq!(mean(&best["choices"][0]), means[0].max(means[1]));
    assert_eq!(best["choices"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn what_is_refused_names_its_field() {
    let server = Server::saying("Hi").await;
    let cases = [
        (json!({"prompt": []}), "prompt", "Input validation error: `prompt` cannot be empty"),
        (json!({"prompt": ""}), "prompt", "Input validation error: `prompt` cannot be empty"),
        (
            json!({"prompt": [1, 2, 262]}),
            "prompt",
            "Input validation error: `prompt` has token 262, the model's ids end before 262",
        ),
        (
            json!({"prompt": ["a", "b", "c", "d", "e"]}),
            "prompt",
            "Number of prompts exceeds the maximum allowed batch size of 4",
        ),
        (json!({"suffix": "a"}), "suffix", "Suffix is not supported and can be removed from the request."),
        (
            json!({"logprobs": 6}),
            "logprobs",
            "Input validation error: `logprobs` must be >= 0 and <= 5. Given: 6",
        ),
        (
            json!({"n": 2, "best_of": 3}),
            "best_of",
            "Input validation error: `best_of` must be > 0 and <= 2. Given: 3",
        ),
        (
            json!({"n": 3, "best_of": 2}),
            "best_of",
            "Input validation error: `best_of` must be >= `n`. Given: 2 and 3",
        ),
        (
            json!({"best_of": 2, "stream": true}),
            "best_of",
            "Input validation error: `best_of` > `n` is not supported when streaming tokens",
        ),
        (
            json!({"max_tokens": 500}),
            "max_tokens",
            "Input validation error: `prompt` tokens + `max_tokens` must be <= 200. Given: 1 `prompt` tokens and 500 `max_tokens`",
        ),
    ];
    for (fields, param, message) in cases {
        let mut body = json!({"prompt": "a"});
        for (name, value) in fields.as_object().into_iter().flatten() {
            body[name] = value.clone();
        }
        let reply = server.post(PATH, body).await;
        let error = reply.json();
        assert_eq!((reply.status, &error["error"]["message"]), (422, &json!(message)));
        assert_eq!(error["error"]["param"], param);
    }
}

#[tokio::test]
async fn a_remote_tokenizer_has_what_it_needs() {
    let server = Server::saying("Hi").await;
    let info = server.get("/tokenizer_info").await.json();
    assert_eq!((&info["eos_token"], &info["bos_token"]), (&json!("<|im_end|>"), &Value::Null));
    assert!(info["chat_template"].as_str().is_some_and(|template| template.contains("message['role']")));
    let tokens =
        server.post("/tokenize", json!({"prompt": "aé", "add_special_tokens": false})).await.json();
    assert_eq!(tokens, json!({"tokens": [97, 195, 169], "count": 3, "max_model_len": 200}));
    let text = server.post("/detokenize", json!({"tokens": [97, 195, 169, ids::IM_END]})).await.json();
    assert_eq!(text, json!({"prompt": "aé<|im_end|>"}));
}

#[tokio::test]
async fn one_route_takes_every_kind_of_request() {
    let server = Server::saying("Hi").await;
    let native = server.post("/invocations", json!({"inputs": "a"})).await;
    assert_eq!(native.json(), json!([{"generated_text": "aHi"}]));
    let chat = json!({"messages": [{"role": "user", "content": "a"}]});
    assert_eq!(server.post("/invocations", chat).await.json()["choices"][0]["message"]["content"], "Hi");
    let completion = server.post("/invocations", json!({"prompt": "a"})).await;
    assert_eq!(completion.json()["choices"][0]["text"], "Hi");
    let refused = server.post("/invocations", json!({"prompt": "a", "suffix": "b"})).await;
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (422, &json!("suffix not supported")));
    let unknown = server.post("/invocations", json!({"input": "a"})).await;
    assert_eq!((unknown.status, &unknown.json()["error_type"]), (422, &json!("validation")));
}

#[tokio::test]
async fn the_inference_apis_address_serves_one_model() {
    let server = Server::saying("Hi").await;
    let reply = server.post("/models/test/model", json!({"inputs": "a"})).await;
    assert_eq!((reply.status, reply.json()), (200, json!([{"generated_text": "aHi"}])));
    let streamed = server.stream("/models/test/model", json!({"inputs": "a", "stream": true})).await;
    assert_eq!(streamed.len(), 3);
    let other = server.post("/models/other/model", json!({"inputs": "a"})).await;
    let expected = json!({"error": "The model other/model is not served", "error_type": "not_found"});
    assert_eq!((other.status, other.json()), (404, expected));
}
