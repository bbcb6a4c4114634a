//! A process that dies in the middle of streams, and the next one, which has its journal: clients that come back
//! get the rest, each event once, as if it were the same process.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod support;

use std::path::Path;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use futures::StreamExt;
use lockstep_router::app::AppConfig;
use lockstep_router::journal::{Fsync, JournalConfig, Record, parse};
use lockstep_router::shards::fake::FakeModel;
use lockstep_scheduler::PrefixCaching;
use serde_json::{Value, json};
use support::{Reply, Server, config, post};
use tower::ServiceExt;

const TOKENS: usize = 12;

fn journaled(folder: &Path, fsync: Fsync) -> AppConfig {
    let mut config = config();
    config.patience.resume_window = Some(Duration::from_secs(600));
    config.kept.journal = Some(JournalConfig { folder: folder.to_path_buf(), fsync });
    config
}

async fn start(folder: &Path) -> Server {
    Server::start_with(FakeModel::Seeded, journaled(folder, Fsync::Interval)).await
}

/// What a process that dies now leaves behind.
fn left_by(folder: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    copy
}

async fn events_of(stream: &mut axum::body::BodyDataStream, count: usize) -> Vec<String> {
    let mut events = Vec::new();
    while events.len() < count
        && let Some(event) = stream.next().await
    {
        events.push(String::from_utf8(event.unwrap().to_vec()).unwrap());
    }
    events
}

fn id_of(event: &str) -> &str {
    event.strip_prefix("id: ").unwrap().split_once('\n').unwrap().0
}

fn again(path: &str, body: &Value, last: &str) -> Request<Body> {
    let mut request = post(path, body);
    request.headers_mut().insert("last-event-id", last.parse().unwrap());
    request
}

fn events(reply: &Reply) -> Vec<String> {
    assert_eq!(reply.status, 200, "{}", reply.text);
    reply.text.split_inclusive("\n\n").map(str::to_owned).collect()
}

/// Whose turn it is to say something.
#[derive(Clone, Copy)]
enum Turns {
    /// There is one answer.
    One,
    /// Answers take turns as their steps happen to end.
    Any,
}

/// Dies after each of the stream's events.
async fn check_deaths(path: &str, body: &Value, turns: Turns) {
    let folder = tempfile::tempdir().unwrap();
    let server = start(folder.path()).await;
    server.control.pause();
    let response = server.router().oneshot(post(path, body)).await.unwrap();
    assert_eq!(response.status().as_u16(), 200);
    let mut stream = response.into_body().into_data_stream();
    let (mut seen, mut deaths) = (Vec::<String>::new(), Vec::new());
    // Paused before each step, so that a client has all there is when the process dies.
    loop {
        server.control.allow_steps(1);
        let next = tokio::time::timeout(Duration::from_secs(60), events_of(&mut stream, 1)).await.unwrap();
        if next.is_empty() {
            break;
        }
        seen.extend(next);
        deaths.push((seen.len(), left_by(folder.path())));
    }
    assert!(seen.len() > 4, "{seen:?}");
    for (told, folder) in deaths {
        let next = start(folder.path()).await;
        let rest = events(&next.send(again(path, body, id_of(&seen[told - 1]))).await);
        let whole = [&seen[..told], &rest[..]].concat();
        match turns {
            Turns::One => assert_eq!(whole, seen, "{path}: it died after {told} events"),
            Turns::Any => assert_eq!(said(&whole), said(&seen), "{path}: it died after {told} events"),
        }
        let (stream, _) = id_of(&seen[0]).split_once(':').unwrap();
        let numbered = |number: usize| format!("{stream}:{number}");
        let ids = whole.iter().map(|event| id_of(event).to_owned());
        assert!(ids.eq((1..=whole.len()).map(numbered)), "{whole:?}");
        let all = next.send(again(path, body, &numbered(0))).await;
        assert_eq!(events(&all), whole, "{path}: it died after {told} events");
        next.tasks.stop_and_wait().await;
    }
}

/// What the events say, whatever their order.
fn said(events: &[String]) -> Vec<&str> {
    let mut said: Vec<&str> = events.iter().map(|event| event.split_once('\n').unwrap().1).collect();
    said.sort_unstable();
    said
}

fn parameters(more: &Value) -> Value {
    let mut parameters = json!({"max_new_tokens": TOKENS, "ignore_eos": true, "details": true});
    parameters.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"inputs": "a prompt", "parameters": parameters})
}

#[tokio::test]
async fn native_streams_go_on() {
    for more in
        [json!({}), json!({"do_sample": true}), json!({"seed": 7, "temperature": 0.5, "top_n_tokens": 3})]
    {
        check_deaths("/generate_stream", &parameters(&more), Turns::One).await;
    }
}

