//! Who may ask: keys from flags and from a file, asked for on every route but the probes, the pages and, unless it is
//! protected, `/metrics`.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::{Choice, ConstantTimeEq};
use thiserror::Error;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::cors::Origin;
use super::salts::Salts;
use crate::app::App;
use crate::error::{ApiError, ErrorKind};

/// How often the file of keys is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Routes that never need a key.
const PROBES: [&str; 6] = ["/", "/health", "/ping", "/livez", "/readyz", "/startupz"];

/// Where the numbers are.
pub(super) const METRICS: &str = "/metrics";

/// Whether it is a route that asks how the server is.
pub(super) fn is_probe(path: &str) -> bool {
    PROBES.contains(&path)
}

/// Pages that anyone may see, with the files below them; they ask for a key where one is needed.
const PAGES: [&str; 4] = ["/playground", "/docs", "/api-doc/openapi.json", "/openapi.json"];

/// Who may ask, as configured.
#[derive(Clone, Debug, Default)]
pub struct AccessConfig {
    /// Keys given as flags.
    pub keys: Vec<ApiKey>,
    /// A file of more.
    pub key_file: Option<PathBuf>,
    /// Who may read metrics.
    pub metrics: MetricsAccess,
    /// Whose pages may read answers; everyone's where there are none.
    pub origins: Vec<Origin>,
}

/// Who may read metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MetricsAccess {
    /// Everyone.
    #[default]
    Open,
    /// Whoever has a key.
    Keyed,
}

/// A secret that clients send. It is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(Arc<str>);

impl FromStr for ApiKey {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.into()))
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("ApiKey(..)")
    }
}

/// The name of the key a request came with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KeyName(pub(super) Arc<str>);

/// The keys cannot be had.
#[derive(Debug, Error)]
pub enum KeysError {
    /// The file cannot be read.
    #[error("read --api-key-file {}: {source}; check its path and permissions", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A key of a flag is empty, which every request without a key would match.
    #[error("accept --api-key: it is empty; give a key or leave the flag out")]
    Empty,
}

/// The keys that count.
pub struct Keys {
    fixed: Vec<(KeyName, ApiKey)>,
    file: Option<PathBuf>,
    of_file: RwLock<Vec<(KeyName, ApiKey)>>,
    metrics: MetricsAccess,
    /// Which prefixes are found again by whom.
    pub(super) salts: Salts,
}

impl Keys {
    /// Reads them.
    ///
    /// # Errors
    /// When the file cannot be read, or a key is empty.
    pub fn open(config: &AccessConfig) -> Result<Self, KeysError> {
        if config.keys.iter().any(|key| key.0.is_empty()) {
            return Err(KeysError::Empty);
        }
        let of_file = match &config.key_file {
            None => Vec::new(),
            Some(path) => parse(
                &std::fs::read_to_string(path)
                    .map_err(|source| KeysError::File { path: path.clone(), source })?,
            ),
        };
        let named =
            |(index, key): (usize, &ApiKey)| (KeyName(format!("key {}", index + 1).into()), key.clone());
        Ok(Self {
            fixed: config.keys.iter().enumerate().map(named).collect(),
            file: config.key_file.clone(),
            of_file: RwLock::new(of_file),
            metrics: config.metrics,
            salts: Salts::default(),
        })
    }

