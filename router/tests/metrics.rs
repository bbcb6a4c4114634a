//! The page at `/metrics`: that it parses, has every name with its help and type, and says what is so.
#![expect(clippy::unwrap_used, reason = "a page that cannot be read fails the test")]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use lockstep_proto::TokenId;
use lockstep_router::shards::fake::FakeModel;
use serde_json::json;
use support::{BLOCKS, Server, config, post};
use tower::ServiceExt;

/// Every name with its type, in order.
const FAMILIES: [(&str, &str); 50] = [
    ("lockstep_build_info", "gauge"),
    ("lockstep_connections", "gauge"),
    ("lockstep_grammar_compile_seconds", "histogram"),
    ("lockstep_grammar_mask_seconds", "histogram"),
    ("lockstep_grammar_tokens_total", "counter"),
    ("lockstep_group_drains_total", "counter"),
    ("lockstep_group_losses_total", "counter"),
    ("lockstep_group_restarts_total", "counter"),
    ("lockstep_inter_token_latency_seconds", "histogram"),
    ("lockstep_journal_on", "gauge"),
    ("lockstep_kv_blocks_cached", "gauge"),
    ("lockstep_kv_blocks_free", "gauge"),
    ("lockstep_kv_blocks_used", "gauge"),
    ("lockstep_preemptions_total", "counter"),
    ("lockstep_prefix_hit_tokens_total", "counter"),
    ("lockstep_rank_communication_seconds", "histogram"),
    ("lockstep_rank_forward_seconds", "histogram"),
    ("lockstep_ranks_ready", "gauge"),
    ("lockstep_replica_ready", "gauge"),
    ("lockstep_replicas_ready", "gauge"),
    ("lockstep_response_cache_hits_total", "counter"),
    ("lockstep_sequence_moves_total", "counter"),
    ("lockstep_tasks_alive", "gauge"),
    ("lockstep_time_to_first_token_seconds", "histogram"),
    ("tgi_batch_concat", "counter"),
    ("tgi_batch_concat_duration", "histogram"),
    ("tgi_batch_current_max_tokens", "gauge"),
    ("tgi_batch_current_size", "gauge"),
    ("tgi_batch_decode_duration", "histogram"),
    ("tgi_batch_filter_duration", "histogram"),
    ("tgi_batch_forward_duration", "histogram"),
    ("tgi_batch_inference_count", "counter"),
    ("tgi_batch_inference_duration", "histogram"),
    ("tgi_batch_inference_failure", "counter"),
    ("tgi_batch_inference_success", "counter"),
    ("tgi_batch_max_total_tokens", "gauge"),
    ("tgi_batch_next_size", "histogram"),
    ("tgi_queue_size", "gauge"),
    ("tgi_request_count", "counter"),
    ("tgi_request_duration", "histogram"),
    ("tgi_request_failure", "counter"),
    ("tgi_request_generated_tokens", "histogram"),
    ("tgi_request_inference_duration", "histogram"),
    ("tgi_request_input_length", "histogram"),
    ("tgi_request_max_new_tokens", "histogram"),
    ("tgi_request_mean_time_per_token_duration", "histogram"),
    ("tgi_request_queue_duration", "histogram"),
    ("tgi_request_skipped_tokens", "histogram"),
    ("tgi_request_success", "counter"),
    ("tgi_request_validation_duration", "histogram"),
];

/// Set, the committed page is written anew instead of compared.
const UPDATE: &str = "UPDATE_METRICS";

/// What stands before the tables of the committed page.
const PREFACE: &str = "\
# Metrics

`GET /metrics` tells these as Prometheus text, from the first scrape on: what has not happened yet is 0. Names that begin
with `tgi_` are those of text-generation-inference, so that its dashboards go on working. Every series of one server is
of one model; `lockstep_build_info` says which, and the server's version. Replicas' series have a label `replica` where there
are several.

This page is written by `UPDATE_METRICS=1 cargo test -p lockstep-router --test metrics`, from what is served.

## What to watch

