//! The most probable token.

use lockstep_proto::TokenId;

use super::scan;

/// The largest of `logits` (vocabulary), the lowest id among equals; `None` where all are minus infinity.
pub(super) fn choose(logits: &[f32]) -> Option<TokenId> {
    let largest = scan::overview(logits).largest;
    let first = if largest == f32::NEG_INFINITY { None } else { scan::first_of(logits, largest) };
    first.and_then(|index| u32::try_from(index).ok()).map(TokenId)
}
