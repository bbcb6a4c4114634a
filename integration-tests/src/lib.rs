//! Starts real clusters and checks what a client sees.
//!
//! A [`cluster::Cluster`] is the shipped binary with all its processes on a free port: it is ready when it
//! is there, it shows its log when the test fails, and nothing of it is left when it is dropped. A
//! [`client::Client`] speaks to it as a stranger would; [`oracle`] says what a correct stream is;
//! [`faults`] finds and kills processes. Waits are for conditions, with deadlines so generous that only a
//! hang meets them: no verdict depends on a time.

pub mod client;
pub mod cluster;
pub mod draws;
pub mod emulated_gpu;
pub mod faults;
pub mod frames;
pub mod oracle;

use std::time::Duration;

/// How long to wait for what is bound to happen, on a slow and busy machine.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// How often to look.
pub const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

/// Waits until `condition` holds.
///
/// # Panics
/// When it does not come to hold by the [`DEADLINE`].
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "waited {DEADLINE:?} in vain until {what}");
        std::thread::sleep(BETWEEN_LOOKS);
    }
}