#[tokio::test]
async fn streams_with_a_grammar_go_on() {
    let grammar = json!({"type": "regex", "value": "[a-f]{4} of [0-9]{6}"});
    let parameters = json!({"max_new_tokens": 30, "details": true, "do_sample": true, "grammar": grammar});
    check_deaths("/generate_stream", &json!({"inputs": "a", "parameters": parameters}), Turns::One).await;
}

#[tokio::test]
async fn chats_and_completions_go_on_with_their_ids() {
    let chat = json!({
        "messages": [{"role": "user", "content": "a"}], "stream": true, "max_tokens": TOKENS, "ignore_eos": true,
        "temperature": 0.8, "logprobs": true, "top_logprobs": 2, "stream_options": {"include_usage": true},
    });
    check_deaths("/v1/chat/completions", &chat, Turns::One).await;
    let completion = json!({
        "model": "test/model", "prompt": ["a", "b"], "stream": true, "max_tokens": 6, "ignore_eos": true,
        "temperature": 0.8, "echo": true, "logprobs": 1, "n": 2,
    });
    check_deaths("/v1/completions", &completion, Turns::Any).await;
}

/// Nothing of it is computed, by either process, and it has the ids that were told.
#[tokio::test]
async fn an_answer_from_the_cache_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let cached = |folder: &Path| {
        let mut config = journaled(folder, Fsync::Interval);
        config.kept.response_cache_bytes = 1 << 20;
        config
    };
    let server = Server::start_with(FakeModel::Seeded, cached(folder.path())).await;
    let chat = json!({
        "messages": [{"role": "user", "content": "a"}], "stream": true, "max_tokens": TOKENS, "ignore_eos": true,
        "seed": 3,
    });
    for (path, body) in [("/generate_stream", parameters(&json!({}))), ("/v1/chat/completions", chat)] {
        let first = server.post(path, body.clone()).await;
        assert_eq!(first.header("x-cache"), "miss");
        server.control.pause();
        let again_reply = server.post(path, body.clone()).await;
        assert_eq!(again_reply.header("x-cache"), "hit");
        let seen = events(&again_reply);
        assert_ne!(id_of(&seen[0]), id_of(&events(&first)[0]), "it is another stream");
        let copy = left_by(folder.path());
        let next = Server::start_with(FakeModel::Seeded, cached(copy.path())).await;
        next.control.pause();
        for told in [1, seen.len() / 2, seen.len() - 1] {
            let rest = events(&next.send(again(path, &body, id_of(&seen[told - 1]))).await);
            assert_eq!([&seen[..told], &rest[..]].concat(), seen, "{path}: it died after {told} events");
        }
        server.control.resume();
    }
}

/// Streams that were told take no room, and those that go on had theirs before.
#[tokio::test]
async fn no_stream_is_refused_for_want_of_room() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(folder.path()).await;
    let body = parameters(&json!({"seed": 7, "temperature": 0.5}));
    let mut told = Vec::new();
    for _ in 0..3 {
        told.push(events(&server.post("/generate_stream", body.clone()).await));
    }
    let copy = left_by(folder.path());
    let mut narrow = journaled(copy.path(), Fsync::Interval);
    narrow.max_concurrent_requests = 1;
    let next = Server::start_with(FakeModel::Seeded, narrow).await;
    for told in told {
        let rest = next.send(again("/generate_stream", &body, id_of(&told[0]))).await;
        assert_eq!(events(&rest), told[1..]);
    }
    next.tasks.stop_and_wait().await;
}

/// How often the streams in a journal were read and forgotten.
fn readings(folder: &Path) -> (usize, usize) {
    let read = |entry: std::io::Result<std::fs::DirEntry>| std::fs::read(entry.unwrap().path());
    let segments = std::fs::read_dir(folder).unwrap().filter_map(|entry| read(entry).ok());
    let records: Vec<Record> = segments.flat_map(|segment| parse(&segment).records).collect();
    let count = |is: fn(&Record) -> bool| records.iter().filter(|record| is(record)).count();
    (
        count(|record| matches!(record, Record::Read { .. })),
        count(|record| matches!(record, Record::Forgotten { .. })),
    )
}

/// The next process goes by it: nothing is told meanwhile.
#[tokio::test]
async fn a_stream_that_is_read_is_noted_though_nothing_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let mut brief = journaled(folder.path(), Fsync::Never);
    brief.patience.resume_window = Some(Duration::from_millis(400));
    let server = Server::start_with(FakeModel::Seeded, brief).await;
    let noted = |more_than: usize| {
        let folder = folder.path();
        async move |_: &Server| readings(folder).0 > more_than
    };
    server.control.pause();
    server.control.allow_steps(1);
    let body = parameters(&json!({}));
    let response = server.router().oneshot(post("/generate_stream", &body)).await.unwrap();
    let mut stream = response.into_body().into_data_stream();
    let first = events_of(&mut stream, 1).await;
    server.until(noted(4)).await;
    drop(stream);
    // Taken up: noted before it is answered, and from then on as before.
    let before = readings(folder.path()).0;
    let response =
        server.router().oneshot(again("/generate_stream", &body, id_of(&first[0]))).await.unwrap();
    assert_eq!(response.status().as_u16(), 200);
    assert!(readings(folder.path()).0 > before, "a client that was answered is known to be there");
    server.until(noted(before + 6)).await;
    assert_eq!(readings(folder.path()).1, 0);
    drop(response);
    let is_forgotten = async |_: &Server| readings(folder.path()).1 == 1;
    server.until(is_forgotten).await;
    server.tasks.stop_and_wait().await;
}

