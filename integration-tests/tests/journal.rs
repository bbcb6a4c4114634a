//! The router is killed in the middle of a stream, and its client comes back to the next one.

use futures::StreamExt;
use lockstep_integration_tests::cluster::Setup;
use lockstep_integration_tests::{BETWEEN_LOOKS, DEADLINE, faults};
use serde_json::json;

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep-under-test");

/// Asks, or asks for the rest after the event of this id, until it is answered; reads so many events and hangs up.
async fn read(url: &str, body: &serde_json::Value, last: Option<&str>, count: usize) -> Vec<String> {
    let http = reqwest::Client::builder().no_proxy().build().expect("a client");
    let start = std::time::Instant::now();
    let response = loop {
        let mut request =
            http.post(format!("{url}/generate_stream")).header("x-use-cache", "false").json(body);
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        match request.send().await {
            Ok(response) if response.status().as_u16() == 200 => break response,
            Ok(response) => assert_eq!(response.status().as_u16(), 503, "{:?}", response.text().await),
            Err(_) => {}
        }
        assert!(start.elapsed() < DEADLINE, "the service does not return");
        tokio::time::sleep(BETWEEN_LOOKS).await;
    };
    let (mut pieces, mut text) = (response.bytes_stream(), String::new());
    while text.matches("\n\n").count() < count
        && let Some(piece) = pieces.next().await
    {
        text.push_str(std::str::from_utf8(&piece.expect("the connection holds")).expect("it is text"));
    }
    let events = text.split_terminator("\n\n").filter(|event| !event.starts_with(':'));
    events.take(count).map(str::to_owned).collect()
}

fn split(event: &str) -> (&str, &str) {
    let (id, data) = event.split_once('\n').expect("an event has two lines");
    (id.strip_prefix("id: ").expect("it has an id"), data)
}

#[tokio::test]
async fn a_client_that_comes_back_to_another_router_gets_the_rest_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let journal = folder.path().display().to_string();
    for fsync in ["never", "always"] {
        let flags = ["--resume-window", "600", "--journal", &journal, "--journal-fsync", fsync];
        let cluster = Setup::demo(LOCKSTEP).ranks(2).flags(&flags).start();
        let parameters = json!({"max_new_tokens": 40, "ignore_eos": true, "do_sample": true, "seed": 11});
        let body = json!({"inputs": "Once upon a time", "parameters": parameters});
        let undisturbed = read(cluster.url(), &body, None, usize::MAX).await;
        let expected: Vec<&str> = undisturbed.iter().map(|event| split(event).1).collect();
        assert_eq!(expected.len(), 40);
        let mut events = read(cluster.url(), &body, None, 5).await;
        // It dies three times under one answer; then twice when the answer is complete.
        for count in [8, 9, usize::MAX, 0, 0] {
            faults::kill(faults::router(&cluster));
            let last = split(events.last().expect("some were read")).0.to_owned();
            events.extend(read(cluster.url(), &body, Some(&last), count).await);
        }
        let data: Vec<&str> = events.iter().map(|event| split(event).1).collect();
        assert_eq!(data, expected, "{fsync}");
    }
}
