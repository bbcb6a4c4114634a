//! Downloads a model's files from the Hub into the cache every other tool of that Hub uses.
//!
//! Only the files a model is served from are fetched; what is in the cache is not fetched again. In the order
//! a download takes: the [`client`] lists the files, the [`selection`] picks some, [`fetch`] brings those that
//! the [`cache`] lacks, each as one [`transfer`].

mod cache;
mod client;
mod error;
mod fetch;
mod progress;
mod selection;
mod transfer;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing::warn;

use self::cache::RepoCache;
use self::client::{Client, Listing};
use self::fetch::Fetcher;
use self::selection::Weights;

pub use self::error::{HubError, TokenShown};
pub use self::progress::ProgressKind;
pub use self::selection::Problem;

/// How often the Hub is asked for news of a model that is here already.
const ATTEMPTS_WITH_A_CHOICE: u32 = 2;

/// Where the Hub is, which version of a model is meant, where it is kept.
#[derive(Clone, Debug)]
pub struct HubSource {
    /// The address of the Hub.
    pub endpoint: String,
    /// Branch, tag or commit.
    pub revision: String,
    /// The folder downloaded models are kept in.
    pub cache: PathBuf,
    /// Opens gated and private models.
    pub token: Option<Token>,
    /// The one file to fetch of a model that comes as GGUF files.
    pub gguf_file: Option<String>,
    /// Whether the Hub may be asked at all.
    pub network: Network,
    /// How it is told how far the download is.
    pub progress: ProgressKind,
    /// How much the Hub may fail.
    pub patience: Patience,
}

/// A secret, and where it came from.
#[derive(Clone)]
pub struct Token {
    /// Shown to the Hub and to nobody else.
    pub secret: String,
    /// `HF_TOKEN`, or the path of a file.
    pub origin: String,
}

/// Whether the network may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// It may.
    Online,
    /// Only what is in the cache counts.
    Offline,
}

/// How much the Hub may fail before it is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// How often in a row the same thing may fail without getting any further.
    pub attempts: u32,
    /// Waited after the first failure; doubled after each that follows.
    pub first_delay: Duration,
    /// However often it failed, and however long the Hub asks for.
    pub longest_delay: Duration,
    /// How long the Hub may say nothing while something is expected of it.
    pub silence: Duration,
}

impl Patience {
    /// For a Hub on the other side of the world and a line that breaks.
    pub const USUAL: Self = Self {
        attempts: 5,
        first_delay: Duration::from_secs(1),
        longest_delay: Duration::from_secs(30),
        silence: Duration::from_secs(30),
    };
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token from {}", self.origin)
    }
}

/// Brings the files of `name` onto this host and returns the folder they are in, or the GGUF file that was
/// chosen. Blocks until all of them are here.
///
/// When the Hub is out of reach, a version that was downloaded before is as good.
///
/// # Errors
/// When there is no such model, it is not to be had, or the way there is broken.
pub fn download(name: &str, source: &HubSource) -> Result<PathBuf, HubError> {
    bring(name, source, Extent::Served)
}

/// The same with `config.json` alone: what a model is, without what it weighs.
///
/// # Errors
/// As for [`download`].
pub fn download_config(name: &str, source: &HubSource) -> Result<PathBuf, HubError> {
    bring(name, source, Extent::Config)
}

/// How much of a model is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extent {
    /// All it is served from.
    Served,
    /// Its configuration.
    Config,
}

fn bring(name: &str, source: &HubSource, extent: Extent) -> Result<PathBuf, HubError> {
    check_name(name)?;
    check_revision(name, &source.revision)?;
    let cache = RepoCache::new(&source.cache, name);
    match source.network {
        Network::Offline => downloaded_before((name, extent), source, &cache),
        Network::Online => match fetch_from_hub((name, extent), source, &cache) {
            Err(error @ (HubError::Unreachable { .. } | HubError::Busy { .. })) => {
                let Ok(place) = downloaded_before((name, extent), source, &cache) else {
                    return Err(error);
                };
                warn!("{}; taking {name} as it was downloaded before, {}", error.brief(), place.display());
                Ok(place)
            }
            result => result,
        },
    }
}

fn check_name(name: &str) -> Result<(), HubError> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let parts: Vec<&str> = name.split('/').collect();
    let well_formed =
        parts.iter().all(|part| !part.is_empty() && !part.starts_with('.') && part.chars().all(legal));
    if well_formed && parts.len() <= 2 { Ok(()) } else { Err(HubError::Name { name: name.to_owned() }) }
}

