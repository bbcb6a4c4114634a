//! Keeps the most probable tokens until their mass reaches p (Holtzman et al. 2019, nucleus sampling).

use super::candidates::{Candidate, Candidates};
use super::{order, softmax};

/// How many of the most probable tokens are looked at first; mostly one of them is enough, and sorting a whole
/// vocabulary is slow.
const LOOKS: [usize; 2] = [256, 4096];

/// A token is kept while the mass of those before it is below `p`: more probable ones, and among equals
/// those with lower ids. 1 is off.
pub(super) fn apply(p: f32, candidates: &mut Candidates) {
    if p >= 1.0 {
        return;
    }
    let enough = f64::from(p) * candidates.mass();
    let looks = LOOKS.into_iter().filter(|look| *look < candidates.len());
    for look in looks.chain([candidates.len()]) {
        let mut sorted = candidates.most_probable(look);
        order::sort_most_probable(&mut sorted);
        if let Some(last) = last_of_nucleus(&sorted, enough) {
            candidates.keep_until(last);
            return;
        }
    }
}

/// The candidate with which the mass reaches `enough`.
fn last_of_nucleus(sorted: &[Candidate], enough: f64) -> Option<Candidate> {
    let mut mass = 0.0;
    for candidate in sorted {
        mass += f64::from(softmax::exp(candidate.logit));
        if mass >= enough {
            return Some(*candidate);
        }
    }
    None
}
