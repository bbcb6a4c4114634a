//! Says how far loading is, where it takes long enough to ask.

use std::cell::Cell;
use std::time::{Duration, Instant};

use lockstep_process::reports;
use lockstep_proto::{Bytes, Rank};
use tracing::info;

/// How often it is said.
const INTERVAL: Duration = Duration::from_secs(1);

/// Characters of a whole bar.
const BAR: usize = 24;

/// How much of a rank's weights is packed.
pub(super) struct Progress {
    rank: Rank,
    total: Bytes,
    done: Cell<u64>,
    said: Cell<Instant>,
    told: reports::Progress,
}

impl Progress {
    /// Of `total` bytes, none of which is packed; `told` advances with each piece.
    pub(super) fn new(rank: Rank, total: Bytes, told: reports::Progress) -> Self {
        Self { rank, total, done: Cell::new(0), said: Cell::new(Instant::now()), told }
    }

    /// Counts bytes that are packed.
    pub(super) fn add(&self, bytes: usize) {
        self.done.set(self.done.get() + bytes as u64);
        self.told.advance();
        if self.said.get().elapsed() >= INTERVAL {
            self.said.set(Instant::now());
            info!(rank = self.rank.0, "loading {}", bar(Bytes(self.done.get()), self.total));
        }
    }
}

/// `[######------] 50% of 2.0 GiB`.
fn bar(done: Bytes, total: Bytes) -> String {
    let share = (done.0 as f64 / total.0.max(1) as f64).min(1.0);
    let filled = (share * BAR as f64) as usize;
    format!("[{}{}] {:.0}% of {total}", "#".repeat(filled), "-".repeat(BAR - filled), share * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_full_as_the_weights() {
        let bar = |done| bar(Bytes(done), Bytes(2 << 30));
        assert_eq!(bar(0), "[------------------------] 0% of 2.0 GiB");
        assert_eq!(bar(1 << 30), "[############------------] 50% of 2.0 GiB");
        assert_eq!(bar(3 << 30), "[########################] 100% of 2.0 GiB");
    }
}
