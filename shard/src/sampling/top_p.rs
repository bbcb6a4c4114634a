//! Keeps the most probable tokens until their mass reaches p (Holtzman et al. 2019, nucleus sampling).

use super::candidates::{Candidate, Candidates};
use super::softmax;

/// How many of the most probable tokens are looked at first; mostly that is enough, and sorting a whole
/// vocabulary is slow.
const FIRST_LOOK: usize = 256;

/// A token is kept while the mass of those before it is below `p`: more probable ones, and among equals
/// those with lower ids. 1 is off.
pub(super) fn apply(p: f32, candidates: &mut Candidates) {
    if p >= 1.0 {
        return;
    }
    let enough = f64::from(p) * candidates.mass();
    let mut sorted = candidates.as_slice().to_vec();
    let mut looked_at = FIRST_LOOK;
    let last = loop {
        let look = looked_at.min(sorted.len());
        if look < sorted.len() {
            sorted.select_nth_unstable_by(look, Candidate::cmp_most_probable);
        }
        sorted[..look].sort_unstable_by(Candidate::cmp_most_probable);
        if let Some(last) = last_of_nucleus(&sorted[..look], enough) {
            break last;
        }
        if look == sorted.len() {
            return;
        }
        looked_at *= 8;
    };
    candidates.retain(|candidate| candidate.cmp_most_probable(&last).is_le());
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
