//! What is drawn when a request arrives: names that nobody can guess, and seeds.

use std::sync::atomic::{AtomicU64, Ordering};

use uuid::Uuid;

/// Where it is drawn from.
#[derive(Debug, Default)]
pub enum Draws {
    /// The system.
    #[default]
    System,
    /// A sequence that is the same each time, for tests: anyone can guess what comes next.
    Repeatable(AtomicU64),
}

impl Draws {
    /// The same draws for the same seed.
    pub fn repeatable(seed: u64) -> Self {
        Self::Repeatable(AtomicU64::new(seed))
    }

    /// Draws a name.
    pub(crate) fn uuid(&self) -> Uuid {
        match self {
            Self::System => Uuid::new_v4(),
            Self::Repeatable(state) => {
                let place = state.fetch_add(1, Ordering::Relaxed);
                uuid::Builder::from_random_bytes(scattered(place).to_le_bytes()).into_uuid()
            }
        }
    }
}

/// SplitMix64 (Steele, Lea and Flood 2014), twice.
fn scattered(place: u64) -> u128 {
    let half = |place: u64| {
        let value = place.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        value ^ (value >> 31)
    };
    u128::from(half(place)) << 64 | u128::from(half(!place))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_draws_the_same_and_never_twice() {
        let draws = |seed| {
            let draws = Draws::repeatable(seed);
            (0..100).map(|_| draws.uuid()).collect::<Vec<_>>()
        };
        assert_eq!(draws(7), draws(7));
        let mut all = [draws(7), draws(1 << 40)].concat();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 200);
    }
}
