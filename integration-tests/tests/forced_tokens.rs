//! What a grammar leaves no choice about is computed as one chunk, and nobody can tell but by the clock: the same
//! bytes on one rank and on two, alone and in company, cut off anywhere; log-probabilities as if token by token.

use futures::future::join_all;
use lockstep_integration_tests::client::{Client, Generate};
use lockstep_integration_tests::cluster::Setup;
use lockstep_integration_tests::oracle::check_stream;
use serde_json::{Value, json};

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep-under-test");
const TOKENS: u32 = 160;

/// Long names and texts that are given, with and without white space to choose.
fn grammars() -> Vec<Value> {
    let mut schema = json!({
        "type": "object",
        "properties": {
            "the_name_of_the_capital": {"enum": ["Paris, the capital of France", "London, the capital of England"]},
            "the_name_of_the_little_dog": {"type": "string", "maxLength": 12, "pattern": "^[A-Z][a-z]+$"},
            "is_it_on_the_river_or_not": {"type": "boolean"},
        },
        "required": ["the_name_of_the_capital", "the_name_of_the_little_dog", "is_it_on_the_river_or_not"],
        "additionalProperties": false,
    });
    let flexible = json!({"type": "json", "value": schema});
    schema["x-guidance"] = json!({"whitespace_flexible": false});
    let regex = "(Yes|No), said the (little|big) (dog|cat) named [A-Z][a-z]{2,6} to the little bird[.]";
    vec![json!({"type": "json", "value": schema}), flexible, json!({"type": "regex", "value": regex})]
}

fn requests() -> Vec<Generate> {
    let greedy = |grammar: &Value| {
        Generate::greedy("What do you know of it?", TOKENS).with("grammar", grammar.clone())
    };
    let all = |grammar: &Value| {
        let marked =
            greedy(grammar).seeded(7).with("watermark", json!(true)).with("repetition_penalty", json!(1.2));
        [greedy(grammar), greedy(grammar).seeded(3).with("top_n_tokens", json!(3)), marked]
    };
    grammars().iter().flat_map(all).collect()
}

async fn generate(client: &Client, request: &Generate) -> Value {
    client.generate(request).await.expect("it answers")
}

fn ids(answer: &Value) -> Vec<u64> {
    let tokens = answer["details"]["tokens"].as_array().expect("details name the tokens");
    tokens.iter().map(|token| token["id"].as_u64().expect("a token has an id")).collect()
}

/// The sum of a family's series on `/metrics`.
async fn counted(client: &Client, series: &str) -> f64 {
    let page = client.get("/metrics").await.expect("it answers").text;
    let lines = page.lines().filter(|line| line.starts_with(series));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

#[tokio::test]
async fn one_rank_and_two_answer_alike_alone_and_in_company() {
    let one = Setup::demo(LOCKSTEP).start();
    let client = one.client();
    let mut alone = Vec::new();
    for request in requests() {
        alone.push(generate(&client, &request).await);
    }
    // Every sequence was alone: each step was its own.
    let tokens: f64 = alone.iter().map(|answer| ids(answer).len() as f64).sum();
    let steps = counted(&client, "tgi_batch_inference_count{").await;
    let forced = counted(&client, "lockstep_grammar_tokens_total{origin=\"forced\"}").await;
    let sampled = counted(&client, "lockstep_grammar_tokens_total{origin=\"sampled\"}").await;
    println!("{tokens} tokens in {steps} steps, {forced} of them forced");
    assert_eq!(forced + sampled, tokens);
    assert_eq!(steps, sampled, "a step for each token that is sampled and none for the others");
    assert!(tokens > 1.5 * steps, "{tokens} tokens in {steps} steps");
    let two = Setup::demo(LOCKSTEP).ranks(2).flags(&["--prefix-caching", "false"]).start();
    let small = ["--max-batch-prefill-tokens", "5", "--prefix-caching", "false"];
    let three = Setup::demo(LOCKSTEP).flags(&small).start();
    for client in [client, two.client(), three.client()] {
        let crowd: Vec<Generate> = requests().into_iter().chain(requests()).collect();
        let crowd = join_all(crowd.iter().map(|request| generate(&client, request))).await;
        for (index, answer) in crowd.iter().enumerate() {
            assert_eq!(answer, &alone[index % alone.len()], "request {index}");
        }
    }
}

#[tokio::test]
async fn log_probabilities_of_forced_tokens_are_those_of_a_prompt_that_has_them() {
    let cluster = Setup::demo(LOCKSTEP).start();
    let client = cluster.client();
    let prompt =
        client.post("/tokenize", &json!({"inputs": "What do you know of it?"})).await.expect("it answers");
    let prompt: Vec<u64> =
        prompt.json().as_array().into_iter().flatten().filter_map(|token| token["id"].as_u64()).collect();
    for request in requests() {
        let answer = generate(&client, &request).await;
        let known: Vec<u64> = prompt.iter().copied().chain(ids(&answer)).collect();
        let body = json!({"prompt": known, "echo": true, "logprobs": 1, "max_tokens": 0});
        let echoed = client.post("/v1/completions", &body).await.expect("it answers").json();
        let echoed = echoed["choices"][0]["logprobs"]["token_logprobs"]
            .as_array()
            .expect("they are asked for")
            .clone();
        let tokens = answer["details"]["tokens"].as_array().expect("details name the tokens");
        assert_eq!(echoed.len(), known.len());
        for (token, expected) in tokens.iter().zip(&echoed[prompt.len()..]) {
            assert_eq!(&token["logprob"], expected, "{token} of {answer}");
        }
    }
}

#[tokio::test]
async fn an_answer_ends_in_the_middle_of_what_is_forced() {
    let cluster = Setup::demo(LOCKSTEP).start();
    let client = cluster.client();
    for request in requests().into_iter().step_by(4) {
        let whole = generate(&client, &request).await;
        let tokens = whole["details"]["tokens"].as_array().expect("details name the tokens");
        for length in 1..tokens.len() {
            let cut = generate(&client, &request.clone().with("max_new_tokens", json!(length))).await;
            assert_eq!(cut["details"]["finish_reason"], "length", "{cut}");
            assert_eq!(cut["details"]["tokens"].as_array().expect("tokens"), &tokens[..length]);
        }
        // A stop text in the middle of a name, and the events of the stream.
        for stop in ["the_c", "ittle"] {
            let request = request.clone().with("stop", json!([stop]));
            let stopped = generate(&client, &request).await;
            let text = whole["generated_text"].as_str().expect("a text");
            let Some(place) = text.find(stop) else { continue };
            assert_eq!(stopped["generated_text"], text[..place + stop.len()]);
            assert_eq!(stopped["details"]["finish_reason"], "stop_sequence");
            let stream = client.stream(&request).await.expect("it answers").rest().await.expect("it ends");
            assert_eq!(check_stream(&stream).tokens, ids(&stopped));
        }
    }
}
