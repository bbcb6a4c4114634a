//! What one request may ask for.

use lockstep_proto::{Tokens, Watermark};

/// What stands for "no limit of its own": the model's and the cache's limits hold.
pub const UNLIMITED: u32 = u32::MAX;

/// Lengths and counts, as configured and as the shards allow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RequestLimits {
    /// `best_of` at most.
    pub max_best_of: u32,
    /// Stop sequences at most.
    pub max_stop_sequences: usize,
    /// `top_n_tokens` at most.
    pub max_top_n_tokens: u32,
    /// Tokens of a prompt at most.
    pub max_input_tokens: Tokens,
    /// Tokens of prompt and output together at most.
    pub max_total_tokens: Tokens,
    /// Tokens of output where none are asked for, at most.
    pub default_max_new_tokens: Tokens,
    /// Token ids are below this.
    pub vocabulary_size: u32,
    /// The watermark of requests that name no strength.
    pub watermark: Watermark,
}

/// A limit that was asked for and cannot hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lowered {
    /// Its flag.
    pub flag: &'static str,
    /// What was asked for.
    pub asked: Tokens,
    /// What holds.
    pub in_force: Tokens,
}

impl RequestLimits {
    /// The same, for a model with so many rows of logits: a tokenizer may know more ids than the model.
    #[must_use]
    pub fn within_vocabulary(self, vocabulary_size: u32) -> Self {
        Self { vocabulary_size: self.vocabulary_size.min(vocabulary_size), ..self }
    }

    /// The same, within a context of `max_context`.
    #[must_use]
    pub fn within(self, max_context: Tokens) -> Self {
        let max_total_tokens = self.max_total_tokens.min(max_context);
        let max_input_tokens = self.max_input_tokens.min(max_total_tokens.saturating_sub(Tokens(1)));
        Self { max_input_tokens, max_total_tokens, ..self }
    }

    /// Those of these limits that somebody asked for and that are lower in what is in force.
    pub fn lowered_to(self, in_force: Self) -> Vec<Lowered> {
        let (total, input) = (self.max_total_tokens, self.max_input_tokens);
        let is_total_asked = total < Tokens(UNLIMITED);
        // One less than the whole is what the other limit leaves.
        let is_input_asked = input.0.saturating_add(1) < total.0;
        let limits = [
            (is_total_asked, "--max-total-tokens", total, in_force.max_total_tokens),
            (is_input_asked, "--max-input-tokens", input, in_force.max_input_tokens),
        ];
        let lowered = limits.into_iter().filter(|(is_asked, _, asked, holds)| *is_asked && holds < asked);
        lowered.map(|(_, flag, asked, in_force)| Lowered { flag, asked, in_force }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(input: u32, total: u32) -> RequestLimits {
        RequestLimits {
            max_best_of: 1,
            max_stop_sequences: 1,
            max_top_n_tokens: 1,
            max_input_tokens: Tokens(input),
            max_total_tokens: Tokens(total),
            default_max_new_tokens: Tokens(UNLIMITED),
            vocabulary_size: UNLIMITED,
            watermark: Watermark::USUAL,
        }
    }

    #[test]
    fn a_limit_is_lowered_where_somebody_asked_for_it() {
        let total = Lowered { flag: "--max-total-tokens", asked: Tokens(4096), in_force: Tokens(2048) };
        let input = Lowered { flag: "--max-input-tokens", asked: Tokens(4000), in_force: Tokens(2047) };
        let cases = [
            (limits(UNLIMITED - 1, UNLIMITED), vec![]),
            (limits(1000, 2000), vec![]),
            (limits(4095, 4096), vec![total]),
            (limits(4000, 4096), vec![total, input]),
            (limits(4000, UNLIMITED), vec![input]),
            (limits(1000, 4096), vec![total]),
        ];
        for (asked, lowered) in cases {
            assert_eq!(asked.lowered_to(asked.within(Tokens(2048))), lowered, "{asked:?}");
        }
    }
}
