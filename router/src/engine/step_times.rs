//! How long steps take, so that the next one is planned shortly before the one under way is done.

use std::time::Duration;

use super::watchdog::{SIZES, StepWork};

/// How long before a step should be done the next one is planned. What arrives after that waits for a step more, so
/// it is short; but planning, sending and reading take a part of a millisecond, and timers go by whole ones.
const LEAD: Duration = Duration::from_millis(2);

/// So many steps of a size count. The shortest of them is what one takes that nothing holds up: planned for too early
/// costs little, too late is in vain.
const REMEMBERED: usize = 4;

/// What steps took lately.
#[derive(Clone, Debug, Default)]
pub(super) struct StepTimes {
    /// By the logarithm of their tokens.
    sizes: [Recent; SIZES],
}

/// The last steps of about one size.
#[derive(Clone, Copy, Debug, Default)]
struct Recent {
    took: [Option<Duration>; REMEMBERED],
    next: usize,
}

impl StepTimes {
    /// A new group: nothing is known of it.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    /// A step took so long.
    pub(super) fn on_step(&mut self, work: StepWork, took: Duration) {
        let Some(recent) = self.sizes.get_mut(work.size()) else { return };
        recent.took[recent.next] = Some(took);
        recent.next = (recent.next + 1) % REMEMBERED;
    }

    /// When after a step has begun the next one is to be planned; at once where steps are short. `None` as long as
    /// nothing is known of such steps.
    pub(super) fn next_planned_after(&self, work: StepWork) -> Option<Duration> {
        let recent = self.sizes.get(work.size())?;
        let shortest = recent.took.iter().flatten().min()?;
        Some(shortest.saturating_sub(LEAD))
    }
}

#[cfg(test)]
mod tests {
    use lockstep_proto::Tokens;

    use super::*;

    fn work(tokens: u32) -> StepWork {
        StepWork { tokens: Tokens(tokens), context: Tokens(100) }
    }

    fn times(steps: &[(u32, u64)]) -> StepTimes {
        let mut times = StepTimes::default();
        for (tokens, ms) in steps {
            times.on_step(work(*tokens), Duration::from_millis(*ms));
        }
        times
    }

    #[test]
    fn nothing_is_planned_for_what_is_not_known() {
        let mut times = times(&[(16, 30)]);
        assert_eq!(times.next_planned_after(work(512)), None);
        assert_eq!(times.next_planned_after(work(8)), None);
        assert_eq!(times.next_planned_after(work(31)), Some(Duration::from_millis(28)));
        times.forget();
        assert_eq!(times.next_planned_after(work(16)), None);
    }

    #[test]
    fn the_shortest_of_the_last_few_counts() {
        let after = |steps: &[(u32, u64)]| times(steps).next_planned_after(work(16));
        let ms = |ms| Some(Duration::from_millis(ms));
        assert_eq!(after(&[(16, 30), (16, 90), (16, 31)]), ms(28));
        assert_eq!(
            after(&[(16, 5), (16, 30), (16, 40), (16, 50), (16, 60)]),
            ms(28),
            "the first is too old"
        );
        assert_eq!(after(&[(16, 1)]), ms(0), "at once");
    }
}
