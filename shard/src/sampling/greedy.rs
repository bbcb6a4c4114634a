//! The most probable token.

use lockstep_proto::TokenId;

/// The largest of `logits` (vocabulary), the lowest id among equals; `None` where all are minus infinity.
pub(super) fn choose(logits: &[f32]) -> Option<TokenId> {
    let mut best = None;
    let mut largest = f32::NEG_INFINITY;
    for (token, logit) in (0..).zip(logits) {
        if *logit > largest {
            largest = *logit;
            best = Some(TokenId(token));
        }
    }
    best
}
