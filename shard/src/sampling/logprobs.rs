//! Log-probabilities of a token and of its rivals.

use lockstep_proto::{TokenId, TokenLogprob, TokenLogprobs};

use super::candidates::{Candidate, Candidates};
use super::chain::check_numbers;
use super::{SamplingError, softmax};

/// Of a `token` that is known, the prompt's or a grammar's, and the `top` most probable in the softmax of `logits` (vocabulary).
///
/// # Errors
/// When the logits are not numbers.
pub fn of_known_token(logits: &[f32], token: TokenId, top: usize) -> Result<TokenLogprobs, SamplingError> {
    check_numbers(logits)?;
    Ok(of_token(logits, token, top))
}

/// Of `token` and the `top` most probable in the softmax of `logits` (vocabulary).
pub(super) fn of_token(logits: &[f32], token: TokenId, top: usize) -> TokenLogprobs {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let log_mass = softmax::sum_exp_of(logits, largest).ln();
    let logprob = |logit: f32| ((f64::from(logit) - f64::from(largest)) - log_mass) as f32;
    let all = (0..).zip(logits).map(|(token, logit)| Candidate { token: TokenId(token), logit: *logit });
    let of = logits.get(token.index()).copied().unwrap_or(f32::NEG_INFINITY);
    TokenLogprobs { token, logprob: logprob(of), top: most_probable(all, top.min(logits.len()), logprob) }
}

/// Of `token` and the `top` most probable among what is left to choose from.
pub(super) fn of_candidate(candidates: &Candidates, token: TokenId, top: usize) -> TokenLogprobs {
    let log_mass = candidates.mass().ln();
    let logprob = |logit: f32| (f64::from(logit) - log_mass) as f32;
    let all = candidates.as_slice();
    let of = match all.binary_search_by_key(&token, |candidate| candidate.token) {
        Ok(index) => all[index].logit,
        Err(_) => f32::NEG_INFINITY,
    };
    let top = most_probable(all.iter().copied(), top.min(all.len()), logprob);
    TokenLogprobs { token, logprob: logprob(of), top }
}

/// `top` is at most the number of all there are.
fn most_probable(
    all: impl Iterator<Item = Candidate>,
    top: usize,
    logprob: impl Fn(f32) -> f32,
) -> Vec<TokenLogprob> {
    if top == 0 {
        return Vec::new();
    }
    let mut best: Vec<Candidate> = Vec::with_capacity(top + 1);
    for candidate in all {
        let is_better = |other: &Candidate| candidate.cmp_most_probable(other).is_lt();
        if best.len() < top || best.last().is_some_and(is_better) {
            let place = best.partition_point(|other| !is_better(other));
            best.insert(place, candidate);
            best.truncate(top);
        }
    }
    best.into_iter()
        .map(|candidate| TokenLogprob { token: candidate.token, logprob: logprob(candidate.logit) })
        .collect()
}
