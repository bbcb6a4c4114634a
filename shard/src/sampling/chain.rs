//! The order in which a row of logits becomes a token, stated once.

use std::borrow::Cow;

use lockstep_proto::{LogprobsOf, SamplingParams, Seeded, Selection, TokenId, TokenLogprobs, Tokens};

use super::candidates::Candidates;
use super::penalties::{self, Occurrences};
use super::rng::Generator;
use super::scan::{self, Overview};
use super::{
    SamplingError, draw, grammar_mask, greedy, logit_bias, logprobs, min_p, temperature, top_k, top_p,
    typical_p, watermark,
};

/// What a token is chosen from.
pub(super) struct Row<'a> {
    /// Of the whole vocabulary, as the model computed them.
    pub(super) logits: &'a [f32],
    /// The grammar's mask.
    pub(super) allowed: Option<&'a [u8]>,
    /// How many tokens were emitted before.
    pub(super) output_position: Tokens,
    /// The token before; absent where there is none.
    pub(super) previous: Option<TokenId>,
}

/// Watermark, bias, penalties, grammar mask, temperature, top-k, top-p, typical-p, min-p, choice.
pub(super) fn run(
    params: &SamplingParams,
    occurrences: &Occurrences,
    row: Row<'_>,
) -> Result<TokenLogprobs, SamplingError> {
    check_numbers(row.logits)?;
    let logits = processed(params, occurrences, &row);
    let top = params.top_logprobs as usize;
    let (token, candidates) = match &params.selection {
        Selection::Greedy => (greedy::choose(&logits), None),
        Selection::Seeded(seeded) => {
            let largest = scan::overview(&logits).largest;
            let mut candidates =
                Candidates::of(logits.to_vec(), largest).ok_or(SamplingError::NothingLeft)?;
            warp(seeded, &mut candidates);
            let generator = Generator::new(seeded.seed, seeded.choice, row.output_position);
            (Some(draw::choose(&candidates, generator)), Some(candidates))
        }
    };
    let token = token.ok_or(SamplingError::NothingLeft)?;
    Ok(match (params.logprobs_of, candidates) {
        (LogprobsOf::Model, _) => logprobs::of_token(row.logits, token, top),
        (LogprobsOf::Warped, Some(candidates)) => logprobs::of_candidate(&candidates, token, top),
        (LogprobsOf::Warped, None) => logprobs::of_token(&logits, token, top),
    })
}

/// The logits after what changes single ones of them; the model's own where nothing does.
fn processed<'a>(params: &SamplingParams, occurrences: &Occurrences, row: &Row<'a>) -> Cow<'a, [f32]> {
    let mut logits = Cow::Borrowed(row.logits);
    if let Some((mark, previous)) = params.watermark.as_ref().zip(row.previous) {
        watermark::apply(mark, previous, logits.to_mut());
    }
    if !params.logit_bias.is_empty() {
        logit_bias::apply(&params.logit_bias, logits.to_mut());
    }
    if penalties::are_on(params) {
        penalties::apply(params, occurrences, logits.to_mut());
    }
    if let Some(allowed) = row.allowed {
        grammar_mask::apply(allowed, logits.to_mut());
    }
    logits
}

fn warp(seeded: &Seeded, candidates: &mut Candidates) {
    let Seeded { seed: _, choice: _, temperature, top_k, top_p, typical_p, min_p } = seeded;
    temperature::apply(*temperature, candidates);
    top_k::apply(*top_k, candidates);
    top_p::apply(*top_p, candidates);
    typical_p::apply(*typical_p, candidates);
    min_p::apply(*min_p, candidates);
}

/// Minus infinity is a number here: a model may rule tokens out, but not all of them.
pub(super) fn check_numbers(logits: &[f32]) -> Result<(), SamplingError> {
    let Overview { largest, has_nan } = scan::overview(logits);
    match largest {
        _ if has_nan => Err(SamplingError::NotFinite { found: "NaN" }),
        f32::INFINITY => Err(SamplingError::NotFinite { found: "infinity" }),
        f32::NEG_INFINITY => Err(SamplingError::NotFinite { found: "minus infinity only" }),
        _ => Ok(()),
    }
}