    /// Reads the file again whenever it has changed, until `stop`. While it cannot be read, the keys it had
    /// last count.
    pub async fn watch(self: Arc<Self>, stop: CancellationToken) {
        let Some(path) = self.file.clone() else { return };
        let mut ticks = tokio::time::interval(LOOK_AGAIN);
        let mut is_readable = true;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let text = tokio::fs::read_to_string(&path).await;
            if let Err(error) = &text
                && is_readable
            {
                warn!(path = %path.display(), %error, "the file of API keys cannot be read; its last keys count");
            }
            is_readable = text.is_ok();
            if let Ok(text) = text {
                self.replace(parse(&text));
            }
        }
    }

    fn replace(&self, keys: Vec<(KeyName, ApiKey)>) {
        let mut of_file = self.of_file.write().unwrap_or_else(PoisonError::into_inner);
        if *of_file != keys {
            info!(keys = keys.len(), "the file of API keys has changed");
            *of_file = keys;
        }
    }

    /// Whether anyone needs a key. A file without keys lets nobody in.
    fn are_needed(&self) -> bool {
        !self.fixed.is_empty() || self.file.is_some()
    }

    /// Whether `path` is for everyone.
    fn is_open(&self, path: &str, is_read: bool) -> bool {
        // The page where a key is typed holds none.
        let is_page = PAGES.iter().any(|page| {
            path.strip_prefix(page).is_some_and(|below| below.is_empty() || below.starts_with('/'))
        });
        let is_metrics = path == METRICS && self.metrics == MetricsAccess::Open;
        is_read && (PROBES.contains(&path) || is_page || is_metrics)
    }

    /// The name of the key that `given` is. Takes the same time wherever they differ, and for each key.
    fn name_of(&self, given: &str) -> Option<KeyName> {
        let of_file = self.of_file.read().unwrap_or_else(PoisonError::into_inner);
        let mut found = None;
        for (name, key) in self.fixed.iter().chain(of_file.iter()) {
            let equal: Choice = key.0.as_bytes().ct_eq(given.as_bytes());
            if bool::from(equal) {
                found = Some(name.clone());
            }
        }
        found
    }
}

/// One key a line, `name:key` or the key alone; empty lines and those that begin with `#` are none.
fn parse(text: &str) -> Vec<(KeyName, ApiKey)> {
    let lines = text.lines().map(str::trim).enumerate();
    let keys = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let named = keys.map(|(index, line)| match line.split_once(':') {
        Some((name, key)) => (name.trim().to_owned(), key.trim()),
        None => (format!("line {}", index + 1), line),
    });
    named
        .filter(|(_, key)| !key.is_empty())
        .map(|(name, key)| (KeyName(name.into()), ApiKey(key.into())))
        .collect()
}

/// Lets a request pass that has a key or needs none.
pub(super) async fn require_key(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let keys = &app.keys;
    let is_read = request.method().is_safe();
    if !keys.are_needed() || keys.is_open(request.uri().path(), is_read) {
        return next.run(request).await;
    }
    let Some(given) = bearer(request.headers()) else {
        return refuse("An API key is needed: send it as `Authorization: Bearer <key>`");
    };
    match keys.name_of(given) {
        Some(name) => {
            request.extensions_mut().insert(name);
            next.run(request).await
        }
        None => refuse("The API key is not known"),
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, key) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

fn refuse(message: &str) -> Response {
    ApiError::new(ErrorKind::Unauthorized, message).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_named_and_bare_keys() {
        let keys = parse("# ours\nalice: s3cret:x \n\n  bare\n:\nbob:\n");
        let expected = [("alice", "s3cret:x"), ("line 4", "bare")];
        let found: Vec<_> = keys.iter().map(|(name, key)| (&*name.0, &*key.0)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_key_is_never_shown() {
        let key: ApiKey = "s3cret".parse().unwrap();
        let config = AccessConfig { keys: vec![key], ..AccessConfig::default() };
        assert!(!format!("{config:?}").contains("s3cret"));
    }

    #[test]
    fn keys_are_compared_whole_and_by_case() {
        let keys = ["abc", "abcd"].map(|key| key.parse().unwrap()).to_vec();
        let keys = Keys::open(&AccessConfig { keys, ..AccessConfig::default() }).unwrap();
        let name = |given| keys.name_of(given).map(|name| name.0.to_string());
        assert_eq!(name("abcd").as_deref(), Some("key 2"));
        assert_eq!([name("ABC"), name("ab"), name("")], [None, None, None]);
    }
}
