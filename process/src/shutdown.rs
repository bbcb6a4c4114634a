//! Signals that ask a process to stop.

use std::fmt;
use std::io;

use tokio::signal::unix::{SignalKind, signal};

/// Which signal asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopSignal {
    /// Ctrl-C.
    Interrupt,
    /// What a supervisor sends.
    Terminate,
}

impl fmt::Display for StopSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
        })
    }
}

/// Waits for Ctrl-C or SIGTERM.
///
/// # Errors
/// When no handler can be installed.
///
/// # Cancel safety
/// Dropping the future loses nothing but the wait.
pub async fn stop_signal() -> io::Result<StopSignal> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        biased;
        _ = terminate.recv() => Ok(StopSignal::Terminate),
        _ = interrupt.recv() => Ok(StopSignal::Interrupt),
    }
}

/// Ends this process when the one that spawned it dies, however it dies.
///
/// Takes the id the parent is expected to have: where another has taken its place already, the parent is
/// dead and the caller should leave.
#[must_use]
pub fn die_with_parent(expected_parent: u32) -> ParentState {
    // Failing leaves the process as it was: it then lives until it is told to stop.
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM));
    let parent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get());
    if parent.is_some_and(|pid| u32::try_from(pid) == Ok(expected_parent)) {
        ParentState::Alive
    } else {
        ParentState::Gone
    }
}

/// Whether the process that spawned this one is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParentState {
    /// It is.
    Alive,
    /// It is not.
    Gone,
}
