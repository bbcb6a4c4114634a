//! What the environment says to `serve`, as an operator or a template writes it. No model is there, so nothing starts.

use std::process::{Command, Stdio};

use serde_json::Value;

const NO_MODEL: &str =
    "find model \"/nonexistent/model\": it is no folder here and no name on the Hub, which reads org/name";

/// What a start without a model logs, and what it ends with.
fn start(variables: &[(&str, &str)], flags: &[&str]) -> (Vec<String>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_lockstep"))
        .args(["--port", "0", "--model-id", "/nonexistent/model"])
        .args(flags)
        .env_clear()
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .output()
        .expect("the binary is there");
    let mut lines: Vec<String> =
        String::from_utf8_lossy(&output.stderr).lines().map(str::to_owned).collect();
    let last = lines.pop().unwrap_or_default();
    assert_eq!(output.status.code(), Some(1), "{lines:?} {last}");
    assert!(output.stdout.is_empty(), "{output:?}");
    (lines, last)
}

#[track_caller]
fn failure(variables: &[(&str, &str)], flags: &[&str]) -> String {
    let (_, last) = start(variables, flags);
    last.strip_prefix("lockstep: failed to ").unwrap_or_else(|| panic!("{last}")).to_owned()
}

#[test]
fn what_is_set_to_nothing_is_not_set() {
    let variables = [
        "NUM_SHARD",
        "REPLICAS",
        "MAX_RESTARTS",
        "STRICT",
        "PREFIX_CACHING",
        "JSON_OUTPUT",
        "LOG_LEVEL",
        "HOSTNAME",
        "KV_CACHE_MEMORY",
        "MAX_TOTAL_TOKENS",
        "JOURNAL",
        "REQUEST_TIMEOUT",
        "CORS_ALLOW_ORIGIN",
        "DTYPE",
        "REVISION",
    ];
    let variables = variables.map(|name| (name, ""));
    let (log, last) = start(&variables, &[]);
    assert_eq!((log, last), (Vec::new(), format!("lockstep: failed to {NO_MODEL}")));
}

#[test]
fn a_secret_that_is_nothing_does_not_open_the_server() {
    let error = failure(&[("API_KEY", "")], &[]);
    assert_eq!(error, "accept --api-key: it is empty; give a key or leave the flag out");
}

#[test]
fn switches_are_read_as_templates_write_them() {
    let variables = [
        ("STRICT", "1"),
        ("PREFIX_CACHING", "0"),
        ("EXACT", "off"),
        ("PROTECT_METRICS", "yes"),
        ("VLLM_METRICS", "False"),
        ("HF_HUB_OFFLINE", "1"),
    ];
    assert_eq!(failure(&variables, &[]), NO_MODEL);
}

#[test]
fn what_the_router_would_refuse_is_said_before_anything_starts() {
    let refused = "accept --max-best-of 0: it must be at least 1";
    assert_eq!(failure(&[], &["--max-best-of", "0"]), refused);
    assert_eq!(failure(&[("MAX_BEST_OF", "0")], &[]), refused);
    // These are told to `serve`, which tells the router what it makes of them.
    let of_serve = [("REPLICAS", "2"), ("HOSTNAME", "a-name"), ("MODEL_ID", "org/name")];
    assert_eq!(failure(&of_serve, &[]), NO_MODEL);
}

#[test]
fn a_level_that_is_none_is_refused() {
    let error = failure(&[("LOG_LEVEL", "verbose")], &[]);
    assert!(
        error.starts_with("parse the log filter \"verbose\": found \"verbose\", expected error, warn, "),
        "{error}"
    );
    assert_eq!(failure(&[("LOG_LEVEL", "WARNING")], &[]), NO_MODEL);
}

#[test]
fn the_name_of_a_host_that_nobody_typed_is_no_warning() {
    let inherited = start(&[("HOSTNAME", "pod-7")], &[]).0;
    assert_eq!(inherited, Vec::<String>::new());
    let typed = start(&[("HOSTNAME", "pod-7")], &["--hostname", "shop"]).0;
    assert!(typed[0].contains(" WARN ") && typed[0].contains("listening on every address"), "{typed:?}");
}

#[test]
fn settings_of_the_reference_server_that_do_nothing_are_warned_of() {
    let (log, _) = start(&[("LORA_ADAPTERS", "org/adapter"), ("SPECULATE", "0")], &[]);
    let [line] = &log[..] else { panic!("not one line but {log:?}") };
    for part in [" WARN ", "LORA_ADAPTERS", "merge one into the weights"] {
        assert!(line.contains(part), "{line}");
    }
}

#[test]
fn a_log_of_json_is_json_to_its_last_line() {
    let (log, last) = start(&[("JSON_OUTPUT", "yes"), ("SPECULATE", "2")], &[]);
    let lines = log.iter().chain([&last]).map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let lines: Vec<Value> = lines.collect();
    assert_eq!((&lines[0]["level"], &lines[0]["variable"]), (&"WARN".into(), &"SPECULATE".into()));
    assert_eq!(lines[1]["message"], format!("failed to {NO_MODEL}"));
}

#[test]
fn a_plan_is_text_or_json() {
    let plan = |flags: &[&str]| {
        let words = [&["plan", "--num-shard", "2", "--replicas", "3"], flags].concat();
        let output = Command::new(env!("CARGO_BIN_EXE_lockstep")).args(words).env_clear().output();
        String::from_utf8(output.expect("the binary is there").stdout).expect("it is text")
    };
    assert!(plan(&[]).starts_with("model     the embedded demo model\n"));
    let json: Value = serde_json::from_str(&plan(&["--json-output"])).expect("JSON");
    assert_eq!((&json["model"], &json["replicas"]), (&"demo".into(), &3.into()));
    let ranks = json["ranks"].as_array().expect("a list");
    let weights: Vec<u64> = ranks.iter().filter_map(|rank| rank["weights_bytes"].as_u64()).collect();
    assert_eq!((weights.len(), json["weights_bytes"].as_u64()), (2, Some(weights.iter().sum())));
    assert_eq!(
        ranks[0]["vocabulary"][1], ranks[1]["vocabulary"][0],
        "each rank goes on where the other ends"
    );
}
