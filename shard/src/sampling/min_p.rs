//! Keeps the tokens that are at least a share as probable as the most probable one.

use super::candidates::Candidates;
use super::{scan, softmax};

/// 0 is off.
pub(super) fn apply(min_p: f32, candidates: &mut Candidates) {
    if min_p > 0.0 {
        let kept = scan::at_least(&softmax::exp_of(candidates.logits()), min_p);
        candidates.keep(&kept);
    }
}
