//! The folder of segments.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::record::{self, MAGIC};
use super::{Found, path_of};

/// Where segments are written to. Another stands in for it in tests.
pub(super) trait Medium: Send + 'static {
    /// Begins segment `number`; what is appended goes there.
    fn begin(&mut self, number: u64) -> io::Result<()>;
    /// Hands bytes to the system: they outlive the process.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Brings what was appended to the disk.
    fn sync(&mut self) -> io::Result<()>;
    /// Deletes a segment.
    fn delete(&mut self, number: u64) -> io::Result<()>;
}

/// A folder that is this process's alone.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    segment: Option<File>,
    /// Locked for as long as it is open.
    _lock: File,
}

impl Folder {
    /// Makes the folder where it is not there. `None` where another process has it.
    pub(super) fn open(path: &Path) -> io::Result<Option<Self>> {
        // Prompts and answers are nobody else's business.
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        let lock = OpenOptions::new().create(true).append(true).mode(0o600).open(path.join("lock"))?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(Self { path: path.to_path_buf(), segment: None, _lock: lock })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Every segment there is, oldest first, and how many bytes in them are no records.
    pub(super) fn read(&self, window: Duration) -> io::Result<(Vec<Found>, usize)> {
        let mut numbers = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            let number: Option<u64> =
                name.to_str().and_then(|name| name.strip_suffix(".journal")?.parse().ok());
            numbers.extend(number);
        }
        numbers.sort_unstable();
        let (mut all, mut torn) = (Vec::new(), 0);
        for number in numbers {
            let path = path_of(&self.path, number);
            let written = std::fs::metadata(&path)?.modified()?;
            // A clock that was set back makes nothing stale.
            let age = SystemTime::now().duration_since(written).unwrap_or_default();
            let segment = record::parse(&std::fs::read(&path)?);
            torn += segment.torn_bytes;
            all.push(Found { number, records: segment.records, is_fresh: age <= window });
        }
        Ok((all, torn))
    }

    fn segment(&mut self) -> io::Result<&mut File> {
        self.segment.as_mut().ok_or_else(|| io::Error::other("no segment was begun"))
    }
}

impl Medium for Folder {
    fn begin(&mut self, number: u64) -> io::Result<()> {
        let mut file = OpenOptions::new()
            .create_new(true)
            .append(true)
            .mode(0o600)
            .open(path_of(&self.path, number))?;
        file.write_all(&MAGIC)?;
        self.segment = Some(file);
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.segment()?.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.segment()?.sync_data()
    }

    fn delete(&mut self, number: u64) -> io::Result<()> {
        std::fs::remove_file(path_of(&self.path, number))
    }
}
