//! Keeps the tokens nearest the expected surprise until their mass reaches p (Meister et al. 2022, "Locally
//! typical sampling").

use super::candidates::Candidates;
use super::softmax;

/// How many of the nearest tokens are looked at first: sorting a whole vocabulary is slow.
const FIRST_LOOK: usize = 1024;

/// Tokens as near as the last one kept are kept too. 1 is off.
pub(super) fn apply(p: f32, candidates: &mut Candidates) {
    if p >= 1.0 {
        return;
    }
    let mass = candidates.mass();
    let log_mass = mass.ln();
    let weights = softmax::exp_of(candidates.logits());
    let surprise = |logit: f32| log_mass - f64::from(logit);
    let share = |weight: f32| f64::from(weight) / mass;
    let parts = weights.iter().zip(candidates.logits());
    let entropy: f64 = parts.map(|(weight, logit)| share(*weight) * surprise(*logit)).sum();
    let distance = |logit: f32| (surprise(logit) - entropy).abs();
    let mut sorted: Vec<(f64, usize)> =
        candidates.logits().iter().map(|logit| distance(*logit)).zip(0..).collect();
    let nearest = |a: &(f64, usize), b: &(f64, usize)| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1));
    let look = FIRST_LOOK.min(sorted.len());
    if look < sorted.len() {
        sorted.select_nth_unstable_by(look, nearest);
    }
    let mut reached = 0.0;
    for part in [0..look, look..sorted.len()] {
        sorted[part.clone()].sort_unstable_by(nearest);
        for (farthest, index) in &sorted[part] {
            reached += share(weights[*index]);
            if reached >= f64::from(p) {
                let logits = candidates.logits();
                let kept = |index: &usize| distance(logits[*index]) <= *farthest;
                let kept: Vec<usize> = (0..logits.len()).filter(kept).collect();
                candidates.keep(&kept);
                candidates.rebase();
                return;
            }
        }
    }
}
