//! What the roles tell the launcher: that a group of shards is given up, and that they live. A process that hangs
//! does not end by itself, and only the launcher may kill it.
//!
//! Reports are datagrams on a socket in the private folder of one run. One that is lost costs a restart that
//! comes later, if a rank ends after all; none is ever waited for.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::datagrams::{Inbox, Noise, send};

/// How often a process says that it lives.
const BETWEEN_SIGNS: Duration = Duration::from_secs(1);

/// Progress of a process that needs to show none.
const STEADY: u64 = u64::MAX;

/// What is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// The router has no group of this epoch: it gave it up, or let it leave as it was asked to.
    Lost {
        /// The group's replica.
        replica: u32,
        /// The group's incarnation.
        epoch: u64,
    },
    /// The router computes with the group of this epoch.
    Serves {
        /// The group's replica.
        replica: u32,
        /// The group's incarnation.
        epoch: u64,
    },
    /// A rank gets on with its work.
    RankLives {
        /// The group's incarnation.
        epoch: u64,
        /// Its place in the group.
        rank: u32,
    },
    /// The router's runtime runs.
    RouterLives,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost { replica, epoch } => write!(f, "lost {replica} {epoch}"),
            Self::Serves { replica, epoch } => write!(f, "serves {replica} {epoch}"),
            Self::RankLives { epoch, rank } => write!(f, "rank {epoch} {rank}"),
            Self::RouterLives => f.write_str("router"),
        }
    }
}

impl FromStr for Report {
    type Err = Noise;

    fn from_str(text: &str) -> Result<Self, Noise> {
        let words: Vec<&str> = text.split(' ').collect();
        let pair = |first: &str, second: &str| -> Result<(u32, u64), Noise> {
            Ok((first.parse().map_err(|_| Noise)?, second.parse().map_err(|_| Noise)?))
        };
        match words[..] {
            ["lost", replica, epoch] => {
                pair(replica, epoch).map(|(replica, epoch)| Self::Lost { replica, epoch })
            }
            ["serves", replica, epoch] => {
                pair(replica, epoch).map(|(replica, epoch)| Self::Serves { replica, epoch })
            }
            ["rank", epoch, rank] => pair(rank, epoch).map(|(rank, epoch)| Self::RankLives { epoch, rank }),
            ["router"] => Ok(Self::RouterLives),
            _ => Err(Noise),
        }
    }
}

/// The launcher's end.
pub type ReportInbox = Inbox<Report>;

/// How far a process is with what it does; clones count together.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<AtomicU64>);

impl Progress {
    /// Of a process that lives as long as its runtime runs.
    pub fn steady() -> Self {
        Self(Arc::new(AtomicU64::new(STEADY)))
    }

    /// It got further.
    pub fn advance(&self) {
        // A count that wrapped would be taken for a steady one after 2^64 pieces of work.
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// From here on it lives as long as it gets further.
    pub fn become_counted(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// From here on it lives as long as its runtime runs.
    pub fn become_steady(&self) {
        self.0.store(STEADY, Ordering::Relaxed);
    }

    /// Whether there is more than was told, which is noted.
    fn is_news(&self, told: &mut Option<u64>) -> bool {
        let done = self.0.load(Ordering::Relaxed);
        told.replace(done) != Some(done) || done == STEADY
    }
}

/// Says `report` to whoever listens at `path`, once a second as long as there is progress, until `stop`.
pub async fn tell_signs_of_life(
    path: PathBuf,
    report: Report,
    progress: Progress,
    stop: CancellationToken,
) {
    let mut told = None;
    loop {
        if progress.is_news(&mut told) {
            // The launcher may be busy; it is told again.
            let _ = send(&path, report).inspect_err(|error| debug!(%error, "a sign of life was not heard"));
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(BETWEEN_SIGNS) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_read_as_they_are_written() {
        let reports = [
            Report::Lost { replica: 0, epoch: 7 },
            Report::Lost { replica: u32::MAX, epoch: u64::MAX },
            Report::Serves { replica: 3, epoch: 9 },
            Report::RankLives { epoch: u64::MAX, rank: u32::MAX },
            Report::RouterLives,
        ];
        for report in reports {
            assert_eq!(report.to_string().parse::<Report>(), Ok(report));
        }
        let wrong = [
            "",
            "lost",
            "lost 3",
            "lost 1 -1",
            "found 1 3",
            "lost 1 18446744073709551616",
            "rank 1",
            "rank 1 x",
            "serves x 1",
            "router 1",
        ];
        for text in wrong {
            assert_eq!(text.parse::<Report>(), Err(Noise), "{text:?}");
        }
    }

    #[test]
    fn a_process_without_progress_falls_silent() {
        let progress = Progress::default();
        let mut told = None;
        assert!(progress.is_news(&mut told), "it has begun");
        for _ in 0..3 {
            assert!(!progress.is_news(&mut told));
            progress.advance();
            assert!(progress.is_news(&mut told));
        }
        progress.become_steady();
        for progress in [progress.clone(), Progress::steady()] {
            for _ in 0..3 {
                assert!(progress.is_news(&mut told));
            }
        }
        progress.become_counted();
        assert!(progress.is_news(&mut told));
        assert!(!progress.is_news(&mut told));
    }
}
