//! Repetition, frequency and presence penalties.

use std::collections::BTreeMap;

use lockstep_proto::{SamplingParams, TokenId};

/// How often each token stands in a sequence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Occurrences {
    /// Of every token of prompt and output: how often it stands in the output.
    in_output: BTreeMap<TokenId, u32>,
}

impl Occurrences {
    /// Of a prompt.
    pub(super) fn of(prompt: &[TokenId]) -> Self {
        Self { in_output: prompt.iter().map(|token| (*token, 0)).collect() }
    }

    /// Tokens of prompt and output, and how often each stands in the output.
    #[cfg(feature = "cuda")]
    pub(super) fn iter(&self) -> impl Iterator<Item = (TokenId, u32)> {
        self.in_output.iter().map(|(token, count)| (*token, *count))
    }

    pub(super) fn on_emitted(&mut self, token: TokenId) {
        *self.in_output.entry(token).or_default() += 1;
    }
}

/// Whether any penalty is on.
pub(super) fn are_on(params: &SamplingParams) -> bool {
    params.repetition_penalty != 1.0 || params.frequency_penalty != 0.0 || params.presence_penalty != 0.0
}

/// Repetition over prompt and output (Keskar et al. 2019), then frequency and presence over the output, as
/// the OpenAI API defines them.
pub(super) fn apply(params: &SamplingParams, occurrences: &Occurrences, logits: &mut [f32]) {
    for (token, in_output) in &occurrences.in_output {
        let Some(logit) = logits.get_mut(token.index()) else { continue };
        let repeated = if *logit < 0.0 {
            *logit * params.repetition_penalty
        } else {
            *logit / params.repetition_penalty
        };
        *logit = bounded(*logit, repeated);
        if *in_output > 0 {
            let penalty = params.frequency_penalty * *in_output as f32 + params.presence_penalty;
            *logit = bounded(*logit, *logit - penalty.clamp(f32::MIN, f32::MAX));
        }
    }
}

/// `changed` from `logit`, made finite: any parameter that is accepted may carry a logit past what f32 holds,
/// and the difference of two infinities is no number. What was ruled out stays so.
pub(super) fn bounded(logit: f32, changed: f32) -> f32 {
    if logit == f32::NEG_INFINITY { logit } else { changed.clamp(f32::MIN, f32::MAX) }
}
