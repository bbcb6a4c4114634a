//! Flattens or sharpens the distribution.

use super::candidates::Candidates;

/// Divides the logits, which are relative to the largest, so that no temperature overflows.
pub(super) fn apply(temperature: f32, candidates: &mut Candidates) {
    if temperature != 1.0 {
        candidates.scale(|logit| logit / temperature);
    }
}
