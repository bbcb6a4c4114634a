//! Log-probabilities of a token and of its rivals.

use lockstep_proto::{TokenId, TokenLogprob, TokenLogprobs};

use super::candidates::{Candidate, Candidates};
use super::chain::check_numbers;
use super::{SamplingError, scan, softmax};

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
    let largest = scan::overview(logits).largest;
    let log_mass = softmax::sum_exp_of(logits, largest).ln();
    let logprob = |logit: f32| ((f64::from(logit) - f64::from(largest)) - log_mass) as f32;
    let of = logits.get(token.index()).copied().unwrap_or(f32::NEG_INFINITY);
    let most_probable = match top {
        0 => Vec::new(),
        _ => scan::at_least(logits, scan::threshold_of(logits, top)),
    };
    let candidate = |index: usize| Candidate { token: TokenId(index as u32), logit: logits[index] };
    let most_probable = most_probable.into_iter().map(candidate).collect();
    TokenLogprobs { token, logprob: logprob(of), top: ranked(most_probable, top, logprob) }
}

/// Of `token` and the `top` most probable among what is left to choose from.
pub(super) fn of_candidate(candidates: &Candidates, token: TokenId, top: usize) -> TokenLogprobs {
    let log_mass = candidates.mass().ln();
    let logprob = |logit: f32| (f64::from(logit) - log_mass) as f32;
    let of = candidates.logit(token).unwrap_or(f32::NEG_INFINITY);
    let most_probable = if top == 0 { Vec::new() } else { candidates.most_probable(top) };
    TokenLogprobs { token, logprob: logprob(of), top: ranked(most_probable, top, logprob) }
}

/// The first `top` of candidates that hold the most probable ones.
fn ranked(mut candidates: Vec<Candidate>, top: usize, logprob: impl Fn(f32) -> f32) -> Vec<TokenLogprob> {
    candidates.sort_unstable_by(Candidate::cmp_most_probable);
    candidates.truncate(top);
    candidates
        .into_iter()
        .map(|candidate| TokenLogprob { token: candidate.token, logprob: logprob(candidate.logit) })
        .collect()
}
