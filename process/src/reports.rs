//! What the roles tell the launcher: that a group of shards is given up, and that they live. A process that hangs
//! does not end by itself, and only the launcher may kill it.
//!
//! Reports are datagrams on a socket in the private folder of one run. One that is lost costs a restart that
//! comes later, if a rank ends after all; none is ever waited for.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::UnixDatagram;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

/// Longest report, in bytes: a word and two numbers.
const REPORT_BYTES: usize = 64;

/// How often a process says that it lives.
const BETWEEN_SIGNS: Duration = Duration::from_secs(1);

/// Progress of a process that needs to show none.
const STEADY: u64 = u64::MAX;

/// What is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// The router has given the group of this epoch up.
    Lost {
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

/// What is no report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Noise;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost { epoch } => write!(f, "lost {epoch}"),
            Self::RankLives { epoch, rank } => write!(f, "rank {epoch} {rank}"),
            Self::RouterLives => f.write_str("router"),
        }
    }
}

impl FromStr for Report {
    type Err = Noise;

    fn from_str(text: &str) -> Result<Self, Noise> {
        let words: Vec<&str> = text.split(' ').collect();
        match words[..] {
            ["lost", epoch] => Ok(Self::Lost { epoch: epoch.parse().map_err(|_| Noise)? }),
            ["rank", epoch, rank] => {
                let (epoch, rank) = (epoch.parse().map_err(|_| Noise)?, rank.parse().map_err(|_| Noise)?);
                Ok(Self::RankLives { epoch, rank })
            }
            ["router"] => Ok(Self::RouterLives),
            _ => Err(Noise),
        }
    }
}

/// The launcher's end.
#[derive(Debug)]
pub struct ReportInbox {
    socket: UnixDatagram,
}

impl ReportInbox {
    /// Listens at `path`.
    ///
    /// # Errors
    /// When nothing can be bound there.
    pub fn bind(path: &Path) -> io::Result<Self> {
        Ok(Self { socket: UnixDatagram::bind(path)? })
    }

    /// The next report. What is none is passed over; after a socket that breaks there is none.
    ///
    /// # Cancel safety
    /// No report is lost.
    pub async fn next(&self) -> Report {
        loop {
            let mut report = [0; REPORT_BYTES];
            let count = match self.socket.recv(&mut report).await {
                Ok(count) => count,
                Err(error) => {
                    error!(%error, "nothing is heard of router and shards any more");
                    std::future::pending().await
                }
            };
            let text = std::str::from_utf8(&report[..count]).ok();
            if let Some(report) = text.and_then(|text| text.parse().ok()) {
                return report;
            }
        }
    }
}

/// Tells whoever listens at `path`, without waiting.
///
/// # Errors
/// When nobody listens, or has read nothing for long.
pub fn send(path: &Path, report: Report) -> io::Result<()> {
    let socket = std::os::unix::net::UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to(report.to_string().as_bytes(), path).map(drop)
}

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

    #[tokio::test]
    async fn reports_arrive_and_noise_does_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("reports.sock");
        let reports = [
            Report::Lost { epoch: 7 },
            Report::RankLives { epoch: u64::MAX, rank: u32::MAX },
            Report::RouterLives,
            Report::Lost { epoch: u64::MAX },
        ];
        assert!(send(&path, reports[0]).is_err(), "nobody listens yet");
        let inbox = ReportInbox::bind(&path).expect("it is free");
        let noise = std::os::unix::net::UnixDatagram::unbound().expect("a socket");
        let wrong = [
            "",
            "lost",
            "lost -1",
            "found 3",
            "lost 18446744073709551616",
            "rank 1",
            "rank 1 x",
            "router 1",
        ];
        for text in wrong {
            noise.send_to(text.as_bytes(), &path).expect("it listens");
        }
        for report in reports {
            // The queue may have room for ten.
            send(&path, report).expect("it listens");
            assert_eq!(inbox.next().await, report);
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
