//! Streams on disk: what was asked and what was answered, so that another process can go on where this one died.
//!
//! A token is written down before it is told. Whether what is written survives the machine, and not the process
//! alone, is for [`Fsync`] to say. A disk that fails turns the journal off; streams go on without it.

mod codec;
mod disk;
mod record;
mod shelf;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use lockstep_process::tasks::{Fate, Tasks};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};
use uuid::Uuid;

use self::disk::Folder;
use self::writer::{Command, Writer};
use crate::engine::GenerationEvent;
use crate::metrics::Metrics;

pub use disk::{Medium, Stored};
pub use record::{Beginning, KeptRequest, KnownAnswer, Origin, Record, Segment, parse};

/// How often what was written is brought to the disk with [`Fsync::Interval`].
const BETWEEN_SYNCS: Duration = Duration::from_secs(1);

/// How often in a window the journal is told that a stream is read; by so much of one a reading may be noted late.
pub(crate) const READINGS_PER_WINDOW: u32 = 4;

/// Records that wait to be written. Each stream waits for its last token's before it has the next, and says a few times
/// a window that it is read, so this is more than there are streams on most servers; others wait here a little longer.
const RECORDS_WAITING: usize = 256;

/// When what was written is brought to the disk. A process that dies loses nothing either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Fsync {
    /// When the system sees fit: a machine that dies loses the last half minute or so.
    Never,
    /// Once a second: a machine that dies loses that second.
    Interval,
    /// Before each token is told.
    Always,
}

/// Where streams are written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalConfig {
    /// A folder of this server's own.
    pub folder: PathBuf,
    /// When it reaches the disk.
    pub fsync: Fsync,
}

impl JournalConfig {
    /// Checks that its folder can be used. One that another server has may be free in a moment.
    ///
    /// # Errors
    /// When it cannot be made or written to.
    pub fn check(&self) -> Result<(), JournalError> {
        match Folder::open(&self.folder) {
            Ok(Some(_) | None) => Ok(()),
            Err(source) => Err(JournalError::Folder { folder: self.folder.clone(), source }),
        }
    }
}

/// The journal cannot be kept.
#[derive(Debug, Error)]
pub enum JournalError {
    /// The folder cannot be used.
    #[error("keep a journal in {folder}: {source}; see --journal")]
    Folder {
        /// Which.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another router writes there.
    #[error(
        "keep a journal in {folder}: another server has it; give each a folder of its own with --journal"
    )]
    Taken {
        /// Which.
        folder: PathBuf,
    },
    /// What stands in for the folder cannot be used.
    #[error("keep a journal: {0}")]
    Medium(io::Error),
    /// The system starts no more threads.
    #[error("start the journal's thread: {0}")]
    Thread(io::Error),
}

/// A stream as another process left it.
#[derive(Clone, Debug, PartialEq)]
pub enum Left {
    /// It is to be answered from where it was.
    Begun(Recovered),
    /// All of its answer is there.
    Known(KnownAnswer),
}

/// A stream that was being answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Recovered {
    /// What was asked.
    pub beginning: Beginning,
    /// What its answers, by place, brought, in the order it was told.
    pub events: Vec<(usize, GenerationEvent)>,
}

/// The way to the journal; clones lead to the same one.
#[derive(Clone, Debug)]
pub struct Journal {
    commands: mpsc::Sender<Command>,
}

impl Journal {
    /// Opens the journal, and returns the streams that may still be taken up: they were told or read within `window`.
    ///
    /// # Errors
    /// When the folder cannot be used.
    pub fn open(
        config: &JournalConfig,
        window: Duration,
        metrics: Arc<Metrics>,
        tasks: &Tasks,
    ) -> Result<(Self, Vec<Left>), JournalError> {
        let failed = |source| JournalError::Folder { folder: config.folder.clone(), source };
        let taken = || JournalError::Taken { folder: config.folder.clone() };
        let folder = Folder::open(&config.folder).map_err(failed)?.ok_or_else(taken)?;
        let (writer, recovered) = begin(folder, (window, config.fsync), metrics).map_err(failed)?;
        info!(streams = recovered.len(), folder = %config.folder.display(), "journal opened");
        let (commands, inbox) = mpsc::channel(RECORDS_WAITING);
        let work = move || writer.run(inbox);
        std::thread::Builder::new().name("journal".to_owned()).spawn(work).map_err(JournalError::Thread)?;
        let journal = Self { commands };
        journal.sync_on_time(config.fsync, tasks);
        Ok((journal, recovered))
    }

    /// The same over any medium, in segments of about so many bytes, and without a thread: a task does what is to be
    /// done before anything else goes on.
    ///
    /// # Errors
    /// When the medium fails.
    pub fn over<M: Medium>(
        (medium, segment_bytes): (M, usize),
        (window, fsync): (Duration, Fsync),
        metrics: Arc<Metrics>,
        tasks: &Tasks,
    ) -> io::Result<(Self, Vec<Left>)> {
        let (writer, recovered) = begin(medium, (window, fsync), metrics)?;
        let writer = writer.with_segments_of(segment_bytes);
        let (commands, inbox) = mpsc::channel(RECORDS_WAITING);
        tasks.spawn("journal", Fate::Log, writer.run_as_task(inbox));
        let journal = Self { commands };
        journal.sync_on_time(fsync, tasks);
        Ok((journal, recovered))
    }

