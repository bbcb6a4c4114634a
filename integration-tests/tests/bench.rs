//! The load generator against a real server.

use std::process::{Command, Output, Stdio};

use lockstep_integration_tests::cluster::Setup;
use serde_json::Value;

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep-under-test");

fn bench(flags: &[&str]) -> Output {
    let mut command = Command::new(LOCKSTEP);
    command.arg("bench").args(flags).stdin(Stdio::null()).output().expect("the binary is there")
}

#[test]
fn every_request_is_measured() {
    let cluster = Setup::demo(LOCKSTEP).start();
    let load =
        ["--url", cluster.url(), "--requests", "6", "--prompt-tokens", "20", "--max-new-tokens", "8"];
    for more in [["--concurrency", "3"], ["--rate", "50"]] {
        let output = bench(&[&load[..], &more[..], &["--json"]].concat());
        assert!(output.status.success(), "{output:?}");
        let report: Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
        assert_eq!(
            (&report["answered"], &report["errors"]),
            (&6.into(), &Value::Object(Default::default()))
        );
        assert!(report["tokens"].as_u64().is_some_and(|tokens| (6..=48).contains(&tokens)), "{report}");
        for latency in ["time_to_first_token_ms", "request_latency_ms"] {
            assert!(report["latencies"][latency]["p50"].as_f64().is_some_and(|p50| p50 > 0.0), "{report}");
        }
    }
    let table = String::from_utf8(bench(&load).stdout).expect("it is text");
    assert!(table.contains("time to first token") && table.contains("tokens/s"), "{table}");
}

#[test]
fn what_the_server_says_of_a_request_is_passed_on() {
    let cluster = Setup::demo(LOCKSTEP).start();
    let output = bench(&["--url", cluster.url(), "--prompt-tokens", "5000"]);
    let stderr = String::from_utf8(output.stderr).expect("it is text");
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains(" up: status 422: Input validation error: `inputs` "), "{stderr}");
    assert!(!stderr.contains("is a server running"), "{stderr}");
}

#[test]
fn a_server_that_is_not_there_is_said_to_be() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let url = format!("http://{}", free.expect("a free port"));
    let output = bench(&["--url", &url]);
    let stderr = String::from_utf8(output.stderr).expect("it is text");
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.starts_with(&format!("lockstep: failed to warm {url} up: ")), "{stderr}");
    assert!(stderr.contains("is a server running there?"), "{stderr}");
}
