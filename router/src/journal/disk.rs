//! The folder of segments.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::path_of;
use super::record::MAGIC;

/// Where segments are kept. Another stands in for it in tests.
pub trait Medium: Send + 'static {
    /// Every segment there is, oldest first. What is found is on the disk from here on: nothing that is written after
    /// it outlives it.
    ///
    /// # Errors
    /// When one cannot be read or brought to the disk.
    fn segments(&self) -> io::Result<Vec<Stored>>;

    /// Begins segment `number`, whose number no other has; what is appended goes there. Once something is brought to
    /// the disk, the segment is there too.
    ///
    /// # Errors
    /// When the disk fails.
    fn begin(&mut self, number: u64) -> io::Result<()>;

    /// Hands bytes to the system: they outlive the process.
    ///
    /// # Errors
    /// When the disk fails; a part of them may be written.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Brings what was appended to the disk: it outlives the machine.
    ///
    /// # Errors
    /// When the disk fails.
    fn sync(&mut self) -> io::Result<()>;

    /// Deletes a segment.
    ///
    /// # Errors
    /// When the disk fails.
    fn delete(&mut self, number: u64) -> io::Result<()>;

    /// How long a writer waits before it writes what comes next: for a medium that stands in for a disk and itself takes
    /// no time.
    fn latency(&mut self) -> Duration {
        Duration::ZERO
    }
}

/// A segment as it is found.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Its number: later segments have larger ones.
    pub number: u64,
    /// All that it holds, whole or not.
    pub bytes: Vec<u8>,
    /// How long ago it was written to.
    pub age: Duration,
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

    fn segment(&mut self) -> io::Result<&mut File> {
        self.segment.as_mut().ok_or_else(|| io::Error::other("no segment was begun"))
    }
}

impl Medium for Folder {
    fn segments(&self) -> io::Result<Vec<Stored>> {
        let mut numbers = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            let number: Option<u64> =
                name.to_str().and_then(|name| name.strip_suffix(".journal")?.parse().ok());
            numbers.extend(number);
        }
        numbers.sort_unstable();
        let stored = |number| {
            let path = path_of(&self.path, number);
            let written = std::fs::metadata(&path)?.modified()?;
            // A clock that was set back makes nothing stale.
            let age = SystemTime::now().duration_since(written).unwrap_or_default();
            File::open(&path)?.sync_all()?;
            Ok(Stored { number, bytes: std::fs::read(&path)?, age })
        };
        numbers.into_iter().map(stored).collect()
    }

    fn begin(&mut self, number: u64) -> io::Result<()> {
        let mut file = OpenOptions::new()
            .create_new(true)
            .append(true)
            .mode(0o600)
            .open(path_of(&self.path, number))?;
        file.write_all(&MAGIC)?;
        // A file's bytes are of no use after a machine has died if the folder does not know of the file.
        File::open(&self.path)?.sync_all()?;
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
