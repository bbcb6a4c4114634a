//! Keeps the most probable tokens until their mass reaches p (Holtzman et al. 2019, nucleus sampling).

use super::candidates::{Candidate, Candidates};
use super::{order, softmax};

/// How many of the most probable tokens are looked at first; mostly one of them is enough, and sorting a whole
/// vocabulary is slow.
const FIRST_LOOK: usize = 256;

/// A token is kept while the mass of those before it is below `p`: more probable ones, and among equals
/// those with lower ids. 1 is off.
pub(super) fn apply(p: f32, candidates: &mut Candidates) {
    if p >= 1.0 {
        return;
    }
    let enough = f64::from(p) * candidates.mass();
    for look in [Look::Least(FIRST_LOOK), Look::Mass(enough), Look::Every] {
        let mut sorted = match look {
            Look::Least(count) => candidates.most_probable(count),
            Look::Mass(mass) => candidates.at_least(threshold_of_mass(candidates, mass)),
            Look::Every => candidates.at_least(f32::NEG_INFINITY),
        };
        order::sort_most_probable(&mut sorted);
        if let Some(last) = last_of_nucleus(&sorted, enough) {
            candidates.keep_until(last);
            return;
        }
    }
}

/// The most probable candidates, as many as one looks at.
enum Look {
    /// So many at least.
    Least(usize),
    /// So many that they should have this mass, by sums of another order and rounding.
    Mass(f64),
    Every,
}

/// A logit: the candidates with that or a larger one have a little more than `mass`.
fn threshold_of_mass(candidates: &Candidates, mass: f64) -> f32 {
    /// Shares of logits a unit wide; from the exponential's end on there is no mass.
    const BINS_PER_UNIT: f32 = 16.0;
    const BINS: usize = 88 * 16;

    let mut masses = [0.0_f64; BINS];
    for (weight, logit) in softmax::exp_of(candidates.logits()).iter().zip(candidates.logits()) {
        masses[((-logit * BINS_PER_UNIT) as usize).min(BINS - 1)] += f64::from(*weight);
    }
    let mut reached = 0.0;
    for (bin, of_bin) in masses.iter().enumerate() {
        reached += of_bin;
        if reached > mass * (1.0 + 1e-9) {
            return -((bin + 1) as f32) / BINS_PER_UNIT;
        }
    }
    f32::NEG_INFINITY
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
