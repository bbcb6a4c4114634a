//! Which tokens a watermark favours: part of the interface, since whoever looks for one must find the same.

use crate::TokenId;

/// Favours a part of the vocabulary, the green list, another one after each token, so that a text can be told to be
/// generated from its tokens alone (Kirchenbauer et al. 2023, "A watermark for large language models").
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Watermark {
    /// The share of the vocabulary that is favoured, between 0 and 1.
    pub gamma: f32,
    /// Added to its logits.
    pub delta: f32,
}

impl Watermark {
    /// The reference server's.
    pub const USUAL: Self = Self { gamma: 0.5, delta: 2.0 };

    /// The green list of the position after `previous`.
    pub fn after(&self, previous: TokenId) -> GreenList {
        GreenList::new(self.gamma, previous)
    }
}

/// The tokens that are favoured after a token. No list is held and no order of the vocabulary is needed: a hash of
/// both ids decides, in integers, so every device and every detector agrees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GreenList {
    key: u64,
    /// Hashes of 32 bits below this are green.
    bound: u64,
}

impl GreenList {
    /// A prime, which the reference implementation multiplies the previous token with too.
    const KEY: u64 = 15_485_863;

    /// About a share `gamma` of any vocabulary.
    pub fn new(gamma: f32, previous: TokenId) -> Self {
        // A product with a power of two is exact, so the bound is the same everywhere.
        let bound = (f64::from(gamma) * (1_u64 << 32) as f64) as u64;
        Self { key: mixed(Self::KEY.wrapping_mul(u64::from(previous.0) + 1)), bound }
    }

    /// Whether `token` is on it. Asked of a whole vocabulary for each token.
    #[inline]
    pub fn holds(&self, token: TokenId) -> bool {
        mixed(self.key ^ u64::from(token.0)) >> 32 < self.bound
    }
}

/// The output function of SplitMix64 (Steele et al. 2014): every bit of the result depends on all of `state`.
#[inline]
fn mixed(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Texts that were marked yesterday must be found tomorrow.
    #[test]
    fn who_is_favoured_never_changes() {
        let favoured = |previous| {
            let list = Watermark::USUAL.after(TokenId(previous));
            (0..16).filter(|token| list.holds(TokenId(*token))).collect::<Vec<u32>>()
        };
        assert_eq!(favoured(0), [3, 5, 7, 9, 13, 14, 15]);
        assert_eq!(favoured(151_000), [2, 3, 5, 6, 7, 8, 9, 12, 13]);
    }

    #[test]
    fn a_share_of_gamma_is_favoured_and_another_after_each_token() {
        for gamma in [0.1_f32, 0.25, 0.5, 0.9] {
            let on =
                |previous: u32, token: u32| GreenList::new(gamma, TokenId(previous)).holds(TokenId(token));
            let count =
                |holds: &dyn Fn(u32) -> bool| (0..20_000).filter(|token| holds(*token)).count() as f32;
            let both = gamma * gamma;
            for previous in [0, 1, 2, 31_999] {
                // Four deviations of a fair coin among 20,000 are 0.015.
                assert!((count(&|token| on(previous, token)) / 20_000.0 - gamma).abs() < 0.015);
                let shared = count(&|token| on(previous, token) && on(previous + 1, token)) / 20_000.0;
                assert!((shared - both).abs() < 0.015, "{gamma} {shared}");
            }
        }
    }
}
