//! Signals that ask something of the launcher, none of them lost between two waits.

use std::fs::File;
use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// To stop: SIGTERM, Ctrl-C, or the SIGHUP of a terminal that is closed.
    Stop,
    /// To restart one group after the other: any other SIGHUP.
    Restart,
}

/// Listens to signals.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
    /// Whether this process was started on a terminal.
    on_terminal: bool,
}

impl Signals {
    /// Listens from here on.
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
            on_terminal: has_terminal(),
        })
    }

    /// Waits for the next one.
    ///
    /// # Cancel safety
    /// A signal that comes while nobody waits is kept for the next wait.
    pub(crate) async fn next(&mut self) -> Asked {
        tokio::select! {
            biased;
            _ = self.terminate.recv() => Asked::Stop,
            _ = self.interrupt.recv() => Asked::Stop,
            _ = self.hang_up.recv() => {
                if self.on_terminal && !has_terminal() { Asked::Stop } else { Asked::Restart }
            }
        }
    }
}

/// Whether this process has a terminal that is open.
fn has_terminal() -> bool {
    File::open("/dev/tty").is_ok()
}
