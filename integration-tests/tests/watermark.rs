//! A text that was asked for with a watermark is found to carry one by `lockstep detect-watermark`, from its bytes
//! alone; the same text without is not.

use std::io::Write;
use std::process::{Command, Stdio};

use lockstep_integration_tests::client::{Client, Generate};
use lockstep_integration_tests::cluster::Setup;
use serde_json::{Value, json};

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep-under-test");

const PROMPTS: [&str; 6] = [
    "Once upon a time",
    "A little red bird sat on a tree.",
    "Tom went to the",
    "One day, a girl named",
    "The big dog",
    "In the morning",
];

/// What the detector says of `text` on standard input.
fn detected(text: &str, flags: &[&str]) -> Value {
    let mut detector = Command::new(LOCKSTEP)
        .args(["detect-watermark", "--json"])
        .args(flags)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary is there");
    detector.stdin.take().expect("it is piped").write_all(text.as_bytes()).expect("it reads");
    let output = detector.wait_with_output().expect("it ends");
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).expect("a line of JSON")
}

/// The answers to all prompts, as one text.
async fn text(client: &Client, ask: impl Fn(Generate) -> Generate) -> String {
    let mut text = String::new();
    for (prompt, seed) in PROMPTS.iter().zip(1..) {
        let endless = Generate::greedy(prompt, 100).with("ignore_eos", json!(true));
        let request = ask(endless.with("do_sample", json!(true)).with("seed", json!(seed)));
        let answer = client.generate(&request).await.expect("it answers");
        text += answer["generated_text"].as_str().expect("an answer has a text");
    }
    text
}

fn z(verdict: &Value) -> f64 {
    verdict["z_score"].as_f64().expect("a number")
}

#[tokio::test]
async fn a_marked_text_is_found_and_a_plain_one_is_not() {
    let (one, two) = (Setup::demo(LOCKSTEP).start(), Setup::demo(LOCKSTEP).ranks(2).start());
    let client = one.client();
    let mark = |request: Generate| request.with("watermark", json!(true));
    let plain = text(&client, |request| request).await;
    let marked = text(&client, mark).await;
    assert_eq!(text(&two.client(), mark).await, marked, "two ranks");
    let (of_plain, of_marked) = (detected(&plain, &[]), detected(&marked, &[]));
    println!("plain {of_plain}, marked {of_marked}");
    assert!(z(&of_plain).abs() < 4.0 && of_plain["watermarked"] == false, "{of_plain}: {plain}");
    assert!(z(&of_marked) > 4.0 && of_marked["watermarked"] == true, "{of_marked}: {marked}");
    // Another share is another mark.
    let other =
        text(&client, |request| request.with("watermark", json!({"gamma": 0.25, "delta": 4.0}))).await;
    let (found, missed) = (detected(&other, &["--gamma", "0.25"]), detected(&plain, &["--gamma", "0.25"]));
    assert!(z(&found) > 4.0 && z(&missed).abs() < 4.0, "{found} {missed}");
}

#[tokio::test]
async fn a_greedy_text_and_a_servers_own_strength_are_found_too() {
    let cluster =
        Setup::demo(LOCKSTEP).flags(&["--watermark-gamma", "0.4", "--watermark-delta", "5"]).start();
    let client = cluster.client();
    let info = client.get("/info").await.expect("it answers").json();
    assert!((info["watermark_gamma"].as_f64().expect("a number") - 0.4).abs() < 1e-6, "{info}");
    assert_eq!(info["watermark_delta"], 5.0);
    let greedy = |request: Generate| request.with("do_sample", json!(false)).with("seed", Value::Null);
    let marked = text(&client, |request| greedy(request).with("watermark", json!(true))).await;
    let plain = text(&client, greedy).await;
    let (found, missed) = (detected(&marked, &["--gamma", "0.4"]), detected(&plain, &["--gamma", "0.4"]));
    assert!(z(&found) > 4.0 && z(&missed).abs() < 4.0, "{found} {missed}");
}
