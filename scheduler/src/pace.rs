//! How fast the shards are, lately: what a queue of so many tokens means in seconds.

use std::time::Duration;

use lockstep_proto::Tokens;

/// Each step and each sequence counts for so much less than the one after it.
const DECAY: f64 = 31.0 / 32.0;

/// Rates measured over recent steps. Without any, everything is expected to take no time at all: nobody is
/// refused for what is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pace {
    tokens: f64,
    seconds: f64,
    outputs: f64,
    sequences: f64,
}

impl Pace {
    /// A step computed `tokens` in `took`.
    pub fn on_step(&mut self, tokens: Tokens, took: Duration) {
        self.tokens = self.tokens * DECAY + f64::from(tokens.0);
        self.seconds = self.seconds * DECAY + took.as_secs_f64();
    }

    /// A sequence ended by itself, after `output` tokens.
    pub fn on_finished(&mut self, output: Tokens) {
        self.outputs = self.outputs * DECAY + f64::from(output.0);
        self.sequences = self.sequences * DECAY + 1.0;
    }

    /// How long so many tokens take.
    pub fn time_for(&self, tokens: u64) -> Duration {
        if self.tokens <= 0.0 {
            return Duration::ZERO;
        }
        let seconds = tokens as f64 * self.seconds / self.tokens;
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }

    /// How many tokens a sequence writes that may write `max_new_tokens`.
    pub fn expected_output(&self, max_new_tokens: Tokens) -> Tokens {
        if self.sequences <= 0.0 {
            return Tokens::ZERO;
        }
        // A mean of numbers of tokens is one, but for its fraction.
        let mean = Tokens((self.outputs / self.sequences).round() as u32);
        mean.min(max_new_tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_measured_takes_no_time() {
        let pace = Pace::default();
        assert_eq!(pace.time_for(1_000_000), Duration::ZERO);
        assert_eq!(pace.expected_output(Tokens(50)), Tokens::ZERO);
    }

    #[test]
    fn tokens_take_as_long_as_they_took() {
        let mut pace = Pace::default();
        for _ in 0..200 {
            pace.on_step(Tokens(512), Duration::from_millis(256));
            pace.on_finished(Tokens(40));
        }
        let took = pace.time_for(10_000).as_secs_f64();
        assert!((took - 5.0).abs() < 1e-6, "{took}");
        assert_eq!(pace.expected_output(Tokens(50)), Tokens(40));
        assert_eq!(pace.expected_output(Tokens(10)), Tokens(10));
    }

    #[test]
    fn the_latest_steps_count_most() {
        let mut pace = Pace::default();
        for milliseconds in [10, 1_000] {
            for _ in 0..200 {
                pace.on_step(Tokens(100), Duration::from_millis(milliseconds));
            }
        }
        assert!(pace.time_for(100) > Duration::from_millis(950));
    }
}
