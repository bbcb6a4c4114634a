//! A log of JSON: who says what, in numbers and in the words of the interface.

use lockstep_integration_tests::client::{Client, Generate};
use lockstep_integration_tests::cluster::{Cluster, Setup};
use rustix::process::Signal;
use serde_json::Value;

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep-under-test");

/// Where it says that it serves; nothing is printed beside a log of JSON.
fn url(cluster: &Cluster) -> String {
    cluster.wait_for_log("/generate_stream");
    let log = cluster.log();
    let (_, after) = log.split_once("http://").expect("the log names the address");
    let (address, _) = after.split_once(' ').expect("it goes on");
    format!("http://{address}")
}

/// The lines with this message.
fn saying<'a>(lines: &'a [Value], message: &str) -> Vec<&'a Value> {
    let found: Vec<&Value> = lines.iter().filter(|line| line["message"] == message).collect();
    assert!(!found.is_empty(), "nobody says {message:?}");
    found
}

#[tokio::test]
async fn each_line_says_whose_it_is_and_numbers_are_numbers() {
    let flags = ["--json-output", "--replicas", "2", "--max-total-tokens", "1000000"];
    let mut cluster = Setup::demo(LOCKSTEP).flags(&flags).begin();
    let client = Client::new(&url(&cluster));
    client.generate(&Generate::greedy("Once upon a time", 3)).await.expect("it answers");
    cluster.signal(Signal::TERM);
    assert!(cluster.wait().success());
    cluster.wait_for_log("\"stopped\"");
    let log = cluster.log();
    let parsed = log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}")));
    let lines: Vec<Value> = parsed.collect();

    let mut shards: Vec<_> =
        saying(&lines, "ready").iter().map(|line| line["process"].to_string()).collect();
    shards.sort();
    assert_eq!(shards, ["\"replica-0-shard-0\"", "\"replica-1-shard-0\""]);
    for line in &lines {
        for name in ["epoch", "rank", "replica"] {
            assert!(line.get(name).is_none_or(Value::is_u64), "{line}");
        }
    }
    for line in saying(&lines, "starting") {
        assert!(
            line["unit"] == "router" || (line["unit"] == "shards" && line["replica"].is_u64()),
            "{line}"
        );
    }
    for line in saying(&lines, "told to stop") {
        assert_eq!(line["signal"], "SIGTERM", "{line}");
    }
    let finished = saying(&lines, "request finished")[0];
    assert_eq!((&finished["process"], &finished["finish_reason"]), (&"router".into(), &"length".into()));

    let listening = saying(&lines, "listening")[0];
    let lowered = saying(&lines, "more than model and cache hold: lowered")[0];
    assert_eq!((&lowered["level"], &lowered["flag"]), (&"WARN".into(), &"--max-total-tokens".into()));
    assert_eq!(lowered["asked"], 1_000_000);
    assert!(listening["max_total_tokens"].is_u64(), "{listening}");
    assert_eq!(lowered["in_force"], listening["max_total_tokens"]);
}
