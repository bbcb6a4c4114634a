//! Brings the files of one commit into the cache, several at once.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use tracing::warn;

use super::Patience;
use super::cache::RepoCache;
use super::client::{Client, RemoteFile};
use super::error::HubError;
use super::progress::{Progress, ProgressKind};
use super::transfer::{Attempt, Transfer};

/// Enough to fill a fast line, few enough for a slow one.
const AT_ONCE: usize = 4;
/// A file that changes more often than this while it is downloaded is given up.
const CHANGES: usize = 3;

/// Brings files of one commit into the cache.
pub(super) struct Fetcher<'a> {
    pub(super) client: &'a Client<'a>,
    pub(super) cache: &'a RepoCache,
    pub(super) commit: &'a str,
    pub(super) patience: &'a Patience,
    pub(super) progress: ProgressKind,
}

/// What is left of the patience.
pub(super) struct Retries<'a> {
    patience: &'a Patience,
    failures: u32,
}

/// How a run over several files ends early.
#[derive(Default)]
pub(super) struct Stop(AtomicBool);

impl Fetcher<'_> {
    /// Brings those of `files` that are not here. All are linked under the commit when it returns.
    pub(super) fn fetch(&self, files: &[String]) -> Result<(), HubError> {
        let absent: Vec<&String> = files.iter().filter(|file| !self.cache.has(self.commit, file)).collect();
        let probed =
            at_once(&absent, |file, _| patiently(self.patience, || self.client.probe(self.commit, file)))?;
        let mut to_come = Vec::new();
        for remote in probed {
            if self.cache.has_blob(&remote.etag, remote.size) {
                self.cache.link(self.commit, &remote.file, &remote.etag)?;
            } else {
                to_come.push(remote);
            }
        }
        if to_come.is_empty() {
            return Ok(());
        }
        self.check_space(&to_come)?;
        let total = to_come.iter().map(|remote| remote.size).sum();
        let progress = Progress::new(self.progress, self.client.name, to_come.len(), total);
        at_once(&to_come, |remote, stop| self.fetch_file(remote, &progress, stop))?;
        Ok(())
    }

    fn check_space(&self, to_come: &[RemoteFile]) -> Result<(), HubError> {
        let place = self.cache.root();
        std::fs::create_dir_all(place)
            .map_err(|source| HubError::Cache { path: place.to_path_buf(), source })?;
        let left = |remote: &RemoteFile| remote.size.saturating_sub(self.cache.partial_len(&remote.etag));
        let needed: u64 = to_come.iter().map(left).sum();
        // Where the system does not tell, the writes will.
        let free =
            rustix::fs::statvfs(place).map_or(u64::MAX, |disk| disk.f_bavail.saturating_mul(disk.f_frsize));
        if needed <= free {
            return Ok(());
        }
        Err(HubError::NoSpace {
            name: self.client.name.to_owned(),
            needed,
            free,
            place: place.to_path_buf(),
        })
    }

    fn fetch_file(&self, remote: &RemoteFile, progress: &Progress, stop: &Stop) -> Result<(), HubError> {
        let mut remote = remote.clone();
        for _ in 0..CHANGES {
            match self.fetch_content(&remote, progress, stop) {
                Err(HubError::Changed { .. }) => {
                    remote = patiently(self.patience, || self.client.probe(self.commit, &remote.file))?;
                }
                Ok(Attempt::Done) => return self.cache.link(self.commit, &remote.file, &remote.etag),
                Ok(Attempt::Stopped) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Err(HubError::Changed { file: remote.file, name: self.client.name.to_owned() })
    }

    fn fetch_content(
        &self,
        remote: &RemoteFile,
        progress: &Progress,
        stop: &Stop,
    ) -> Result<Attempt, HubError> {
        let busy = || progress.note(&format!("waiting for another download of {}", remote.file));
        let partial = self.cache.lock(&remote.etag, busy)?;
        let mut bar = progress.file(&remote.file, remote.size);
        if self.cache.has_blob(&remote.etag, remote.size) {
            bar.set(remote.size);
            return Ok(Attempt::Done);
        }
        let mut transfer =
            Transfer { client: self.client, commit: self.commit, remote, partial, bar, stop };
        let attempt = transfer.run(Retries::new(self.patience), progress)?;
        if attempt == Attempt::Done {
            self.cache.publish(&transfer.partial, &remote.etag)?;
        }
        Ok(attempt)
    }
}

/// Asks until there is an answer or the patience is at its end.
pub(super) fn patiently<T>(
    patience: &Patience,
    mut ask: impl FnMut() -> Result<T, HubError>,
) -> Result<T, HubError> {
    let mut retries = Retries::new(patience);
    loop {
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(error) => retries.after(error, |text| warn!("{text}"))?,
        }
    }
}

impl<'a> Retries<'a> {
    pub(super) fn new(patience: &'a Patience) -> Self {
        Self { patience, failures: 0 }
    }

    /// What was asked for came a step nearer: whatever failed before is forgiven.
    pub(super) fn forgive(&mut self) {
        self.failures = 0;
    }

    /// Waits until it is time for another attempt, or gives the error back when it is not worth one.
    pub(super) fn after(&mut self, error: HubError, say: impl FnOnce(&str)) -> Result<(), HubError> {
        self.failures += 1;
        if !error.is_transient() || self.failures >= self.patience.attempts {
            return Err(error);
        }
        let doubled = self.patience.first_delay * 2_u32.saturating_pow(self.failures - 1);
        let delay = doubled.max(error.retry_after()).min(self.patience.longest_delay);
        say(&format!("{}; trying again in {:.1} s", error.brief(), delay.as_secs_f64()));
        std::thread::sleep(delay);
        Ok(())
    }
}

impl Stop {
    pub(super) fn is_asked_for(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Does it for each of `items`, in their order but several at once, until one fails.
fn at_once<T: Sync, R: Send>(
    items: &[T],
    work: impl Fn(&T, &Stop) -> Result<R, HubError> + Sync,
) -> Result<Vec<R>, HubError> {
    let (next, stop) = (AtomicUsize::new(0), Stop::default());
    let results = Mutex::new(Vec::with_capacity(items.len()));
    let first_error = Mutex::new(None);
    let worker = || {
        while !stop.is_asked_for() {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(index) else { return };
            match work(item, &stop) {
                Ok(result) => {
                    results.lock().unwrap_or_else(PoisonError::into_inner).push((index, result));
                }
                Err(error) => {
                    stop.0.store(true, Ordering::Relaxed);
                    first_error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(items.len()) {
            scope.spawn(worker);
        }
    });
    if let Some(error) = first_error.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(index, _)| *index);
    Ok(results.into_iter().map(|(_, result)| result).collect())
}
