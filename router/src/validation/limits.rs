//! What one request may ask for.

use lockstep_proto::{Tokens, Watermark};

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
}
