//! Brings one file over, from where it stopped, and checks it: it is whole, or it is not there.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};

use ring::digest::{Context, SHA256};

use super::cache::Partial;
use super::client::{Client, RemoteFile};
use super::error::HubError;
use super::fetch::{Retries, Stop};
use super::progress::{FileProgress, Progress};

const CHUNK: usize = 1 << 18;
/// Whatever corrupts a file this often will do it again.
const CORRUPT_TIMES: usize = 2;
/// Hexadecimal digits of a SHA-256.
const SHA256_DIGITS: usize = 64;

/// One content on its way.
pub(super) struct Transfer<'a> {
    pub(super) client: &'a Client<'a>,
    pub(super) commit: &'a str,
    pub(super) remote: &'a RemoteFile,
    pub(super) partial: Partial,
    pub(super) bar: FileProgress<'a>,
    pub(super) stop: &'a Stop,
}

/// How it went, unless it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attempt {
    /// It is here, whole.
    Done,
    /// Another file failed.
    Stopped,
}

impl Transfer<'_> {
    /// Tries until it is here or the patience is at its end.
    pub(super) fn run(
        &mut self,
        mut retries: Retries<'_>,
        progress: &Progress,
    ) -> Result<Attempt, HubError> {
        let (mut furthest, mut corrupt) = (0, 0);
        loop {
            let error = match self.attempt() {
                Ok(attempt) => return Ok(attempt),
                Err(error) => error,
            };
            corrupt += usize::from(matches!(error, HubError::Corrupt { .. }));
            if corrupt == CORRUPT_TIMES {
                return Err(error);
            }
            let here = fs::metadata(&self.partial.path).map_or(0, |file| file.len());
            if here > furthest {
                // However often the line breaks: what gets further each time gets to the end.
                furthest = here;
                retries.forgive();
            }
            retries.after(error, |text| progress.note(text))?;
        }
    }

    fn attempt(&mut self) -> Result<Attempt, HubError> {
        let path = self.partial.path.clone();
        let failed = |source| HubError::Cache { path: path.clone(), source };
        let file = File::options().create(true).truncate(false).read(true).write(true).open(&path);
        let mut file = file.map_err(failed)?;
        let mut start = file.metadata().map_err(failed)?.len();
        if start > self.remote.size {
            file.set_len(0).map_err(failed)?;
            start = 0;
        }
        // A file without a byte needs no connection either.
        if start < self.remote.size {
            let incoming = self.client.open(self.commit, self.remote, start)?;
            if incoming.start < start {
                file.set_len(incoming.start).map_err(failed)?;
            }
            file.seek(SeekFrom::Start(incoming.start)).map_err(failed)?;
            self.bar.resume_at(incoming.start);
            if self.copy(incoming.bytes, incoming.start, &mut file)? == Attempt::Stopped {
                return Ok(Attempt::Stopped);
            }
            file.sync_data().map_err(|source| self.write_failed(self.remote.size, source))?;
        }
        self.bar.set(self.remote.size);
        let found = self.hash(&mut file).map_err(failed)?;
        if found.as_ref().is_none_or(|found| *found == self.remote.etag) {
            return Ok(Attempt::Done);
        }
        file.set_len(0).map_err(failed)?;
        Err(HubError::Corrupt {
            file: self.remote.file.clone(),
            name: self.client.name.to_owned(),
            found: found.unwrap_or_default(),
            expected: self.remote.etag.clone(),
        })
    }

    fn copy(&mut self, from: Box<dyn Read>, start: u64, to: &mut File) -> Result<Attempt, HubError> {
        let size = self.remote.size;
        let mut from = from.take(size - start);
        let mut buffer = vec![0; CHUNK];
        let mut position = start;
        while position < size {
            if self.stop.is_asked_for() {
                return Ok(Attempt::Stopped);
            }
            let count = match from.read(&mut buffer) {
                Ok(0) => return Err(self.cut(position, "the connection was cut".to_owned())),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                    return Err(self.cut(position, "the connection was cut".to_owned()));
                }
                Err(error) => return Err(self.cut(position, error.to_string())),
            };
            to.write_all(&buffer[..count]).map_err(|source| self.write_failed(position, source))?;
            position += count as u64;
            self.bar.set(position);
        }
        Ok(Attempt::Done)
    }

    /// The SHA-256 of what came, read back from where it lies, if the ETag is one to compare with.
    fn hash(&self, file: &mut File) -> io::Result<Option<String>> {
        let etag = &self.remote.etag;
        if etag.len() != SHA256_DIGITS || !etag.chars().all(|c| c.is_ascii_hexdigit()) {
            return Ok(None);
        }
        let mut context = Context::new(&SHA256);
        let mut buffer = vec![0; CHUNK];
        file.seek(SeekFrom::Start(0))?;
        loop {
            let count = file.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            context.update(&buffer[..count]);
        }
        Ok(Some(context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    fn cut(&self, position: u64, why: String) -> HubError {
        self.client.truncated(self.remote, position, why)
    }

    fn write_failed(&self, position: u64, source: io::Error) -> HubError {
        let full = [ErrorKind::StorageFull, ErrorKind::QuotaExceeded, ErrorKind::FileTooLarge];
        if !full.contains(&source.kind()) {
            return HubError::Cache { path: self.partial.path.clone(), source };
        }
        HubError::DiskFull {
            file: self.remote.file.clone(),
            name: self.client.name.to_owned(),
            place: self.partial.path.parent().unwrap_or(&self.partial.path).to_path_buf(),
            missing: self.remote.size - position,
            source,
        }
    }
}
