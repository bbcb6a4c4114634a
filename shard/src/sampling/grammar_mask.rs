//! Rules out the tokens a grammar does not allow.

/// `allowed` has one bit a token, least significant bit first. Tokens past its end are not allowed.
pub(super) fn apply(allowed: &[u8], logits: &mut [f32]) {
    for (index, logit) in logits.iter_mut().enumerate() {
        let byte = allowed.get(index / 8).copied().unwrap_or(0);
        if byte >> (index % 8) & 1 == 0 {
            *logit = f32::NEG_INFINITY;
        }
    }
}
