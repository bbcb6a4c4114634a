//! The time by which deadlines, patience and the watchdog go.

use std::time::{Duration, Instant};

/// Now, by the clock that timers run by: what is due by the one is due by the other, also where a test holds time
/// still and moves it.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// How long ago `then` was.
pub(crate) fn since(then: Instant) -> Duration {
    now().saturating_duration_since(then)
}
