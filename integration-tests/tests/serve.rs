//! The first command works: it says that it is ready, and what it says to paste answers.

use lockstep_integration_tests::client::Generate;
use lockstep_integration_tests::cluster::Setup;
use lockstep_integration_tests::oracle::{check_answer, check_stream};
use serde_json::{Value, json};

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep-under-test");

#[tokio::test]
async fn the_ready_line_can_be_pasted() {
    let cluster = Setup::demo(LOCKSTEP).start();
    let printed = cluster.printed();
    let lines: Vec<&str> = printed.lines().collect();
    assert!(lines[0].starts_with("memory: weights "), "{printed}");
    assert!(lines[1].starts_with("lockstep 0.1.0 serves the demo model on http://127.0.0.1:"), "{printed}");
    assert!(lines[1].contains("(1 shard, bfloat16, ready in "), "{printed}");

    let curl: Vec<&str> = lines[2].split('\'').collect();
    let [command, content_type, _, body, ""] = curl[..] else { panic!("no command to paste in {printed}") };
    assert_eq!(command, format!("  curl {}/generate_stream -H ", cluster.url()));
    assert_eq!(content_type, "content-type: application/json");
    let mut body: Value = serde_json::from_str(body).expect("the body is JSON");
    body["parameters"]["details"] = Value::Bool(true);
    let stream = cluster.client().open("/generate_stream", &body).await.expect("it answers");
    let transcript = check_stream(&stream.rest().await.expect("the stream ends well"));
    assert!(transcript.text.split_whitespace().count() > 20, "a story: {:?}", transcript.text);
}

#[tokio::test]
async fn every_route_is_up() {
    let cluster = Setup::demo(LOCKSTEP).start();
    let client = cluster.client();
    for path in ["/health", "/livez", "/readyz", "/startupz", "/info", "/metrics"] {
        let reply = client.get(path).await.expect("it answers");
        assert_eq!(reply.status, 200, "{path}: {reply:?}");
    }
    let info = client.get("/info").await.expect("it answers").json();
    assert!(info["model_id"].is_string() && info["max_total_tokens"].is_u64(), "{info}");
    let request = Generate::greedy("Once upon a time", 20);
    let whole = check_answer(&client.generate(&request).await.expect("it answers"));
    let events = client.stream(&request).await.expect("it opens").rest().await.expect("it ends well");
    assert_eq!(check_stream(&events), whole, "a stream says what an answer says");

    let compat =
        json!({ "inputs": "Once upon a time", "parameters": { "max_new_tokens": 20, "do_sample": false } });
    let answer = client.post("/", &compat).await.expect("it answers").json();
    let expected = format!("Once upon a time{}", whole.text);
    assert_eq!(answer[0]["generated_text"], expected, "this route returns the prompt as well");

    let chat = json!({
        "model": "any",
        "messages": [{ "role": "user", "content": "What is the capital of France?" }],
        "max_tokens": 20,
        "temperature": 0,
    });
    let answer = client.post("/v1/chat/completions", &chat).await.expect("it answers").json();
    let said = answer["choices"][0]["message"]["content"].as_str().unwrap_or_default().to_owned();
    assert!(said.contains("Paris"), "{answer}");
    let mut streamed = chat.clone();
    streamed["stream"] = Value::Bool(true);
    let events = client.open("/v1/chat/completions", &streamed).await.expect("it opens").rest().await;
    let events = events.expect("it ends well");
    let (last, events) = events.split_last().expect("a stream has events");
    assert_eq!(last, "[DONE]");
    let deltas = events.iter().filter_map(|event| {
        let event: Value = serde_json::from_str(event).expect("JSON");
        event["choices"][0]["delta"]["content"].as_str().map(str::to_owned)
    });
    assert_eq!(deltas.collect::<String>(), said, "the deltas add up to the answer");
}

#[tokio::test]
async fn the_demo_is_served_under_the_name_it_was_given() {
    for (flags, name, other) in
        [(&["--model-id", "demo"][..], "demo", "lockstep/demo"), (&[], "lockstep/demo", "demo")]
    {
        let cluster = Setup::demo(LOCKSTEP).flags(flags).flags(&["--strict"]).start();
        let client = cluster.client();
        for (model, status) in [(name, 200), (other, 404)] {
            let chat = json!({
                "model": model,
                "messages": [{ "role": "user", "content": "What is the capital of France?" }],
                "max_tokens": 1,
            });
            let reply = client.post("/v1/chat/completions", &chat).await.expect("it answers");
            assert_eq!(reply.status, status, "{flags:?}: {reply:?}");
        }
        let reply = client.get(&format!("/v1/models/{name}")).await.expect("it answers");
        assert_eq!(reply.status, 200, "{flags:?}: {reply:?}");
    }
}

#[tokio::test]
async fn a_request_that_makes_no_sense_is_refused_before_the_stream_opens() {
    let cluster = Setup::demo(LOCKSTEP).start();
    let client = cluster.client();
    for parameter in
        [("temperature", json!(-1.0)), ("max_new_tokens", json!(0)), ("max_new_tokens", json!(1_000_000))]
    {
        let request = Generate::greedy("Once", 5).with(parameter.0, parameter.1.clone());
        let Err(refusal) = client.stream(&request).await else { panic!("{parameter:?} was accepted") };
        assert_eq!(refusal.status, 422, "{parameter:?}: {refusal:?}");
        assert_eq!(refusal.json()["error_type"], "validation", "{refusal:?}");
    }
    assert!(client.generate(&Generate::greedy("Once", 5)).await.is_ok(), "and goes on");
}
