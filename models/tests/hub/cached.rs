//! The folder downloaded models are kept in, shared with every other tool of the Hub.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::symlink;

use lockstep_models::hub::{HubError, download};

use crate::stub::{Fault, Model, Stub, commit, etag_of};
use crate::*;

const FILES: [NamedFile<'_>; 3] = [CONFIG, TOKENIZER, ("model.safetensors", b"weights")];

/// Lays `files` out as the Hub's Python client does.
fn lay_out(cache: &Path, commit: &str, revision: &str, files: &[NamedFile<'_>]) {
    let model = cache.join("models--org--small");
    let snapshot = model.join("snapshots").join(commit);
    for folder in [&model.join("blobs"), &model.join("refs"), &snapshot] {
        fs::create_dir_all(folder).expect("it can be made");
    }
    fs::write(model.join("refs").join(revision), commit).expect("it can be written");
    for (name, bytes) in files {
        let etag = etag_of(name, bytes);
        fs::write(model.join("blobs").join(&etag), bytes).expect("it can be written");
        symlink(format!("../../blobs/{etag}"), snapshot.join(name)).expect("it can be linked");
    }
}

#[test]
fn what_another_tool_downloaded_is_not_downloaded_again() {
    let stub = Stub::new(&[(NAME, Model::new(&FILES))]);
    let cache = tempfile::tempdir().expect("a folder");
    lay_out(cache.path(), &commit('a'), "main", &FILES);
    let folder = download(NAME, &source(&stub, cache.path())).expect("it is here");
    assert!(folder.ends_with(commit('a')));
    let asked = stub.asked();
    assert_eq!(asked.len(), 1, "only the list was asked for: {asked:?}");
}

#[test]
fn the_layout_is_the_one_other_tools_read() {
    let stub = Stub::new(&[(NAME, Model::new(&FILES))]);
    let (ours, theirs) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    download(NAME, &source(&stub, ours.path())).expect("it is there");
    lay_out(theirs.path(), &commit('a'), "main", &FILES);
    let listing = |root: &Path| {
        let model = root.join("models--org--small");
        let snapshot = model.join("snapshots").join(commit('a'));
        let links = names(&snapshot).into_iter().map(|name| {
            let link = fs::read_link(snapshot.join(&name)).expect("a link");
            let content = fs::read(snapshot.join(&name)).expect("it leads somewhere");
            (name, link, content)
        });
        let noted = fs::read_to_string(model.join("refs/main")).expect("it is noted");
        (names(&model.join("blobs")), links.collect::<Vec<_>>(), noted)
    };
    assert_eq!(listing(ours.path()), listing(theirs.path()));
}

#[test]
fn a_new_commit_transfers_only_what_changed() {
    let stub = Stub::new(&[(NAME, Model::new(&FILES))]);
    let cache = tempfile::tempdir().expect("a folder");
    download(NAME, &source(&stub, cache.path())).expect("it is there");
    let changed: [NamedFile<'_>; 3] = [("config.json", b"{\"new\":1}"), TOKENIZER, FILES[2]];
    stub.set(NAME, Model::default().commit(&commit('b'), "main", &changed));
    stub.asked();
    let folder = download(NAME, &source(&stub, cache.path())).expect("it is there");
    assert_eq!(fs::read(folder.join("config.json")).expect("a file"), b"{\"new\":1}");
    let asked = stub.asked();
    let fetched: Vec<_> = ["config.json", "tokenizer.json", "model.safetensors"]
        .map(|file| ranges(&asked, file).len())
        .into_iter()
        .collect();
    assert_eq!(fetched, [1, 0, 0]);
}

#[test]
fn a_revision_stands_for_what_is_whole_until_the_next_is() {
    let stub = Stub::new(&[(NAME, Model::new(&FILES))]);
    let cache = tempfile::tempdir().expect("a folder");
    let before = download(NAME, &source(&stub, cache.path())).expect("it is there");
    let changed: [NamedFile<'_>; 3] = [CONFIG, TOKENIZER, ("model.safetensors", b"weights of today")];
    stub.set(NAME, Model::default().commit(&commit('b'), "main", &changed));
    stub.fail("model.safetensors", (0..3).map(|_| Fault::CutAfter(0)));
    download(NAME, &source(&stub, cache.path())).expect_err("it is cut");
    let offline = HubSource { network: Network::Offline, ..source(&stub, cache.path()) };
    assert_eq!(download(NAME, &offline).expect("the former is here"), before);
}

#[test]
fn offline_opens_no_connection() {
    let stub = Stub::new(&[(NAME, Model::new(&FILES))]);
    let cache = tempfile::tempdir().expect("a folder");
    lay_out(cache.path(), &commit('a'), "main", &FILES);
    // Whoever connected would wait in the queue.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.set_nonblocking(true).expect("it can be");
    let endpoint = format!("http://{}", listener.local_addr().expect("it is bound"));
    let offline = HubSource { network: Network::Offline, endpoint, ..source(&stub, cache.path()) };
    download(NAME, &offline).expect("it is here");
    download("org/absent", &offline).expect_err("it is not here");
    assert!(listener.accept().is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock));
}

#[test]
fn offline_needs_every_part() {
    let index = br#"{"weight_map":{"a":"model-1.safetensors","b":"model-2.safetensors"}}"#;
    let all: [NamedFile<'_>; 5] = [
        CONFIG,
        TOKENIZER,
        ("model-1.safetensors", b"one"),
        ("model-2.safetensors", b"two"),
        ("model.safetensors.index.json", index),
    ];
    let stub = Stub::new(&[]);
    for (absent, (name, bytes)) in all.iter().enumerate().take(4) {
        let cache = tempfile::tempdir().expect("a folder");
        let mut there = all.to_vec();
        there.remove(absent);
        lay_out(cache.path(), &commit('a'), "main", &there);
        let offline = HubSource { network: Network::Offline, ..source(&stub, cache.path()) };
        let error = download(NAME, &offline).expect_err(name);
        assert!(matches!(&error, HubError::NotCached { missing, .. } if missing == name), "{error}");

        lay_out(cache.path(), &commit('b'), "main", &all);
        assert!(download(NAME, &offline).is_ok());
        // A link whose content was removed is no file.
        let blobs = cache.path().join("models--org--small/blobs");
        fs::remove_file(blobs.join(etag_of(name, bytes))).expect("it is there");
        let error = download(NAME, &offline).expect_err(name);
        assert!(matches!(&error, HubError::NotCached { missing, .. } if missing == name), "{error}");
    }
}

#[test]
fn a_content_of_the_wrong_size_is_fetched_again() {
    let stub = Stub::new(&[(NAME, Model::new(&FILES))]);
    let cache = tempfile::tempdir().expect("a folder");
    let blobs = cache.path().join("models--org--small/blobs");
    fs::create_dir_all(&blobs).expect("it can be made");
    fs::write(blobs.join(etag_of("model.safetensors", b"weights")), b"weightsweights").expect("written");
    let folder = download(NAME, &source(&stub, cache.path())).expect("it is there");
    assert_eq!(fs::read(folder.join("model.safetensors")).expect("a file"), b"weights");
}

#[test]
fn a_hub_out_of_reach_does_not_keep_from_what_is_here() {
    let stub = Stub::new(&[(NAME, Model::new(&FILES))]);
    let cache = tempfile::tempdir().expect("a folder");
    let folder = download(NAME, &source(&stub, cache.path())).expect("it is there");
    stub.fail("list", (0..3).map(|_| Fault::Status(502, "")));
    assert_eq!(download(NAME, &source(&stub, cache.path())).expect("it is here"), folder);
    let nowhere = HubSource { endpoint: closed_port(), ..source(&stub, cache.path()) };
    assert_eq!(download(NAME, &nowhere).expect("it is here"), folder);
}

#[test]
fn several_at_once_do_not_get_in_each_others_way() {
    let weights = weights();
    let files: [NamedFile<'_>; 3] = [CONFIG, TOKENIZER, ("model.safetensors", &weights)];
    let stub = Stub::new(&[(NAME, Model::new(&files))]);
    let cache = tempfile::tempdir().expect("a folder");
    let source = source(&stub, cache.path());
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..6).map(|_| scope.spawn(|| download(NAME, &source))).collect();
        for run in runs {
            let folder = run.join().expect("no panic").expect("it is there");
            assert!(fs::read(folder.join("model.safetensors")).expect("a file") == weights);
        }
    });
    assert_eq!(ranges(&stub.asked(), "model.safetensors"), [None], "one brings it, all have it");
    assert!(incomplete(cache.path()).is_empty());
}

/// An address nobody listens at.
pub(crate) fn closed_port() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    format!("http://{}", listener.local_addr().expect("it is bound"))
}
