//! Keeps the tokens nearest the expected surprise until their mass reaches p (Meister et al. 2022, "Locally
//! typical sampling").

use super::candidates::{Candidate, Candidates};
use super::softmax;

/// Tokens as near as the last one kept are kept too. 1 is off.
pub(super) fn apply(p: f32, candidates: &mut Candidates) {
    if p >= 1.0 {
        return;
    }
    let mass = candidates.mass();
    let surprise = |candidate: &Candidate| mass.ln() - f64::from(candidate.logit);
    let share = |candidate: &Candidate| f64::from(softmax::exp(candidate.logit)) / mass;
    let entropy: f64 =
        candidates.as_slice().iter().map(|candidate| share(candidate) * surprise(candidate)).sum();
    let distance = |candidate: &Candidate| (surprise(candidate) - entropy).abs();

    let mut sorted: Vec<(f64, Candidate)> =
        candidates.as_slice().iter().map(|candidate| (distance(candidate), *candidate)).collect();
    sorted.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.token.cmp(&b.1.token)));
    let mut reached = 0.0;
    for (farthest, candidate) in &sorted {
        reached += share(candidate);
        if reached >= f64::from(p) {
            candidates.retain(|candidate| distance(candidate) <= *farthest);
            candidates.rebase();
            return;
        }
    }
}
