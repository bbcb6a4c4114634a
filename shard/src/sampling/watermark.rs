//! A mark that a text is generated (Kirchenbauer et al. 2023).

use lockstep_proto::{TokenId, Watermark};

use super::penalties::bounded;

/// Adds to the logits of the tokens that the mark favours after `previous`.
pub(super) fn apply(watermark: &Watermark, previous: TokenId, logits: &mut [f32]) {
    let green = watermark.after(previous);
    for (token, logit) in (0..).zip(logits) {
        // Half of the vocabulary at random: a branch would be guessed wrong half of the time.
        let added = if green.holds(TokenId(token)) { watermark.delta } else { 0.0 };
        *logit = bounded(*logit, *logit + added);
    }
}
