//! Tells how far a download is: bars on a terminal, a line now and then elsewhere.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{BinaryBytes, MultiProgress, ProgressBar, ProgressStyle};
use tracing::{info, warn};

/// How a download says how far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProgressKind {
    /// Bars for each file and in total, where standard error is a terminal; else lines.
    Bars,
    /// Lines in the log.
    Lines,
}

const BETWEEN_LINES: Duration = Duration::from_secs(5);
/// Fits a terminal of 80 columns and leaves the bar some.
const BAR: &str = "{prefix:32} {wide_bar} {percent:>3}% {bytes_per_sec:>12} {eta:>4}";
const NAME_CHARS: usize = 32;

/// Of several files.
pub(super) struct Progress {
    display: Display,
    started: Instant,
    /// Bytes that are here, and all of them.
    done: AtomicU64,
    total: u64,
}

enum Display {
    Bars { all: MultiProgress, total: ProgressBar },
    Lines { next: Mutex<Instant> },
}

/// Of one file.
pub(super) struct FileProgress<'a> {
    all: &'a Progress,
    bar: Option<ProgressBar>,
    position: u64,
}

impl Progress {
    /// Of `files` files that have `total` bytes in all.
    pub(super) fn new(kind: ProgressKind, model: &str, files: usize, total: u64) -> Self {
        let started = Instant::now();
        let display = if kind == ProgressKind::Bars && std::io::stderr().is_terminal() {
            let all = MultiProgress::new();
            let bar = all.add(bar(total, &format!("{}, {}", counted(files), BinaryBytes(total))));
            Display::Bars { all, total: bar }
        } else {
            info!("downloading {} of {model}, {}", counted(files), BinaryBytes(total));
            Display::Lines { next: Mutex::new(started + BETWEEN_LINES) }
        };
        Self { display, started, done: AtomicU64::new(0), total }
    }

    /// Starts to follow one of the files.
    pub(super) fn file(&self, name: &str, size: u64) -> FileProgress<'_> {
        let bar = match &self.display {
            Display::Bars { all, total } => Some(all.insert_before(total, bar(size, name))),
            Display::Lines { .. } => None,
        };
        FileProgress { all: self, bar, position: 0 }
    }

    /// Says something that is no progress.
    pub(super) fn note(&self, text: &str) {
        match &self.display {
            Display::Bars { all, .. } => drop(all.println(text)),
            Display::Lines { .. } => warn!("{text}"),
        }
    }

    fn moved(&self, from: u64, to: u64) {
        let done = if to >= from {
            self.done.fetch_add(to - from, Ordering::Relaxed) + (to - from)
        } else {
            self.done.fetch_sub(from - to, Ordering::Relaxed) - (from - to)
        };
        match &self.display {
            Display::Bars { total, .. } => total.set_position(done),
            Display::Lines { next } => {
                let mut next = next.lock().unwrap_or_else(PoisonError::into_inner);
                if Instant::now() >= *next {
                    *next = Instant::now() + BETWEEN_LINES;
                    info!("downloaded {} of {}", BinaryBytes(done), BinaryBytes(self.total));
                }
            }
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        match &self.display {
            Display::Bars { all, .. } => drop(all.clear()),
            Display::Lines { .. } => {}
        }
        if *self.done.get_mut() == self.total {
            info!(
                "downloaded {} in {:.1} s",
                BinaryBytes(self.total),
                self.started.elapsed().as_secs_f64()
            );
        }
    }
}

impl FileProgress<'_> {
    /// So many of the file's bytes are here.
    pub(super) fn set(&mut self, position: u64) {
        self.all.moved(self.position, position);
        self.position = position;
        if let Some(bar) = &self.bar {
            bar.set_position(position);
        }
    }

    /// What was here before does not count for the speed.
    pub(super) fn resume_at(&mut self, position: u64) {
        self.set(position);
        if let Some(bar) = &self.bar {
            bar.reset_eta();
        }
    }
}

impl Drop for FileProgress<'_> {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn counted(files: usize) -> String {
    if files == 1 { "1 file".to_owned() } else { format!("{files} files") }
}

fn bar(length: u64, name: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(BAR).unwrap_or_else(|_| ProgressStyle::default_bar());
    let skipped = name.chars().count().saturating_sub(NAME_CHARS);
    let name: String = name.chars().skip(skipped).collect();
    ProgressBar::new(length).with_style(style.progress_chars("=> ")).with_prefix(name)
}