    fn sync_on_time(&self, fsync: Fsync, tasks: &Tasks) {
        match fsync {
            Fsync::Never | Fsync::Always => {}
            Fsync::Interval => {
                let stop = tasks.stop_token().clone();
                let commands = self.commands.downgrade();
                tasks.spawn("journal sync", Fate::Log, async move {
                    let syncing = sync_now_and_then(commands);
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => {}
                        () = syncing => {}
                    }
                });
            }
        }
    }

    /// Writes a record down. What comes back is told once it is written, or the journal has failed.
    pub async fn write(&self, record: &Record) -> oneshot::Receiver<()> {
        let (done, written) = oneshot::channel();
        if let Some(bytes) = record.encode() {
            let command = Command::Write { stream: record.stream(), bytes, done };
            // A writer that is gone writes nothing; the dropped sender says so.
            let _ = self.commands.send(command).await;
        }
        written
    }

    /// Somebody reads the stream. To be said at least every [`between_readings`], so that the next process knows how
    /// long its client may still come back. What comes back is told once it is written, or will not be.
    pub async fn note_read(&self, stream: Uuid) -> oneshot::Receiver<()> {
        let (done, written) = oneshot::channel();
        // A writer that is gone writes nothing; the dropped sender says so.
        let _ = self.commands.send(Command::Read { stream, done }).await;
        written
    }

    /// Nobody may take the stream up any more.
    pub async fn forget(&self, stream: Uuid) {
        // A writer that is gone keeps nothing either.
        let _ = self.commands.send(Command::Forget { stream }).await;
    }
}

/// How often the journal is told that a stream is read whose client may come back within `window`.
pub(crate) fn between_readings(window: Duration) -> Duration {
    window / READINGS_PER_WINDOW
}

async fn sync_now_and_then(commands: mpsc::WeakSender<Command>) {
    loop {
        tokio::time::sleep(BETWEEN_SYNCS).await;
        let Some(commands) = commands.upgrade() else { return };
        if commands.send(Command::Sync).await.is_err() {
            return;
        }
    }
}

/// Takes in what an earlier process left on a medium, and begins to write there.
fn begin<M: Medium>(
    medium: M,
    (window, fsync): (Duration, Fsync),
    metrics: Arc<Metrics>,
) -> io::Result<(Writer<M>, Vec<Left>)> {
    let (mut found, mut torn) = (Vec::new(), 0);
    let freshest = window + between_readings(window);
    for Stored { number, bytes, age } in medium.segments()? {
        let segment = parse(&bytes);
        torn += segment.torn_bytes;
        found.push(Found { number, records: segment.records, is_fresh: age <= freshest });
    }
    if torn > 0 {
        warn!(bytes = torn, "the journal ends in the middle of a record, which is left out");
    }
    let (recovered, shelf) = recover(found);
    Ok((Writer::begin(medium, shelf, fsync, metrics)?, recovered))
}

/// A segment that was read.
#[derive(Debug)]
struct Found {
    number: u64,
    records: Vec<Record>,
    /// Whether it was written to within the window, or as long before it as a reading may be noted late.
    is_fresh: bool,
}

/// The streams in segments, oldest first, that may still be taken up, and which segments they are in.
fn recover(found: Vec<Found>) -> (Vec<Left>, shelf::Shelf) {
    let mut streams: BTreeMap<Uuid, (Left, bool)> = BTreeMap::new();
    let mut shelf = shelf::Shelf::default();
    for Found { number, records, is_fresh } in found {
        shelf.open(number);
        for record in records {
            let stream = record.stream();
            match record {
                Record::Begun(beginning) => {
                    let recovered = Recovered { beginning: *beginning, events: Vec::new() };
                    streams.insert(stream, (Left::Begun(recovered), is_fresh));
                }
                Record::Known(known) => {
                    streams.insert(stream, (Left::Known(*known), is_fresh));
                }
                Record::Heard { place, event, .. } => {
                    let Some((Left::Begun(recovered), fresh)) = streams.get_mut(&stream) else { continue };
                    recovered.events.push((place as usize, event));
                    *fresh = is_fresh;
                }
                Record::Read { .. } => {
                    let Some((_, fresh)) = streams.get_mut(&stream) else { continue };
                    *fresh = is_fresh;
                }
                Record::Forgotten { .. } => {
                    streams.remove(&stream);
                    shelf.forget(stream);
                    continue;
                }
            }
            shelf.note(stream);
        }
    }
    streams.retain(|stream, (_, fresh)| {
        if !*fresh {
            shelf.forget(*stream);
        }
        *fresh
    });
    (streams.into_values().map(|(left, _)| left).collect(), shelf)
}

/// Where a segment is.
fn path_of(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number:012}.journal"))
}
