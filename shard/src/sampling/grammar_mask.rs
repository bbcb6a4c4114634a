//! Rules out the tokens a grammar does not allow.

/// `allowed` has one bit a token, least significant bit first. Tokens past its end are not allowed.
pub(super) fn apply(allowed: &[u8], logits: &mut [f32]) {
    for (index, logits) in logits.chunks_mut(8).enumerate() {
        match allowed.get(index).copied().unwrap_or(0) {
            0 => logits.fill(f32::NEG_INFINITY),
            u8::MAX => {}
            byte => {
                for (bit, logit) in logits.iter_mut().enumerate() {
                    *logit = if byte >> bit & 1 == 0 { f32::NEG_INFINITY } else { *logit };
                }
            }
        }
    }
}