| question | expression |
|---|---|
| does it answer | `sum(rate(tgi_request_failure{err=~\"generation\\|incomplete\\|internal\\|overloaded\\|timeout\\|unavailable\"}[5m])) / (sum(rate(tgi_request_success[5m])) + sum(rate(tgi_request_failure[5m])))` |
| how long until the first token, of 95 in 100 | `histogram_quantile(0.95, sum by (le) (rate(lockstep_time_to_first_token_seconds_bucket[5m])))` |
| how evenly tokens come, of 95 in 100 | `histogram_quantile(0.95, sum by (le) (rate(lockstep_inter_token_latency_seconds_bucket[5m])))` |
| tokens a second | `sum(rate(tgi_request_generated_tokens_sum[1m]))` |
| is it full | `tgi_queue_size > 0` for minutes, `lockstep_kv_blocks_free == 0`, `rate(lockstep_preemptions_total[5m]) > 0` |
| does a shard keep dying | `increase(lockstep_group_losses_total[15m]) > 2` |
| is a replica away | `lockstep_replica_ready == 0` for longer than a load takes |
| are streams written down | `lockstep_journal_on == 0` where a journal was asked for |
";

/// A family of series, as its page tells it.
#[derive(Default)]
struct Family {
    help: String,
    kind: String,
    /// Name and labels of each series, with its value.
    series: BTreeMap<(String, Labels), f64>,
}

type Labels = BTreeMap<String, String>;

/// Reads a page as Prometheus does, and stricter: a family is told once and whole, with its help and type first.
fn parse(page: &str) -> BTreeMap<String, Family> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut current = String::new();
    for line in page.lines().filter(|line| !line.is_empty()) {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(families.insert(name.to_owned(), Family::default()).is_none(), "{name} is told twice");
            families.get_mut(name).unwrap().help = help.to_owned();
            current = name.to_owned();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(name, current, "the help of {name} must come right before its type");
            families.get_mut(name).unwrap().kind = kind.to_owned();
        } else {
            let family = families.get_mut(&current).unwrap();
            let (name, labels, value) = sample(line);
            let suffix =
                name.strip_prefix(current.as_str()).unwrap_or_else(|| panic!("{line} in {current}"));
            let suffixes: &[&str] =
                if family.kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            assert!(suffixes.contains(&suffix), "{line}");
            assert!(family.series.insert((name, labels), value).is_none(), "{line} is there twice");
        }
    }
    families
}

fn sample(line: &str) -> (String, Labels, f64) {
    let (series, value) = line.rsplit_once(' ').unwrap();
    let value = if value == "+Inf" { f64::INFINITY } else { value.parse().unwrap() };
    let Some((name, labels)) = series.split_once('{') else {
        return (series.to_owned(), Labels::new(), value);
    };
    let labels = labels.strip_suffix('}').unwrap().split(',').map(|label| {
        let (name, value) = label.split_once('=').unwrap();
        let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap();
        (name.to_owned(), value.to_owned())
    });
    (name.to_owned(), labels.collect(), value)
}

/// Buckets only grow, and the last counts everything.
fn check_histogram(name: &str, family: &Family) {
    let counts: Vec<_> = family.series.iter().filter(|((name, _), _)| name.ends_with("_count")).collect();
    assert!(!counts.is_empty(), "{name}");
    for ((_, labels), count) in counts {
        let mut buckets: Vec<(f64, f64)> = family
            .series
            .iter()
            .filter(|((name, _), _)| name.ends_with("_bucket"))
            .filter_map(|((_, of), value)| {
                let mut of = of.clone();
                let le = of.remove("le").unwrap();
                let bound = if le == "+Inf" { f64::INFINITY } else { le.parse().unwrap() };
                (of == *labels).then_some((bound, *value))
            })
            .collect();
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        assert!((15..=30).contains(&buckets.len()), "{name} has {} buckets", buckets.len());
        assert!(buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "{name}: {buckets:?}");
        assert_eq!(buckets.last(), Some(&(f64::INFINITY, *count)), "{name}");
    }
}

