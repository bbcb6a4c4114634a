//! What the router tells the launcher: that it has given a group of shards up. A rank that hangs does not
//! end by itself, and only the launcher may kill it.
//!
//! Reports are datagrams on a socket in the private folder of one run. One that is lost costs a restart that
//! comes later, if a rank ends after all; none is ever waited for.

use std::io;
use std::path::Path;

use tokio::net::UnixDatagram;
use tracing::error;

/// Longest report, in bytes: a word and a number.
const REPORT_BYTES: usize = 64;
const WORD: &str = "lost ";

/// The launcher's end.
#[derive(Debug)]
pub struct LossInbox {
    socket: UnixDatagram,
}

impl LossInbox {
    /// Listens at `path`.
    ///
    /// # Errors
    /// When nothing can be bound there.
    pub fn bind(path: &Path) -> io::Result<Self> {
        Ok(Self { socket: UnixDatagram::bind(path)? })
    }

    /// The epoch of the next group that is given up. What is not a report is passed over; after a socket that
    /// breaks there is none.
    ///
    /// # Cancel safety
    /// No report is lost.
    pub async fn next(&self) -> u64 {
        loop {
            let mut report = [0; REPORT_BYTES];
            let count = match self.socket.recv(&mut report).await {
                Ok(count) => count,
                Err(error) => {
                    error!(%error, "lost groups are not heard of any more");
                    std::future::pending().await
                }
            };
            let text = std::str::from_utf8(&report[..count]).ok();
            if let Some(epoch) = text.and_then(|text| text.strip_prefix(WORD)?.parse().ok()) {
                return epoch;
            }
        }
    }
}

/// Tells whoever listens at `path` that the group of `epoch` is given up.
///
/// # Errors
/// When nobody listens.
pub fn report_loss(path: &Path, epoch: u64) -> io::Result<()> {
    let socket = std::os::unix::net::UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to(format!("{WORD}{epoch}").as_bytes(), path).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn reports_arrive_and_noise_does_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("losses.sock");
        assert!(report_loss(&path, 1).is_err(), "nobody listens yet");
        let inbox = LossInbox::bind(&path).expect("it is free");
        let noise = std::os::unix::net::UnixDatagram::unbound().expect("a socket");
        for text in ["", "lost", "lost -1", "found 3", "lost 18446744073709551616"] {
            noise.send_to(text.as_bytes(), &path).expect("it listens");
        }
        report_loss(&path, 7).expect("it listens");
        report_loss(&path, u64::MAX).expect("it listens");
        assert_eq!(inbox.next().await, 7);
        assert_eq!(inbox.next().await, u64::MAX);
    }
}
