//! Downloads from a small Hub in this process.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// Serves the files of `org/small` over HTTP as the Hub does, and counts what is asked for.
struct SmallHub {
    endpoint: String,
    asked: Arc<AtomicUsize>,
}

fn small_hub(files: &[(&str, &str)]) -> SmallHub {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let endpoint = format!("http://{}", listener.local_addr().expect("it is bound"));
    let files: BTreeMap<String, String> =
        files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    // Ends with the test's process.
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            counter.fetch_add(1, Ordering::SeqCst);
            answer(&stream, &files);
        }
    });
    SmallHub { endpoint, asked }
}

fn answer(stream: &TcpStream, files: &BTreeMap<String, String>) {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let request = lines.next().unwrap_or_default();
    let range = lines
        .take_while(|line| !line.is_empty())
        .find_map(|line| line.to_ascii_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
    let path = request.split(' ').nth(1).unwrap_or_default();
    let listing = serde_json::json!({
        "sha": "c0ffee",
        "siblings": files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect::<Vec<_>>(),
    });
    let (status, body) = if path.starts_with("/api/models/org/small") {
        (200, listing.to_string())
    } else if let Some(body) =
        path.strip_prefix("/org/small/resolve/main/").and_then(|name| files.get(name))
    {
        let whole = range.as_deref() != Some("0-0");
        (206, if whole { body.clone() } else { body[..1].to_owned() })
    } else if path.contains("gated") {
        (401, String::new())
    } else {
        (404, String::new())
    };
    let size = path.rsplit('/').next().and_then(|name| files.get(name)).map_or(0, String::len);
    let mut stream = stream;
    let _ = write!(
        stream,
        "HTTP/1.1 {status} Fine\r\ncontent-length: {}\r\ncontent-range: bytes 0-0/{size}\r\n\
         etag: \"{}\"\r\nx-repo-commit: c0ffee\r\nconnection: close\r\n\r\n{body}",
        body.len(),
        path.rsplit('/').next().unwrap_or_default(),
    );
}

fn source(hub: &SmallHub, cache: &Path) -> HubSource {
    HubSource {
        revision: None,
        cache: Some(cache.to_path_buf()),
        token: None,
        endpoint: Some(hub.endpoint.clone()),
        network: Network::Online,
    }
}

const WHOLE: &[(&str, &str)] = &[
    ("README.md", "not needed"),
    ("config.json", "{}"),
    ("consolidated.safetensors", "the same once more"),
    ("model.safetensors", "weights"),
    ("onnx/model.safetensors", "something else"),
    ("tokenizer.json", "{\"a\":1}"),
];

#[test]
fn only_what_is_needed_is_fetched_and_only_once() {
    let hub = small_hub(WHOLE);
    let cache = tempfile::tempdir().expect("a folder");
    let folder = download("org/small", &source(&hub, cache.path())).expect("it is there");
    let mut names: Vec<_> = std::fs::read_dir(&folder)
        .expect("it is a folder")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"))
        .collect();
    names.sort();
    assert_eq!(names, ["config.json", "model.safetensors", "tokenizer.json"]);
    let weights = std::fs::read_to_string(folder.join("model.safetensors")).expect("a file");
    assert_eq!(weights, "weights");

    let before = hub.asked.load(Ordering::SeqCst);
    assert_eq!(download("org/small", &source(&hub, cache.path())).expect("it is there"), folder);
    assert_eq!(hub.asked.load(Ordering::SeqCst) - before, 1, "only the list was asked for again");

    let offline = HubSource { network: Network::Offline, ..source(&hub, cache.path()) };
    assert_eq!(download("org/small", &offline).expect("it is in the cache"), folder);
    assert_eq!(hub.asked.load(Ordering::SeqCst) - before, 1);
}

#[test]
fn what_cannot_be_had_is_explained() {
    let hub = small_hub(&[("config.json", "{}")]);
    let cache = tempfile::tempdir().expect("a folder");
    let online = source(&hub, cache.path());
    let offline = HubSource { network: Network::Offline, ..online.clone() };
    let cases = [
        (
            "org/absent",
            &online,
            "find model org/absent at revision main on the Hub: check both, or name a local folder",
        ),
        (
            "org/gated",
            &online,
            "download org/gated: the Hub asks for permission; accept the model's terms and set HF_TOKEN",
        ),
        ("org/small", &online, "find *.safetensors in org/small: only weights in that format are read"),
        (
            "org/small",
            &offline,
            "find org/small among the downloaded models: download it first, or unset HF_HUB_OFFLINE",
        ),
        (
            "a b",
            &online,
            "find model \"a b\": it is no folder here and no name on the Hub, which reads org/name",
        ),
        (
            "../etc",
            &online,
            "find model \"../etc\": it is no folder here and no name on the Hub, which reads org/name",
        ),
    ];
    for (name, source, expected) in cases {
        assert_eq!(download(name, source).expect_err(name).to_string(), expected);
    }
}
