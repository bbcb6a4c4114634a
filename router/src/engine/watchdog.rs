//! How long a step may take before its group counts as hung: by what steps of this group took before.
//!
//! A step of n tokens takes no longer than one of more tokens, and no longer than n / m times one of m tokens: part
//! of a step's time is the same for any number. So every size seen bounds every other, and the tightest bound, with
//! slack for a machine that has other things to do, is the limit.

use std::time::Duration;

use lockstep_proto::{Step, Tokens};

/// How much slower than the slowest of its kind a step may be: what another program takes, and what the bounds are
/// wrong by.
const SLACK: f64 = 8.0;

/// A context so long costs about as much in attention as everything else; less in most models.
const ATTENTION_EVEN: f64 = 1024.0;

/// One for each power of two of tokens.
pub(super) const SIZES: usize = 32;

/// What a step computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StepWork {
    /// Tokens of all its chunks.
    pub(super) tokens: Tokens,
    /// The longest context among them.
    pub(super) context: Tokens,
}

/// The slowest steps of about one size.
#[derive(Clone, Copy, Debug)]
struct Seen {
    slowest: Duration,
    longest_context: Tokens,
}

/// Knows how long steps take.
#[derive(Clone, Debug)]
pub(super) struct Watchdog {
    floor: Duration,
    ceiling: Duration,
    /// By the logarithm of their tokens.
    seen: [Option<Seen>; SIZES],
}

impl StepWork {
    pub(super) fn of(step: &Step) -> Self {
        let mut all = Self { tokens: Tokens::ZERO, context: Tokens::ZERO };
        for work in &step.work {
            let count = work.tokens.count();
            all.tokens += count;
            all.context = all.context.max(Tokens(work.first_position.0.saturating_add(count.0)));
        }
        all
    }

    /// Of about the same size are those that share this.
    pub(super) fn size(self) -> usize {
        (self.tokens.0.max(1).ilog2() as usize).min(SIZES - 1)
    }
}

impl Watchdog {
    /// Allows `floor` for the smallest step, and `ceiling` for the largest and for whatever nothing is known of.
    pub(super) fn new(floor: Duration, ceiling: Duration) -> Self {
        Self { floor: floor.min(ceiling), ceiling, seen: [None; SIZES] }
    }

    /// A new group: it may be slower, and its first step is.
    pub(super) fn forget(&mut self) {
        self.seen = [None; SIZES];
    }

    /// A step took so long.
    pub(super) fn on_step(&mut self, work: StepWork, took: Duration) {
        let Some(seen) = self.seen.get_mut(work.size()) else { return };
        let before = seen.unwrap_or(Seen { slowest: took, longest_context: work.context });
        *seen = Some(Seen {
            slowest: before.slowest.max(took),
            longest_context: before.longest_context.max(work.context),
        });
    }

    /// How long a step may take.
    pub(super) fn limit(&self, work: StepWork) -> Duration {
        let bounds = self.seen.iter().enumerate().filter_map(|(size, seen)| {
            let Seen { slowest, longest_context } = (*seen)?;
            let larger = f64::from(work.tokens.0) / (1u64 << size) as f64;
            let even = |context: Tokens| ATTENTION_EVEN + f64::from(context.0);
            let further = even(work.context) / even(longest_context);
            Some(slowest.as_secs_f64() * larger.max(1.0) * further.max(1.0))
        });
        let Some(bound) = bounds.reduce(f64::min) else { return self.ceiling };
        let limit = Duration::try_from_secs_f64(bound * SLACK).unwrap_or(self.ceiling);
        limit.clamp(self.floor, self.ceiling)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FLOOR: Duration = Duration::from_secs(2);
    const CEILING: Duration = Duration::from_secs(60);

    fn work(tokens: u32, context: u32) -> StepWork {
        StepWork { tokens: Tokens(tokens), context: Tokens(context) }
    }

    fn watchdog(steps: &[(u32, u32, f64)]) -> Watchdog {
        let mut watchdog = Watchdog::new(FLOOR, CEILING);
        for (tokens, context, seconds) in steps {
            watchdog.on_step(work(*tokens, *context), Duration::from_secs_f64(*seconds));
        }
        watchdog
    }

    #[test]
    fn a_group_of_which_nothing_is_known_is_given_all_there_is() {
        let mut watchdog = watchdog(&[(1, 1, 0.01)]);
        assert_eq!(watchdog.limit(work(1, 2)), FLOOR);
        watchdog.forget();
        assert_eq!(watchdog.limit(work(1, 2)), CEILING);
        assert_eq!(Watchdog::new(CEILING, FLOOR).limit(work(1, 1)), FLOOR, "the ceiling holds");
    }

    #[test]
    fn a_small_step_that_hangs_is_found_soon_and_a_large_one_has_its_time() {
        // 30 ms for a token, 4 s for a chunk of 512.
        let watchdog = watchdog(&[(16, 16, 0.2), (1, 17, 0.03), (512, 600, 4.0)]);
        let cases = [
            ((1, 30), 2.0),
            ((16, 100), 2.0),
            ((512, 600), 32.0),
            ((300, 600), 0.2 * 300.0 / 16.0 * 8.0),
            ((4096, 4096), 60.0),
        ];
        for ((tokens, context), expected) in cases {
            let limit = watchdog.limit(work(tokens, context)).as_secs_f64();
            assert!(
                (limit / expected - 1.0).abs() < 0.6,
                "{tokens} tokens at {context}: {limit}, not {expected}"
            );
        }
    }

    #[test]
    fn a_long_context_has_more_time_until_one_was_seen() {
        let seconds = |watchdog: &Watchdog, context| watchdog.limit(work(64, context)).as_secs_f64();
        let mut watchdog = watchdog(&[(64, 1024, 0.5)]);
        assert!((seconds(&watchdog, 1024) - 4.0).abs() < 1e-9);
        assert!((seconds(&watchdog, 3072) - 8.0).abs() < 1e-9);
        watchdog.on_step(work(64, 3072), Duration::from_millis(600));
        assert!((seconds(&watchdog, 3072) - 4.8).abs() < 1e-9);
    }

    proptest! {
        /// Whatever machine and model: fixed costs, costs of a token, of its context, and a load that comes and goes.
        #[test]
        fn no_step_of_a_living_group_is_taken_for_a_hang(
            fixed in 0.0..2.0f64,
            each in 0.0..0.05f64,
            attention_share in 0.0..1.0f64,
            steps in prop::collection::vec((1u32..8192, 0u32..100_000, 1.0..7.0f64), 1..60),
        ) {
            let attention = (fixed / 8192.0 + each) * attention_share / ATTENTION_EVEN;
            let ceiling = Duration::from_secs(1 << 30);
            let mut watchdog = Watchdog::new(FLOOR, ceiling);
            for (tokens, before, load) in steps {
                let step = work(tokens, before + tokens);
                let per_token = each + attention * f64::from(before + tokens);
                let took = Duration::from_secs_f64((fixed + f64::from(tokens) * per_token) * load);
                prop_assert!(took <= watchdog.limit(step), "{took:?}, allowed {:?}", watchdog.limit(step));
                watchdog.on_step(step, took);
            }
        }
    }
}
