//! The folder downloaded models are kept in, laid out as every tool of the Hub does, and shared with them.
//!
//! `models--org--name/blobs/<etag>` holds contents, `snapshots/<commit>/<file>` links to them,
//! `refs/<revision>` names a commit. A file under one of these names is whole; what is on its way is
//! `blobs/<etag>.incomplete`.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::error::HubError;

/// Length of a commit's name.
const COMMIT_DIGITS: usize = 40;

/// What is kept of one model.
#[derive(Clone, Debug)]
pub(super) struct RepoCache {
    root: PathBuf,
    folder_name: String,
}

/// A file's place while it is on its way. Other processes wait until it is dropped.
pub(super) struct Partial {
    pub(super) path: PathBuf,
    _lock: Option<File>,
}

impl RepoCache {
    pub(super) fn new(root: &Path, name: &str) -> Self {
        Self { root: root.to_path_buf(), folder_name: format!("models--{}", name.replace('/', "--")) }
    }

    /// The folder of all models.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// The commit a revision stood for when it was downloaded last.
    pub(super) fn commit_of(&self, revision: &str) -> Option<String> {
        let noted = fs::read_to_string(self.folder("refs").join(revision)).ok();
        let commit = noted.map(|text| text.trim().to_owned()).filter(|commit| is_file_name(commit));
        commit.or_else(|| is_commit(revision).then(|| revision.to_owned()))
    }

    /// The folder of a commit's files.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder("snapshots").join(commit)
    }

    /// Names of a commit's files that are here, each relative to the snapshot's folder.
    pub(super) fn files(&self, commit: &str) -> Vec<String> {
        let mut found = Vec::new();
        walk(&self.snapshot(commit), "", &mut found);
        found.sort();
        found
    }

    /// Whether a commit's file is here. A link to nothing is not.
    pub(super) fn has(&self, commit: &str, file: &str) -> bool {
        self.snapshot(commit).join(file).is_file()
    }

    /// Whether this content is here, whole.
    pub(super) fn has_blob(&self, etag: &str, size: u64) -> bool {
        // A file of another size is no such content, whatever its name is.
        fs::metadata(self.blob(etag)).is_ok_and(|blob| blob.is_file() && blob.len() == size)
    }

    /// Bytes of this content that came before.
    pub(super) fn partial_len(&self, etag: &str) -> u64 {
        fs::metadata(self.incomplete(etag)).map_or(0, |partial| partial.len())
    }

    /// Waits until no other process is fetching this content. `busy` is told when there is one.
    pub(super) fn lock(&self, etag: &str, busy: impl FnOnce()) -> Result<Partial, HubError> {
        let blobs = self.folder("blobs");
        fs::create_dir_all(&blobs).map_err(|source| failed(&blobs, source))?;
        // The place and the kind of lock are those of the Hub's Python client.
        let locks = self.root.join(".locks").join(&self.folder_name);
        fs::create_dir_all(&locks).map_err(|source| failed(&locks, source))?;
        let path = locks.join(format!("{etag}.lock"));
        let lock = File::options().create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(|source| failed(&path, source))?;
        let locked = match lock.try_lock() {
            Err(TryLockError::WouldBlock) => {
                busy();
                lock.lock()
            }
            Err(TryLockError::Error(error)) => Err(error),
            Ok(()) => Ok(()),
        };
        match locked {
            Ok(()) => Ok(Partial { path: self.incomplete(etag), _lock: Some(lock) }),
            // Some network file systems cannot lock: nobody else may write to a file of our own.
            Err(_) => Ok(Partial { path: self.unique(&self.incomplete(etag)), _lock: None }),
        }
    }

    /// Gives what came its final name.
    pub(super) fn publish(&self, partial: &Partial, etag: &str) -> Result<(), HubError> {
        let blob = self.blob(etag);
        fs::rename(&partial.path, &blob).map_err(|source| failed(&blob, source))
    }

    /// Makes a content a commit's file.
    pub(super) fn link(&self, commit: &str, file: &str, etag: &str) -> Result<(), HubError> {
        let place = self.snapshot(commit).join(file);
        let depth = 2 + file.matches('/').count();
        let target = PathBuf::from("../".repeat(depth)).join("blobs").join(etag);
        self.replace(&place, |path| symlink(&target, path))
    }

    /// Notes which commit a revision stands for.
    pub(super) fn note(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        if revision == commit || self.commit_of(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        self.replace(&self.folder("refs").join(revision), |path| fs::write(path, commit))
    }

    /// Makes a file under another name and gives it its own when it is whole.
    fn replace(&self, place: &Path, make: impl FnOnce(&Path) -> io::Result<()>) -> Result<(), HubError> {
        let folder = place.parent().unwrap_or(&self.root);
        let unfinished = self.unique(&self.folder("blobs").join("link"));
        let made = fs::create_dir_all(folder)
            .and_then(|()| fs::create_dir_all(self.folder("blobs")))
            .and_then(|()| make(&unfinished))
            .and_then(|()| fs::rename(&unfinished, place));
        made.map_err(|source| failed(place, source))
    }

    /// A name nobody else uses.
    fn unique(&self, path: &Path) -> PathBuf {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{}-{count}.incomplete", std::process::id()));
        PathBuf::from(name)
    }

    fn folder(&self, kind: &str) -> PathBuf {
        self.root.join(&self.folder_name).join(kind)
    }

    fn blob(&self, etag: &str) -> PathBuf {
        self.folder("blobs").join(etag)
    }

    fn incomplete(&self, etag: &str) -> PathBuf {
        self.folder("blobs").join(format!("{etag}.incomplete"))
    }
}

/// Whether it is the whole name of a commit.
pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == COMMIT_DIGITS && revision.chars().all(|c| c.is_ascii_hexdigit())
}

/// Whether what a server sent can be the name of a file in a folder of ours.
pub(super) fn is_file_name(text: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=128).contains(&text.len()) && !text.starts_with('.') && text.chars().all(legal)
}

fn failed(path: &Path, source: io::Error) -> HubError {
    HubError::Cache { path: path.to_path_buf(), source }
}

fn walk(folder: &Path, prefix: &str, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            walk(&entry.path(), &format!("{name}/"), found);
        } else if entry.path().is_file() {
            found.push(name);
        }
    }
}
