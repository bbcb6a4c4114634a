//! Keeps the k most probable tokens.

use super::candidates::Candidates;

/// Tokens as probable as the k-th are kept too; 0 is off.
pub(super) fn apply(k: u32, candidates: &mut Candidates) {
    let k = k as usize;
    if k == 0 || k >= candidates.len() {
        return;
    }
    let most_probable = candidates.most_probable(k);
    let mut logits: Vec<f32> = most_probable.iter().map(|candidate| candidate.logit).collect();
    let (_, threshold, _) = logits.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
    candidates.keep_at_least(*threshold);
}