#[tokio::test]
async fn what_nobody_comes_back_for_is_forgotten_and_its_segments_are_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let mut brief = journaled(folder.path(), Fsync::Always);
    brief.patience.resume_window = Some(Duration::from_millis(20));
    let server = Server::start_with(FakeModel::Seeded, brief.clone()).await;
    let whole = server.post("/generate_stream", parameters(&json!({}))).await;
    assert_eq!(events(&whole).len(), TOKENS);
    // Another process finds it as well, and nobody comes.
    let copy = left_by(folder.path());
    brief.kept.journal = Some(JournalConfig { folder: copy.path().to_path_buf(), fsync: Fsync::Never });
    let next = Server::start_with(FakeModel::Seeded, brief).await;
    for (server, place) in [(server, folder), (next, copy)] {
        // Asking for it would be coming back.
        let is_forgotten = async |_: &Server| {
            let read = |entry: std::io::Result<std::fs::DirEntry>| std::fs::read(entry.unwrap().path());
            let segments = std::fs::read_dir(place.path()).unwrap().filter_map(|entry| read(entry).ok());
            let mut records = segments.flat_map(|segment| parse(&segment).records);
            records.any(|record| matches!(record, Record::Forgotten { .. }))
        };
        server.until(is_forgotten).await;
        let request = again("/generate_stream", &parameters(&json!({})), id_of(&whole.text));
        assert_eq!(server.send(request).await.status, 404);
        server.tasks.stop_and_wait().await;
        let segments = async |_: &Server| {
            let names = std::fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap().file_name());
            names.filter(|name| name.to_str().unwrap().ends_with(".journal")).count() == 1
        };
        server.until(segments).await;
    }
}

#[tokio::test]
async fn another_model_does_not_go_on_with_an_answer() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(folder.path()).await;
    let whole = server.post("/generate_stream", parameters(&json!({}))).await;
    let copy = left_by(folder.path());
    let mut other = support::model();
    other.sha = Some("another".to_owned());
    let next = Server::loading(FakeModel::Seeded, journaled(copy.path(), Fsync::Never), other);
    next.control.come_back();
    next.app.wait_until_ready().await.unwrap();
    let refused = next.send(again("/generate_stream", &parameters(&json!({})), id_of(&whole.text))).await;
    assert_eq!(refused.status, 404, "{}", refused.text);
}

#[tokio::test]
async fn strangers_get_nothing_of_it_and_no_key_is_written_down() {
    let folder = tempfile::tempdir().unwrap();
    let keyed = |folder: &Path| {
        let mut config = journaled(folder, Fsync::Never);
        config.access.keys =
            ["ann:first-secret".parse().unwrap(), "ben:second-secret".parse().unwrap()].to_vec();
        config
    };
    let with = |mut request: Request<Body>, key: &str| {
        request.headers_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
        request
    };
    let body = parameters(&json!({}));
    let server = Server::start_with(FakeModel::Seeded, keyed(folder.path())).await;
    let whole = server.send(with(post("/generate_stream", &body), "ann:first-secret")).await;
    let copy = left_by(folder.path());
    for entry in std::fs::read_dir(copy.path()).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        assert!(!bytes.windows(6).any(|window| window == b"secret"));
    }
    let next = Server::start_with(FakeModel::Seeded, keyed(copy.path())).await;
    let last = id_of(&whole.text);
    for (key, status) in [("ben:second-secret", 404), ("ann:first-secret", 200)] {
        let reply = next.send(with(again("/generate_stream", &body, last), key)).await;
        assert_eq!(reply.status, status, "{}", reply.text);
    }
}

#[tokio::test]
async fn answers_that_come_whole_are_not_written_down() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = journaled(folder.path(), Fsync::Always);
    config.engine.limits.prefix_cache = PrefixCaching::Disabled;
    let server = Server::start_with(FakeModel::Seeded, config).await;
    assert_eq!(server.post("/generate", parameters(&json!({}))).await.status, 200);
    let copy = left_by(folder.path());
    let bytes: u64 =
        std::fs::read_dir(copy.path()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    assert_eq!(bytes, 8, "a magic number and nothing else");
}
