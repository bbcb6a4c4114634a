//! What this process may have of files: how many at once, and how long they may grow.

use std::io;

use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tracing::debug;

/// Raises the limit of open files as far as this user may, and returns it.
pub fn raise() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let limit = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => raised,
        Err(error) => {
            debug!(%error, "the limit of open files stays as it is");
            limit
        }
    };
    // No number means no limit.
    limit.current.map_or(usize::MAX, |files| usize::try_from(files).unwrap_or(usize::MAX))
}

/// Makes a file that may not grow any more (`ulimit -f`) an error of whoever writes to it, as a full disk is, and not the
/// end of the process.
///
/// # Errors
/// When the signal's place cannot be taken, or outside of a runtime.
pub fn outlive_full_files() -> io::Result<()> {
    // It stays taken when what is returned is dropped.
    signal(SignalKind::from_raw(Signal::XFSZ.as_raw())).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_raised_is_at_its_maximum() {
        let files = raise();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current.map_or(usize::MAX, |files| files as usize), files);
        assert!(files >= 16);
    }
}
