//! The tokens that may still be chosen.

use lockstep_proto::TokenId;

use super::softmax;

/// Tokens with their logits, relative to the largest, in the order of the vocabulary; never empty.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Candidates {
    tokens: Vec<Candidate>,
}

/// A token that may be chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    pub(super) token: TokenId,
    /// At most 0; the most probable have 0.
    pub(super) logit: f32,
}

impl Candidate {
    /// More probable first, the lower id first among equals.
    pub(super) fn cmp_most_probable(&self, other: &Self) -> std::cmp::Ordering {
        // Adding 0 makes minus zero equal to zero, as they are to a reader.
        (other.logit + 0.0).total_cmp(&(self.logit + 0.0)).then(self.token.cmp(&other.token))
    }
}

impl Candidates {
    /// Every token whose logit is above minus infinity; `None` when there is none.
    pub(super) fn of(logits: &[f32]) -> Option<Self> {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if largest == f32::NEG_INFINITY {
            return None;
        }
        let candidate =
            |(token, logit): (u32, &f32)| Candidate { token: TokenId(token), logit: logit - largest };
        let all = (0..).zip(logits).map(candidate);
        let tokens: Vec<Candidate> = all.filter(|candidate| candidate.logit > f32::NEG_INFINITY).collect();
        // An infinite logit would leave none.
        (!tokens.is_empty()).then_some(Self { tokens })
    }

    /// In the order of the vocabulary.
    pub(super) fn as_slice(&self) -> &[Candidate] {
        &self.tokens
    }

    /// The most probable; the lowest id among equals.
    pub(super) fn best(&self) -> Candidate {
        let best = self.tokens.iter().min_by(|a, b| a.cmp_most_probable(b));
        *best.expect("every warper keeps a candidate")
    }

    /// Changes every logit, in a way that keeps their order; drops what falls to minus infinity.
    pub(super) fn scale(&mut self, scale: impl Fn(f32) -> f32) {
        for candidate in &mut self.tokens {
            candidate.logit = scale(candidate.logit);
        }
        self.tokens.retain(|candidate| candidate.logit > f32::NEG_INFINITY);
    }

    /// Drops what `keep` does not keep. It must keep one at least.
    pub(super) fn retain(&mut self, keep: impl Fn(&Candidate) -> bool) {
        self.tokens.retain(keep);
    }

    /// Sum of the exponentials of the logits: what probabilities are shares of.
    pub(super) fn mass(&self) -> f64 {
        softmax::sum_exp(self.tokens.iter().map(|candidate| candidate.logit))
    }

    /// Makes the largest logit 0 again, where the most probable token was dropped.
    pub(super) fn rebase(&mut self) {
        let largest = self.best().logit;
        if largest < 0.0 {
            self.scale(|logit| logit - largest);
        }
    }
}
