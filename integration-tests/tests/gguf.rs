//! A GGUF file is served like the checkpoint it was made of, on one process and on two; one that cannot be
//! served is refused in a line.

use std::process::Command;

use lockstep_integration_tests::client::Generate;
use lockstep_integration_tests::cluster::Setup;
use lockstep_models::testing;
use serde_json::{Value, json};

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep-under-test");

/// A greedy text, a seeded one, and a conversation.
async fn answers(setup: Setup) -> Vec<Value> {
    let cluster = setup.start();
    let client = cluster.client();
    let mut answers = Vec::new();
    for request in [Generate::greedy("Once upon a time", 40), Generate::greedy("Tom", 40).seeded(7)] {
        answers.push(client.generate(&request).await.expect("it answers"));
    }
    let message = json!({"role": "user", "content": "What is the capital of France?"});
    let body = json!({"model": "demo", "messages": [message], "max_tokens": 40, "temperature": 0});
    let reply = client.post("/v1/chat/completions", &body).await.expect("it answers").json();
    answers.push(reply["choices"].clone());
    answers
}

#[tokio::test]
async fn the_demo_model_answers_alike_from_a_gguf_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("demo.gguf");
    std::fs::write(&path, testing::demo_as_gguf()).expect("room for a model");
    let reference = answers(Setup::demo(LOCKSTEP)).await;
    assert!(reference[2][0]["message"]["content"].as_str().is_some_and(|text| text.contains("Paris")));
    let flags = ["--model-id", path.to_str().expect("a path of plain characters")];
    for ranks in [1, 2] {
        let converted = answers(Setup::demo(LOCKSTEP).ranks(ranks).flags(&flags)).await;
        assert_eq!(converted, reference, "{ranks} ranks");
    }
}

#[test]
fn a_damaged_file_is_refused_in_a_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("cut.gguf");
    let whole = testing::demo_as_gguf();
    std::fs::write(&path, &whole[..whole.len() / 2]).expect("room for half a model");
    let output = Command::new(LOCKSTEP)
        .args(["--port", "0", "--hostname", "127.0.0.1", "--model-id"])
        .arg(&path)
        .output()
        .expect("the binary is there");
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    let expected = format!("lockstep: failed to read {}: tensor ", path.display());
    assert!(said.contains(&expected) && said.contains("cut off or damaged"), "{said}");
}
