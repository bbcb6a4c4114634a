//! Draws a token by its probability.

use lockstep_proto::TokenId;

use super::candidates::Candidates;
use super::rng::Generator;
use super::softmax;

/// Which of a position's random numbers decides the token.
const TOKEN_DRAW: u32 = 0;

/// Inverts the cumulative distribution over the vocabulary's order.
pub(super) fn choose(candidates: &Candidates, generator: Generator) -> TokenId {
    let weights = softmax::exp_of(candidates.logits());
    // One after the other: the order is part of what a seed stands for.
    let total: f64 = weights.iter().copied().map(f64::from).sum();
    let target = generator.uniform(TOKEN_DRAW) * total;
    let mut reached = 0.0;
    for (index, weight) in weights.into_iter().enumerate() {
        reached += f64::from(weight);
        if reached > target {
            return candidates.get(index).token;
        }
    }
    // The target is below the total, which was added up in the same order; kept for a total of no weight.
    candidates.best().token
}
