//! The thread that writes: what waits is written at once, and brought to the disk at once.

use std::io;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tracing::{debug, error};
use uuid::Uuid;

use super::disk::Medium;
use super::record::Record;
use super::shelf::Shelf;
use super::{Fsync, RECORDS_WAITING};
use crate::metrics::Metrics;

/// Longest segment, mostly.
const SEGMENT_BYTES: usize = 16 << 20;

/// What the writer is asked to do.
#[derive(Debug)]
pub(super) enum Command {
    /// Append a record of a stream.
    Write { stream: Uuid, bytes: Vec<u8>, done: oneshot::Sender<()> },
    /// Somebody reads the stream.
    Read { stream: Uuid, done: oneshot::Sender<()> },
    /// Nobody takes the stream up any more.
    Forget { stream: Uuid },
    /// Bring what was written to the disk.
    Sync,
}

/// The first and what waits behind it.
fn batch(first: Command, commands: &mut mpsc::Receiver<Command>) -> Vec<Command> {
    let mut batch = vec![first];
    while batch.len() < RECORDS_WAITING
        && let Ok(next) = commands.try_recv()
    {
        batch.push(next);
    }
    batch
}

/// Writes, until the disk fails.
pub(super) struct Writer<M> {
    medium: M,
    shelf: Shelf,
    fsync: Fsync,
    metrics: Arc<Metrics>,
    state: State,
    segment_bytes: usize,
    /// One that is longer is followed by another.
    longest_segment_bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// All that was written is on the disk.
    Synced,
    Written,
    /// The disk failed: nothing is written any more.
    Off,
}

impl<M: Medium> Writer<M> {
    /// Begins a segment after all there are.
    ///
    /// # Errors
    /// When the disk fails.
    pub(super) fn begin(medium: M, shelf: Shelf, fsync: Fsync, metrics: Arc<Metrics>) -> io::Result<Self> {
        let mut writer = Self {
            medium,
            shelf,
            fsync,
            metrics,
            state: State::Synced,
            segment_bytes: 0,
            longest_segment_bytes: SEGMENT_BYTES,
        };
        writer.next_segment()?;
        writer.tidy()?;
        writer.metrics.on_journal_on();
        Ok(writer)
    }

    /// The same with segments of about so many bytes.
    pub(super) fn with_segments_of(mut self, bytes: usize) -> Self {
        self.longest_segment_bytes = bytes;
        self
    }

    /// Does what it is asked to, until nobody can ask.
    pub(super) fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        while let Some(first) = commands.blocking_recv() {
            self.on_batch(batch(first, &mut commands));
        }
        self.attempt(Self::sync);
    }

    /// The same as a task.
    pub(super) async fn run_as_task(mut self, mut commands: mpsc::Receiver<Command>) {
        while let Some(first) = commands.recv().await {
            let latency = self.medium.latency();
            if !latency.is_zero() {
                tokio::time::sleep(latency).await;
            }
            self.on_batch(batch(first, &mut commands));
        }
        self.attempt(Self::sync);
    }

    /// All of it with one write. Who waits for it is told, also where the disk has failed: streams go on.
    pub(super) fn on_batch(&mut self, batch: Vec<Command>) {
        let (mut bytes, mut waiting, mut forgotten) = (Vec::new(), Vec::new(), Vec::new());
        let mut must_sync = false;
        for command in batch {
            match command {
                Command::Write { stream, bytes: record, done } => {
                    bytes.extend(record);
                    self.shelf.note(stream);
                    waiting.push(done);
                    must_sync |= self.fsync == Fsync::Always;
                }
                Command::Read { stream, done } => {
                    // Of others there is nothing to take up.
                    if self.shelf.holds(stream) {
                        bytes.extend(Record::Read { stream }.encode().unwrap_or_default());
                        self.shelf.note(stream);
                        must_sync |= self.fsync == Fsync::Always;
                    }
                    waiting.push(done);
                }
                Command::Forget { stream } => {
                    bytes.extend(Record::Forgotten { stream }.encode().unwrap_or_default());
                    forgotten.push(stream);
                }
                Command::Sync => must_sync = true,
            }
        }
        self.attempt(|writer| writer.append(&bytes));
        if must_sync {
            self.attempt(Self::sync);
        }
        for done in waiting {
            // Whoever waited may have left.
            let _ = done.send(());
        }
        forgotten.into_iter().for_each(|stream| self.shelf.forget(stream));
        self.attempt(Self::tidy);
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.medium.append(bytes)?;
        self.segment_bytes += bytes.len();
        self.state = State::Written;
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        if self.state == State::Written {
            self.medium.sync()?;
            self.state = State::Synced;
        }
        Ok(())
    }

    fn tidy(&mut self) -> io::Result<()> {
        if self.segment_bytes > self.longest_segment_bytes {
            // However seldom it is synced: a stream with a hole in its middle would go on from another text.
            self.sync()?;
            self.next_segment()?;
        }
        for number in self.shelf.take_unneeded() {
            debug!(number, "a segment of the journal is not needed any more");
            self.medium.delete(number)?;
        }
        Ok(())
    }

    fn next_segment(&mut self) -> io::Result<()> {
        let number = self.shelf.next();
        self.medium.begin(number)?;
        self.shelf.open(number);
        self.segment_bytes = 0;
        Ok(())
    }

    /// Nothing, where the disk has failed already.
    fn attempt(&mut self, act: impl FnOnce(&mut Self) -> io::Result<()>) {
        if self.state == State::Off {
            return;
        }
        if let Err(error) = act(self) {
            error!(%error, "the journal is off: streams go on, and do not outlive this process any more");
            self.state = State::Off;
            self.metrics.on_journal_off();
        }
    }
}
