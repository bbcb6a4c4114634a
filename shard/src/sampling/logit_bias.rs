//! Values added to single logits.

use lockstep_proto::LogitBias;

use super::penalties::bounded;

/// Adds each bias to its token's logit. A bias of minus infinity rules its token out.
pub(super) fn apply(biases: &[LogitBias], logits: &mut [f32]) {
    for LogitBias { token, bias } in biases {
        let Some(logit) = logits.get_mut(token.index()) else { continue };
        *logit = match *bias == f32::NEG_INFINITY {
            true => f32::NEG_INFINITY,
            false => bounded(*logit, *logit + bias),
        };
    }
}
