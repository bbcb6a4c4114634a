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
    let distances: Vec<f64> =
        candidates.logits().iter().map(|logit| (surprise(*logit) - entropy).abs()).collect();
    let nearest = |a: &usize, b: &usize| distances[*a].total_cmp(&distances[*b]).then(a.cmp(b));
    let mut sorted: Vec<usize> = (0..candidates.len()).collect();
    let mut reached = 0.0;
    let mut first = 0;
    let mut look = FIRST_LOOK;
    while first < sorted.len() {
        let end = look.min(sorted.len());
        if end < sorted.len() {
            sorted[first..].select_nth_unstable_by(end - first, nearest);
        }
        sorted[first..end].sort_unstable_by(nearest);
        for index in &sorted[first..end] {
            reached += share(weights[*index]);
            if reached >= f64::from(p) {
                let farthest = distances[*index];
                let kept = |index: &usize| distances[*index] <= farthest;
                candidates.keep(&(0..distances.len()).filter(kept).collect::<Vec<_>>());
                candidates.rebase();
                return;
            }
        }
        (first, look) = (end, 8 * look);
    }
}
