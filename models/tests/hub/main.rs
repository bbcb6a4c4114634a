//! Downloads from a small Hub on this host.
#![cfg(feature = "hub")]

mod cached;
mod errors;
mod resumed;
mod selected;
mod stub;

use std::path::Path;
use std::time::Duration;

use lockstep_models::hub::{HubSource, Network, Patience, ProgressKind, Token};
use stub::{Asked, NamedFile, Stub};

const CONFIG: NamedFile<'_> = ("config.json", b"{}");
const TOKENIZER: NamedFile<'_> = ("tokenizer.json", b"{\"a\":1}");
const NAME: &str = "org/small";

/// From this Hub into this folder, without waiting.
fn source(stub: &Stub, cache: &Path) -> HubSource {
    HubSource {
        endpoint: stub.endpoint.clone(),
        revision: "main".to_owned(),
        cache: cache.to_path_buf(),
        token: None,
        gguf_file: None,
        network: Network::Online,
        progress: ProgressKind::Lines,
        patience: Patience {
            attempts: 3,
            first_delay: Duration::from_millis(1),
            longest_delay: Duration::from_millis(2),
            silence: Duration::from_secs(30),
        },
    }
}

fn token(secret: &str) -> Option<Token> {
    Some(Token { secret: secret.to_owned(), origin: "HF_TOKEN".to_owned() })
}

/// A weight file that is larger than what is read at once.
fn weights() -> Vec<u8> {
    (0..700_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

/// The first bytes that were asked for with each GET of `file`'s contents.
fn ranges(asked: &[Asked], file: &str) -> Vec<Option<usize>> {
    let of_contents = |a: &&Asked| a.method == "GET" && a.path.contains("/at/") && a.path.contains(file);
    asked.iter().filter(of_contents).map(|asked| asked.from).collect()
}

/// Everything below `folder` whose name says that it is on its way.
fn incomplete(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            found.extend(incomplete(&entry.path()));
        } else if entry.file_name().to_string_lossy().contains("incomplete") {
            found.push(entry.path());
        }
    }
    found
}

/// The names in a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("it is a folder");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("a name")).collect();
    names.sort();
    names
}
