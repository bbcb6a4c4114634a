//! Downloads a model's files from the Hub into the cache every other tool of that Hub uses.
//!
//! Only the files a model is served from are fetched; those in the cache are not fetched again.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use thiserror::Error;

const RETRIES: usize = 5;

/// Files a model is served from, beside its weights.
const FILES: &[&str] = &[
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "model.safetensors.index.json",
];

/// Where the Hub is, which version of a model is meant, where it is kept.
#[derive(Clone, Debug)]
pub struct HubSource {
    /// Branch, tag or commit; absent: `main`.
    pub revision: Option<String>,
    /// The folder downloaded models are kept in; absent: the one in the home folder that is usual.
    pub cache: Option<PathBuf>,
    /// Opens gated and private models; absent: the one that is stored in the cache, if any.
    pub token: Option<String>,
    /// Another Hub than the public one.
    pub endpoint: Option<String>,
    /// Whether it may be asked at all.
    pub network: Network,
}

/// Whether the network may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// It may.
    Online,
    /// Only what is in the cache counts.
    Offline,
}

/// A model cannot be had from the Hub.
#[derive(Debug, Error)]
pub enum HubError {
    /// It cannot be the name of a model.
    #[error("find model {name:?}: it is no folder here and no name on the Hub, which reads org/name")]
    Name {
        /// What was asked for.
        name: String,
    },
    /// There is no such model or version.
    #[error("find model {name} at revision {revision} on the Hub: check both, or name a local folder")]
    NotFound {
        /// What was asked for.
        name: String,
        /// Which version.
        revision: String,
    },
    /// It is gated or private.
    #[error("download {name}: the Hub asks for permission; accept the model's terms and set HF_TOKEN")]
    Denied {
        /// What was asked for.
        name: String,
    },
    /// It has no weights in the one format that is read.
    #[error("find *.safetensors in {name}: only weights in that format are read")]
    NoWeights {
        /// What was asked for.
        name: String,
    },
    /// It is not in the cache, and the network is off limits.
    #[error("find {name} among the downloaded models: download it first, or unset HF_HUB_OFFLINE")]
    NotCached {
        /// What was asked for.
        name: String,
    },
    /// Anything else between here and there.
    #[error("download {what}: {source}; is there a network? a folder is served without one")]
    Transfer {
        /// Which file or list.
        what: String,
        /// What went wrong.
        source: Box<ApiError>,
    },
}

/// Brings the files of `name` onto this host and returns the folder they are in. Blocks until they are here,
/// with a progress bar for each where standard error is a terminal.
///
/// # Errors
/// When there is no such model, it is not to be had, or the way there is broken.
pub fn download(name: &str, source: &HubSource) -> Result<PathBuf, HubError> {
    check_name(name)?;
    let revision = source.revision.clone().unwrap_or_else(|| "main".to_owned());
    let repo = Repo::with_revision(name.to_owned(), RepoType::Model, revision.clone());
    if source.network == Network::Offline {
        let cache = source.cache.clone().map_or_else(Cache::default, Cache::new);
        let config = cache.repo(repo).get("config.json");
        let folder = config.as_deref().and_then(Path::parent).map(Path::to_path_buf);
        return folder.ok_or_else(|| HubError::NotCached { name: name.to_owned() });
    }
    let files = Remote { name, revision: &revision, repo: connect(repo, source)? };
    let mut folder = None;
    for file in files.needed()? {
        let path = files.repo.get(&file).map_err(|error| files.explain(&file, error))?;
        folder = path.parent().map(Path::to_path_buf).or(folder);
    }
    folder.ok_or_else(|| HubError::NoWeights { name: name.to_owned() })
}

fn check_name(name: &str) -> Result<(), HubError> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let parts: Vec<&str> = name.split('/').collect();
    let well_formed =
        parts.iter().all(|part| !part.is_empty() && !part.starts_with('.') && part.chars().all(legal));
    if well_formed && parts.len() <= 2 { Ok(()) } else { Err(HubError::Name { name: name.to_owned() }) }
}

fn connect(repo: Repo, source: &HubSource) -> Result<ApiRepo, HubError> {
    let cache = source.cache.clone().map_or_else(Cache::default, Cache::new);
    let mut builder = ApiBuilder::from_cache(cache)
        .with_retries(RETRIES)
        .with_progress(std::io::stderr().is_terminal())
        .with_user_agent("lockstep", env!("CARGO_PKG_VERSION"));
    if let Some(token) = &source.token {
        builder = builder.with_token(Some(token.clone()));
    }
    if let Some(endpoint) = &source.endpoint {
        builder = builder.with_endpoint(endpoint.clone());
    }
    let api = builder.build();
    let api = api.map_err(|error| HubError::Transfer { what: repo.url(), source: Box::new(error) })?;
    Ok(api.repo(repo))
}

/// One model as the Hub has it.
struct Remote<'a> {
    name: &'a str,
    revision: &'a str,
    repo: ApiRepo,
}

impl Remote<'_> {
    /// The files to fetch, weights last, so that a mistake shows before the long download.
    fn needed(&self) -> Result<Vec<String>, HubError> {
        let info = self.repo.info().map_err(|error| self.explain("the list of files", error))?;
        let there: Vec<String> = info.siblings.into_iter().map(|file| file.rfilename).collect();
        let mut weights: Vec<String> = there.iter().filter(|file| is_weights(file)).cloned().collect();
        // Some models come twice: cut for the original program as well.
        if weights.iter().any(|file| file.starts_with("model")) {
            weights.retain(|file| file.starts_with("model"));
        }
        if weights.is_empty() {
            return Err(HubError::NoWeights { name: self.name.to_owned() });
        }
        let mut files: Vec<String> =
            there.into_iter().filter(|file| FILES.contains(&file.as_str())).collect();
        files.extend(weights);
        Ok(files)
    }

    fn explain(&self, what: &str, error: ApiError) -> HubError {
        let name = self.name.to_owned();
        match status_of(&error) {
            // The Hub hides private models from strangers behind the first of these.
            Some(401 | 403) => HubError::Denied { name },
            Some(404) => HubError::NotFound { name, revision: self.revision.to_owned() },
            _ => HubError::Transfer { what: format!("{what} of {name}"), source: Box::new(error) },
        }
    }
}

fn is_weights(file: &str) -> bool {
    file.ends_with(".safetensors") && !file.contains('/')
}

fn status_of(error: &ApiError) -> Option<u16> {
    if let ApiError::TooManyRetries(error) = error {
        return status_of(error);
    }
    let ApiError::RequestError(error) = error else { return None };
    if let ureq::Error::StatusCode(status) = error.as_ref() { Some(*status) } else { None }
}

#[cfg(test)]
mod tests;
