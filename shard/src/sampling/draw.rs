//! Draws a token by its probability.

use lockstep_proto::TokenId;

use super::candidates::Candidates;
use super::rng::Generator;
use super::softmax;

/// Which of a position's random numbers decides the token.
const TOKEN_DRAW: u32 = 0;

/// Inverts the cumulative distribution over the vocabulary's order.
pub(super) fn choose(candidates: &Candidates, generator: Generator) -> TokenId {
    let weight = |logit| f64::from(softmax::exp(logit));
    let total: f64 = candidates.as_slice().iter().map(|candidate| weight(candidate.logit)).sum();
    let target = generator.uniform(TOKEN_DRAW) * total;
    let mut reached = 0.0;
    for candidate in candidates.as_slice() {
        reached += weight(candidate.logit);
        if reached > target {
            return candidate.token;
        }
    }
    // The target is below the total, which was added up in the same order; kept for a total of no weight.
    candidates.best().token
}