/// A revision becomes a path in the cache.
fn check_revision(name: &str, revision: &str) -> Result<(), HubError> {
    if selection::is_plain(revision) && !revision.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Ok(());
    }
    Err(HubError::Revision { name: name.to_owned(), revision: revision.to_owned() })
}

fn fetch_from_hub(
    (name, extent): (&str, Extent),
    source: &HubSource,
    cache: &RepoCache,
) -> Result<PathBuf, HubError> {
    let client = Client::new(name, source)?;
    let mut patience = source.patience;
    if downloaded_before((name, extent), source, cache).is_ok() {
        // There is something to fall back on: nobody has to wait long for a Hub that is out of reach.
        patience.attempts = patience.attempts.min(ATTEMPTS_WITH_A_CHOICE);
    }
    let Listing { commit, files } = fetch::patiently(&patience, || client.list())?;
    let unusable = |problem| HubError::Unusable { name: name.to_owned(), problem };
    let selection = match (&source.gguf_file, extent) {
        (Some(asked), _) => selection::select_gguf(&files, asked),
        (None, Extent::Served) => selection::select(&files),
        (None, Extent::Config) => selection::select_config(&files),
    };
    let selection = selection.map_err(unusable)?;
    let fetcher = Fetcher {
        client: &client,
        cache,
        commit: &commit,
        patience: &source.patience,
        progress: source.progress,
    };
    fetcher.fetch(&selection.small)?;
    let weights = match selection.weights {
        Weights::Files(files) => files,
        Weights::Indexed => shards(name, &cache.snapshot(&commit))?,
    };
    if let Some(shard) = weights.iter().find(|shard| !files.contains(shard)) {
        return Err(unusable(Problem::NoShard { shard: shard.clone() }));
    }
    fetcher.fetch(&weights)?;
    // Only once all of it is here: until then the revision stands for what was whole before.
    if extent == Extent::Served || cache.commit_of(&source.revision).is_none() {
        cache.note(&source.revision, &commit)?;
    }
    Ok(place(source, &cache.snapshot(&commit)))
}

/// What `--offline` serves from: everything that is needed, or an error that names what is missing.
fn downloaded_before(
    (name, extent): (&str, Extent),
    source: &HubSource,
    cache: &RepoCache,
) -> Result<PathBuf, HubError> {
    let not_cached = |missing| HubError::NotCached {
        name: name.to_owned(),
        revision: source.revision.clone(),
        missing,
        place: cache.root().to_path_buf(),
    };
    let Some(commit) = cache.commit_of(&source.revision) else {
        return Err(not_cached("any file".to_owned()));
    };
    let there = cache.files(&commit);
    let needed = match (&source.gguf_file, extent) {
        (Some(asked), _) => vec![asked.clone()],
        (None, Extent::Config) => vec![selection::CONFIG.to_owned()],
        (None, Extent::Served) => needed_of(name, &there, &cache.snapshot(&commit))?,
    };
    let missing: Vec<&String> = needed.iter().filter(|file| !there.contains(file)).collect();
    if missing.is_empty() {
        return Ok(place(source, &cache.snapshot(&commit)));
    }
    Err(not_cached(selection::list(missing.into_iter())))
}

fn needed_of(name: &str, there: &[String], snapshot: &Path) -> Result<Vec<String>, HubError> {
    let mut needed = selection::always_needed();
    match selection::weights_of(there) {
        Ok(Weights::Indexed) => needed.extend(shards(name, snapshot)?),
        Ok(Weights::Files(files)) => needed.extend(files),
        Err(_) => needed.push(selection::WHOLE.to_owned()),
    }
    Ok(needed)
}

fn shards(name: &str, snapshot: &Path) -> Result<Vec<String>, HubError> {
    let path = snapshot.join(selection::INDEX);
    let index = std::fs::read(&path).map_err(|source| HubError::Cache { path: path.clone(), source })?;
    let shards = selection::shards(&index).map_err(|source| HubError::Index {
        file: selection::INDEX.to_owned(),
        name: name.to_owned(),
        source,
    })?;
    Ok(shards.into_iter().collect())
}

fn place(source: &HubSource, snapshot: &Path) -> PathBuf {
    source.gguf_file.as_ref().map_or_else(|| snapshot.to_path_buf(), |file| snapshot.join(file))
}
