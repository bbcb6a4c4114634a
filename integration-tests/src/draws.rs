//! Random choices of a test, the same in every run.

/// Draws of a splitmix64 generator (Steele, Lea and Flood 2014), from a seed.
#[derive(Clone, Copy, Debug)]
pub struct Draws(pub u64);

impl Draws {
    /// A number below `bound`, which is not zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}
