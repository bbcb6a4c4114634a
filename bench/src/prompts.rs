//! Prompts of simple words, equal for equal seeds, different from each other from the first word on.

const WORDS: &[&str] = &[
    "the", "a", "little", "old", "big", "red", "green", "happy", "dog", "cat", "bird", "tree", "house",
    "river", "boy", "girl", "friend", "mother", "day", "night", "sun", "moon", "ball", "boat", "garden",
    "went", "saw", "found", "played", "ran", "said", "liked", "wanted", "gave", "took", "made", "with",
    "and", "but", "then", "to", "in", "on", "under", "over", "near", "very", "good", "new", "small",
    "water", "hill", "road", "door", "king", "fish", "bear", "apple", "cake", "song", "story", "book",
    "hat", "rain",
];

/// Which prompts to make.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PromptShape {
    pub(crate) seed: u64,
    /// Words of the whole prompt.
    pub(crate) words: usize,
    /// Of those, the first so many are the same in every prompt.
    pub(crate) shared: usize,
}

/// The prompt of the request with this number.
pub(crate) fn prompt(shape: PromptShape, number: u64) -> String {
    let shared = shape.shared.min(shape.words);
    let mut words: Vec<&str> = Vec::with_capacity(shape.words);
    // No request has this number: requests are counted from 0.
    let everyone = Words::new(shape.seed, u64::MAX);
    words.extend(everyone.take(shared));
    words.extend(Words::new(shape.seed, number).take(shape.words - shared));
    words.join(" ")
}

/// Words drawn by a splitmix64 generator (Steele, Lea and Flood 2014).
struct Words {
    state: u64,
}

impl Words {
    fn new(seed: u64, number: u64) -> Self {
        Self { state: mix(seed ^ mix(number.wrapping_add(1))) }
    }
}

impl Iterator for Words {
    type Item = &'static str;

    fn next(&mut self) -> Option<&'static str> {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let drawn = mix(self.state) % WORDS.len() as u64;
        WORDS.get(usize::try_from(drawn).unwrap_or(0)).copied()
    }
}

fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn prompts_repeat_by_seed_and_differ_by_number() {
        let shape = PromptShape { seed: 7, words: 32, shared: 0 };
        assert_eq!(prompt(shape, 3), prompt(shape, 3));
        assert_ne!(prompt(shape, 3), prompt(PromptShape { seed: 8, ..shape }, 3));
        let openings: BTreeSet<String> =
            (0..1000).map(|number| prompt(PromptShape { words: 8, ..shape }, number)).collect();
        assert_eq!(openings.len(), 1000, "two prompts share their first block");
    }

    #[test]
    fn a_shared_prefix_is_shared_and_no_more() {
        let shape = PromptShape { seed: 7, words: 32, shared: 20 };
        let words = |number| prompt(shape, number).split(' ').map(str::to_owned).collect::<Vec<_>>();
        let (a, b) = (words(0), words(1));
        assert_eq!((a.len(), &a[..20]), (32, &b[..20]));
        assert_ne!(a[20..], b[20..]);
    }
}
