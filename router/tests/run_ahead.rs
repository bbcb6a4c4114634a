//! Steps that are sent before the ones before them are answered: they are there, and answers are what they are without.

mod support;

use futures::future::join_all;
use lockstep_router::shards::fake::FakeModel;
use lockstep_scheduler::RunAhead;
use serde_json::{Value, json};
use support::{Reply, Server, config};

/// What everything that decides a token shows in.
const MODEL: FakeModel = FakeModel::Seeded;

async fn server(run_ahead: RunAhead) -> Server {
    let mut config = config();
    config.engine.run_ahead = run_ahead;
    Server::start_with(MODEL, config).await
}

fn request(inputs: &str, more: Value) -> Value {
    let mut parameters = json!({"max_new_tokens": 24, "ignore_eos": true, "details": true});
    for (name, value) in more.as_object().into_iter().flatten() {
        parameters[name] = value.clone();
    }
    json!({"inputs": inputs, "parameters": parameters})
}

#[tokio::test]
async fn the_next_step_is_at_the_shards_before_the_first_is_answered() {
    let server = server(RunAhead::Allowed).await;
    let body = || request("a prompt", json!({}));
    let expected = server.post("/generate", body()).await.json();
    // How long such steps take is known from here on, also where a part of the prompt is cached.
    assert_eq!(server.post("/generate", body()).await.json(), expected);
    server.control.pause();
    let ahead = async {
        server.control.until_begun_ahead(2).await;
        let before = server.control.steps();
        // The answer to the first makes room for another.
        server.control.allow_steps(1);
        server.until(async |server| server.control.steps() == before + 1).await;
        server.control.until_begun_ahead(2).await;
        server.control.resume();
    };
    let (reply, ()) = futures::join!(server.post("/generate", body()), ahead);
    assert_eq!(reply.json(), expected);
}

/// Whatever decides how an answer goes on and ends: sampling, ends of a sequence and of a text, chunks of long prompts,
/// log-probabilities.
fn requests() -> Vec<Value> {
    let long = "one and the same beginning of forty bytes";
    vec![
        request("a", json!({})),
        request("b", json!({"do_sample": true, "seed": 1, "ignore_eos": false})),
        request("c", json!({"do_sample": true, "seed": 2, "temperature": 0.5, "max_new_tokens": 3})),
        request("d", json!({"top_n_tokens": 3, "max_new_tokens": 1})),
        request("e", json!({"stop": ["a", "e", "i", "o"]})),
        request(&long.repeat(2), json!({"decoder_input_details": true})),
        request(long, json!({"repetition_penalty": 1.3})),
    ]
}

/// Keeps all beside it from running ahead.
fn with_a_grammar() -> Value {
    request("f", json!({"ignore_eos": false, "grammar": {"type": "regex", "value": "[a-f]{12,20}"}}))
}

#[tokio::test]
async fn answers_are_the_same_with_and_without() {
    let mut answers = Vec::new();
    for (run_ahead, steps_at_once) in [(RunAhead::Never, 1), (RunAhead::Allowed, 2)] {
        let server = server(run_ahead).await;
        let whole = join_all(requests().into_iter().map(|body| server.post("/generate", body))).await;
        whole.iter().for_each(|reply| assert_eq!(reply.status, 200, "{}", reply.text));
        // A stream does not tell the prompt's log-probabilities.
        let streams =
            requests().into_iter().filter(|body| body["parameters"]["decoder_input_details"].is_null());
        let streams = join_all(streams.map(|body| server.stream("/generate_stream", body))).await;
        let beside = requests().into_iter().chain([with_a_grammar()]);
        let beside = join_all(beside.map(|body| server.post("/generate", body))).await;
        let json = |replies: &[Reply]| replies.iter().map(Reply::json).collect::<Vec<_>>();
        answers.push((json(&whole), streams, json(&beside)));
        assert_eq!(server.control.most_steps_at_once(), steps_at_once);
    }
    let ahead = answers.pop().unwrap();
    assert_eq!(ahead, answers.pop().unwrap());
}
