//! A mark that a text is generated (Kirchenbauer et al. 2023).

use lockstep_proto::{TokenId, Watermark};

use super::penalties::bounded;

/// Adds to the logits of the tokens that the mark favours after `previous`.
pub(super) fn apply(watermark: &Watermark, previous: TokenId, logits: &mut [f32]) {
    let green = watermark.after(previous);
    for (token, logit) in (0..).zip(logits) {
        if green.holds(TokenId(token)) {
            *logit = bounded(*logit, *logit + watermark.delta);
        }
    }
}
