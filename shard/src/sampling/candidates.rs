//! The tokens that may still be chosen.

use lockstep_proto::TokenId;

use super::{scan, softmax};

/// Tokens with their logits, relative to the largest, in the order of the vocabulary; never empty.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Candidates {
    logits: Vec<f32>,
    tokens: Tokens,
}

/// Whose the logits are.
#[derive(Clone, Debug, PartialEq)]
enum Tokens {
    /// The whole vocabulary's.
    Every,
    /// Of these, as many as there are logits.
    These(Vec<TokenId>),
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
    /// Every token whose logit is above minus infinity, where `largest` is the largest; `None` when there is
    /// none.
    pub(super) fn of(mut logits: Vec<f32>, largest: f32) -> Option<Self> {
        if largest == f32::NEG_INFINITY {
            return None;
        }
        scan::change(&mut logits, |logit| logit - largest);
        let mut all = Self { logits, tokens: Tokens::Every };
        all.drop_impossible();
        // An infinite logit would leave none.
        (!all.logits.is_empty()).then_some(all)
    }

    pub(super) fn len(&self) -> usize {
        self.logits.len()
    }

    /// In the order of the vocabulary.
    pub(super) fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// The `index`-th in the order of the vocabulary.
    pub(super) fn get(&self, index: usize) -> Candidate {
        let token = match &self.tokens {
            Tokens::Every => TokenId(index as u32),
            Tokens::These(tokens) => tokens[index],
        };
        Candidate { token, logit: self.logits[index] }
    }

    /// A token's logit; `None` where it is no candidate.
    pub(super) fn logit(&self, token: TokenId) -> Option<f32> {
        let index = match &self.tokens {
            Tokens::Every => token.index(),
            Tokens::These(tokens) => tokens.binary_search(&token).ok()?,
        };
        self.logits.get(index).copied()
    }

    /// The most probable; the lowest id among equals.
    pub(super) fn best(&self) -> Candidate {
        let largest = scan::overview(&self.logits).largest;
        let best = scan::first_of(&self.logits, largest);
        self.get(best.expect("every warper keeps a candidate"))
    }

    /// The `count` most probable at least, in the order of the vocabulary, and all that are as probable as the
    /// least of them; all where there are not more.
    pub(super) fn most_probable(&self, count: usize) -> Vec<Candidate> {
        self.at_least(scan::threshold_of(&self.logits, count))
    }

    /// Those at least as probable as `threshold`, in the order of the vocabulary.
    pub(super) fn at_least(&self, threshold: f32) -> Vec<Candidate> {
        let found = scan::at_least(&self.logits, threshold);
        found.into_iter().map(|index| self.get(index)).collect()
    }

    /// Changes every logit, in a way that keeps their order; drops what falls to minus infinity.
    pub(super) fn scale(&mut self, scale: impl Fn(f32) -> f32) {
        scan::change(&mut self.logits, scale);
        self.drop_impossible();
    }

    /// Drops the candidates below `threshold`.
    pub(super) fn keep_at_least(&mut self, threshold: f32) {
        let kept = scan::at_least(&self.logits, threshold);
        self.keep(&kept);
    }

    /// Drops the candidates less probable than `last`, which is one of them.
    pub(super) fn keep_until(&mut self, last: Candidate) {
        let mut kept = scan::at_least(&self.logits, last.logit);
        kept.retain(|index| self.get(*index).cmp_most_probable(&last).is_le());
        self.keep(&kept);
    }

    /// Keeps those of the indices, which are in order and one at least.
    pub(super) fn keep(&mut self, indices: &[usize]) {
        if indices.len() == self.len() {
            return;
        }
        let tokens = indices.iter().map(|index| self.get(*index).token).collect();
        self.logits = indices.iter().map(|index| self.logits[*index]).collect();
        self.tokens = Tokens::These(tokens);
    }

    /// Sum of the exponentials of the logits: what probabilities are shares of.
    pub(super) fn mass(&self) -> f64 {
        softmax::sum_exp_of(&self.logits, 0.0)
    }

    /// Makes the largest logit 0 again, where the most probable token was dropped.
    pub(super) fn rebase(&mut self) {
        let largest = self.best().logit;
        if largest < 0.0 {
            self.scale(|logit| logit - largest);
        }
    }

    fn drop_impossible(&mut self) {
        if !scan::all_at_least(&self.logits, f32::MIN) {
            self.keep_at_least(f32::MIN);
        }
    }
}
