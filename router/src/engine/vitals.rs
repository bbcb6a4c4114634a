//! Whether the engine gets on, as probes see it: without asking it, so that none waits behind a step.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lockstep_process::reports::Progress;
use lockstep_proto::ReplicaId;

/// How often the engine's task shows that it runs, also while a step is under way or nobody asks.
const BETWEEN_BEATS: Duration = Duration::from_secs(1);
/// A task that has shown nothing for so long does not get on.
const SILENCE_ALLOWED: Duration = Duration::from_secs(5);
/// No step is under way.
const NEVER: u64 = u64::MAX;

/// What the engine shows of itself.
#[derive(Debug)]
pub struct Vitals {
    begun: Instant,
    /// When its task last ran, in milliseconds since it begun.
    beat_ms: AtomicU64,
    /// When the step under way on each replica takes longer than steps like it do, likewise.
    late_ms: Vec<AtomicU64>,
    /// Who else is shown that it runs.
    progress: OnceLock<Progress>,
}

impl Vitals {
    /// Of an engine with so many replicas that begins at `now`.
    pub(super) fn new(replicas: usize, now: Instant) -> Self {
        Self {
            begun: now,
            beat_ms: AtomicU64::new(0),
            late_ms: (0..replicas).map(|_| AtomicU64::new(NEVER)).collect(),
            progress: OnceLock::new(),
        }
    }

    /// Whether its task runs, at `now`: that it gets to what is asked of it.
    pub fn is_alive(&self, now: Instant) -> bool {
        let silence_ms = self.millis(now).saturating_sub(self.beat_ms.load(Ordering::Relaxed));
        Duration::from_millis(silence_ms) < SILENCE_ALLOWED
    }

    /// Whether the step under way on a replica takes so long, at `now`, that its group may not finish it.
    pub fn is_late(&self, replica: ReplicaId, now: Instant) -> bool {
        let late_ms = self.late_ms.get(replica.index());
        late_ms.is_some_and(|late_ms| self.millis(now) >= late_ms.load(Ordering::Relaxed))
    }

    /// Shows each sign of life to `progress` as well, the first such only.
    pub fn tell(&self, progress: Progress) {
        // Whoever is told already goes on to be told.
        let _ = self.progress.set(progress);
    }

    /// The task runs, at `now`.
    pub(super) fn beat(&self, now: Instant) {
        self.beat_ms.store(self.millis(now), Ordering::Relaxed);
        if let Some(progress) = self.progress.get() {
            progress.advance();
        }
    }

    /// Waits until it is time for the next beat.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub(super) async fn beat_due(&self) {
        let last = self.begun + Duration::from_millis(self.beat_ms.load(Ordering::Relaxed));
        tokio::time::sleep_until((last + BETWEEN_BEATS).into()).await;
    }

    /// A step begins at `now`, which its group is given `limit` for. Steps like it took a small part of that.
    pub(super) fn on_step_begun(&self, replica: ReplicaId, now: Instant, limit: Duration) {
        self.set_late(replica, self.millis(now + limit / 2));
    }

    /// No step is under way on a replica.
    pub(super) fn on_step_over(&self, replica: ReplicaId) {
        self.set_late(replica, NEVER);
    }

    fn set_late(&self, replica: ReplicaId, at_ms: u64) {
        if let Some(late_ms) = self.late_ms.get(replica.index()) {
            late_ms.store(at_ms, Ordering::Relaxed);
        }
    }

    fn millis(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.begun).as_millis()).unwrap_or(NEVER - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_that_shows_nothing_is_not_alive() {
        let start = Instant::now();
        let vitals = Vitals::new(1, start);
        assert!(vitals.is_alive(start));
        vitals.beat(start + 3 * BETWEEN_BEATS);
        assert!(vitals.is_alive(start + 7 * BETWEEN_BEATS));
        assert!(!vitals.is_alive(start + 8 * BETWEEN_BEATS));
        vitals.beat(start + 9 * BETWEEN_BEATS);
        assert!(vitals.is_alive(start + 9 * BETWEEN_BEATS));
    }

    #[test]
    fn a_step_is_late_at_half_of_what_it_is_given() {
        let start = Instant::now();
        let vitals = Vitals::new(2, start);
        let (first, second, hour) = (ReplicaId(0), ReplicaId(1), Duration::from_secs(3600));
        assert!(!vitals.is_late(first, start + hour), "nothing is computed");
        vitals.on_step_begun(first, start, Duration::from_secs(10));
        assert!(!vitals.is_late(first, start + Duration::from_secs(4)));
        assert!(vitals.is_late(first, start + Duration::from_secs(5)));
        assert!(!vitals.is_late(second, start + hour), "another replica's step");
        vitals.on_step_over(first);
        assert!(!vitals.is_late(first, start + hour));
    }
}