async fn page(server: &Server) -> BTreeMap<String, Family> {
    let reply = server.get("/metrics").await;
    assert_eq!(reply.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    parse(&reply.text)
}

#[tokio::test]
async fn every_name_is_there_from_the_start_with_its_help_and_type() {
    let server = Server::saying("Hi").await;
    let families = page(&server).await;
    let found: Vec<_> =
        families.iter().map(|(name, family)| (name.as_str(), family.kind.as_str())).collect();
    assert_eq!(found, FAMILIES);
    for (name, family) in &families {
        assert!(family.help.len() > 8, "{name}: {}", family.help);
        assert!(!family.series.is_empty(), "{name}");
    }
}

#[tokio::test]
async fn the_page_parses_after_answers_and_failures_and_tells_no_new_name() {
    let server = Server::saying("Hi there").await;
    for body in
        [json!({"inputs": "a"}), json!({"inputs": "a"}), json!({"inputs": "a", "parameters": {"top_p": 2}})]
    {
        server.post("/generate", body).await;
    }
    server.post("/v1/chat/completions", json!({"messages": [{"role": "user", "content": "a"}]})).await;
    let families = page(&server).await;
    assert!(families.keys().map(String::as_str).eq(FAMILIES.map(|(name, _)| name)));
    for (name, family) in families.iter().filter(|(_, family)| family.kind == "histogram") {
        check_histogram(name, family);
    }
    for (name, expected) in [
        ("tgi_request_count", 4.0),
        ("tgi_request_success", 3.0),
        ("tgi_request_failure{err=\"validation\"}", 1.0),
        ("tgi_request_skipped_tokens_count", 3.0),
        ("tgi_request_skipped_tokens_sum", 0.0),
        ("lockstep_time_to_first_token_seconds_count", 3.0),
        ("tgi_request_generated_tokens_sum", 27.0),
        ("lockstep_inter_token_latency_seconds_count", 24.0),
    ] {
        assert_eq!(server.metric(name).await, expected, "{name}");
    }
}

#[tokio::test]
async fn label_values_come_from_fixed_sets() {
    let server = Server::saying("Hi").await;
    server.post("/generate", json!({"inputs": "secret-prompt"})).await;
    let mut values: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (_, labels) in page(&server).await.into_values().flat_map(|family| family.series.into_keys()) {
        labels.into_iter().for_each(|(name, value)| {
            values.entry(name).or_default().insert(value);
        });
    }
    let names: Vec<_> = values.keys().map(String::as_str).collect();
    assert_eq!(names, ["err", "le", "method", "model", "origin", "rank", "reason", "replica", "version"]);
    assert_eq!(values["model"].len(), 1);
    assert_eq!(values["origin"].iter().collect::<Vec<_>>(), ["forced", "sampled"]);
    assert_eq!(values["method"].iter().collect::<Vec<_>>(), ["decode", "prefill"]);
    assert_eq!(values["rank"].iter().collect::<Vec<_>>(), ["0"]);
}

#[tokio::test]
async fn each_step_is_told_of_each_rank_and_by_its_kind() {
    let server = Server::saying("Hi").await;
    server.post("/generate", json!({"inputs": "a prompt"})).await;
    let steps = server.control.steps() as f64;
    assert_eq!(server.metric("lockstep_rank_forward_seconds_count{rank=\"0\"}").await, steps);
    assert_eq!(server.metric("lockstep_rank_communication_seconds_count{rank=\"0\"}").await, steps);
    for name in ["tgi_batch_filter_duration", "tgi_batch_forward_duration", "tgi_batch_inference_duration"]
    {
        let prefills = server.metric(&format!("{name}_count{{method=\"prefill\"}}")).await;
        let decodes = server.metric(&format!("{name}_count{{method=\"decode\"}}")).await;
        assert_eq!((prefills, decodes), (1.0, steps - 1.0), "{name}");
    }
    assert_eq!(server.metric("tgi_batch_concat{reason=\"chunking\"}").await, 0.0);
}

#[tokio::test]
async fn a_prompt_that_joins_a_batch_is_counted() {
    let server = Server::start_with(FakeModel::Script(vec![TokenId(97)]), config()).await;
    server.control.pause();
    let body = json!({"inputs": "a prompt", "parameters": {"max_new_tokens": 50, "ignore_eos": true}});
    let first = server.router().oneshot(post("/generate_stream", &body)).await.unwrap();
    server.control.allow_steps(1);
    server.until(async |server| server.control.steps() >= 1).await;
    let second = server.router().oneshot(post("/generate_stream", &body)).await.unwrap();
    server.control.resume();
    server.until(async |server| server.metric("tgi_batch_concat{reason=\"chunking\"}").await >= 1.0).await;
    assert_eq!(server.metric("tgi_batch_concat_duration_count{method=\"decode\"}").await, 1.0);
    drop((first, second));
}

#[tokio::test]
async fn the_caches_room_and_what_is_taken_of_it_are_told_in_tokens() {
    let server = Server::start_with(FakeModel::Hash, config()).await;
    // Blocks of the fake group hold four tokens.
    assert_eq!(server.metric("tgi_batch_max_total_tokens").await, f64::from(BLOCKS * 4));
    assert_eq!(server.metric("tgi_batch_current_max_tokens").await, 0.0);
    server.control.pause();
    let body = json!({"inputs": "twelve bytes", "parameters": {"max_new_tokens": 50, "ignore_eos": true}});
    let stream = server.router().oneshot(post("/generate_stream", &body)).await.unwrap();
    server.until(async |server| server.metric("lockstep_kv_blocks_used").await >= 3.0).await;
    let used = server.metric("lockstep_kv_blocks_used").await;
    assert_eq!(server.metric("tgi_batch_current_max_tokens").await, used * 4.0);
    drop(stream);
}

#[tokio::test]
async fn losses_and_restarts_of_the_group_are_counted_apart() {
    let server = Server::saying("Hi").await;
    let told = async |server: &Server| {
        let names =
            ["lockstep_group_losses_total", "lockstep_group_restarts_total", "lockstep_ranks_ready"];
        [server.metric(names[0]).await, server.metric(names[1]).await, server.metric(names[2]).await]
    };
    assert_eq!(told(&server).await, [0.0, 0.0, 1.0]);
    server.control.lose();
    server.until(async |server| told(server).await == [1.0, 0.0, 0.0]).await;
    server.control.come_back();
    server.until(async |server| told(server).await == [1.0, 1.0, 1.0]).await;
}

#[tokio::test]
async fn vllm_names_are_told_when_asked_for_and_agree_with_ours() {
    let server = Server::start_with(FakeModel::Hash, config()).await;
    assert!(page(&server).await.keys().all(|name| !name.contains(':')));
    server.app.metrics.alias_for_vllm("test/model");
    server.control.pause();
    let body = json!({"inputs": "twelve bytes", "parameters": {"max_new_tokens": 50, "ignore_eos": true}});
    let stream = server.router().oneshot(post("/generate_stream", &body)).await.unwrap();
    server.until(async |server| server.metric("lockstep_kv_blocks_used").await >= 3.0).await;
    let families = page(&server).await;
    let model = Labels::from([("model_name".to_owned(), "test/model".to_owned())]);
    let value = |name: &str, labels: &Labels| families[name].series[&(name.to_owned(), labels.clone())];
    let none = Labels::new();
    assert_eq!(value("vllm:num_requests_waiting", &model), value("tgi_queue_size", &none));
    assert_eq!(value("vllm:num_requests_running", &model), 1.0);
    let used = value("lockstep_kv_blocks_used", &none);
    assert_eq!(value("vllm:kv_cache_usage_perc", &model), used / f64::from(BLOCKS));
    let size = [("block_size", "4".to_owned()), ("num_gpu_blocks", BLOCKS.to_string())];
    let mut config = model.clone();
    config.extend(size.map(|(name, value)| (name.to_owned(), value)));
    assert_eq!(value("vllm:cache_config_info", &config), 1.0);
    assert!(
        families.iter().filter(|(name, _)| name.contains(':')).all(|(_, family)| family.kind == "gauge")
    );
    drop(stream);
}

/// The names of a family's labels, with their values where these are few and always the same.
fn labels_of(family: &Family) -> String {
    let mut values: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (_, labels) in family.series.keys() {
        for (name, value) in labels.iter().filter(|(name, _)| *name != "le") {
            values.entry(name).or_default().insert(value);
        }
    }
    let told = |(name, values): (&&str, &BTreeSet<&str>)| {
        let is_fixed = ["err", "method", "origin", "reason"].contains(name);
        let values: Vec<&str> = values.iter().copied().collect();
        if is_fixed { format!("`{name}`: {}", values.join(", ")) } else { format!("`{name}`") }
    };
    values.iter().map(told).collect::<Vec<_>>().join("; ")
}

#[tokio::test]
async fn the_committed_page_tells_of_every_metric() {
    let server = Server::saying("Hi").await;
    server.app.metrics.alias_for_vllm("test/model");
    server.control.pause();
    let families = page(&server).await;
    let table = |title: &str, is_in: fn(&str) -> bool| {
        let rows = families.iter().filter(|(name, _)| is_in(name)).map(|(name, family)| {
            format!("| `{name}` | {} | {} | {} |\n", family.kind, family.help, labels_of(family))
        });
        format!(
            "\n## {title}\n\n| name | type | what | labels |\n|---|---|---|---|\n{}",
            rows.collect::<String>()
        )
    };
    let fresh = [
        PREFACE.to_owned(),
        table("Ours", |name| name.starts_with("lockstep_")),
        table("As text-generation-inference has them", |name| name.starts_with("tgi_")),
        table("As vLLM has them, with `--vllm-metrics`", |name| name.starts_with("vllm:")),
    ]
    .concat();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(path, &fresh).unwrap();
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    assert!(found == fresh, "docs/metrics.md is stale: run this test with {UPDATE}=1");
}
