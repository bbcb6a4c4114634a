//! One query's softmax over several splits.

use super::super::simd::{LANES, Simd, exp};

/// What splits added up to, in the order they were added.
pub(super) struct Softmax {
    /// The largest score; absent before the first split.
    maximum: Option<f32>,
    /// The sum of the weights.
    total: f32,
    /// (padded head width): the sums of the weighted values.
    sums: Vec<f32>,
}

impl Softmax {
    pub(super) fn new(padded: usize) -> Self {
        Self { maximum: None, total: 0.0, sums: vec![0.0; padded] }
    }

    /// Numbers it is made of: the sums, the maximum and the total.
    pub(super) fn elements(padded: usize) -> usize {
        padded + 2
    }

    pub(super) fn clear(&mut self) {
        self.maximum = None;
    }

    /// Adds a split: its largest score, the sum of its weights and its weighted values.
    #[inline(always)]
    pub(super) fn add<S: Simd>(&mut self, simd: S, maximum: f32, total: f32, sums: &[f32]) {
        let Some(before) = self.maximum else {
            (self.maximum, self.total) = (Some(maximum), total);
            self.sums.copy_from_slice(sums);
            return;
        };
        let larger = before.max(maximum);
        let mut exponents = [0.0; LANES];
        (exponents[0], exponents[1]) = (before - larger, maximum - larger);
        let [kept, added, ..] = simd.to_array(exp(simd, simd.load(&exponents)));
        self.maximum = Some(larger);
        self.total = self.total * kept + total * added;
        for (sum, more) in self.sums.iter_mut().zip(sums) {
            *sum = *sum * kept + more * added;
        }
    }

    /// Writes what it is made of.
    #[inline(always)]
    pub(super) fn save(&self, to: &mut [f32]) {
        let numbers = [self.maximum.unwrap_or(f32::MIN), self.total];
        for (to, number) in to.iter_mut().zip(self.sums.iter().chain(&numbers)) {
            *to = *number;
        }
    }

    /// The weighted mean of the values.
    #[inline(always)]
    pub(super) fn write(&self, output: &mut [f32]) {
        let factor = 1.0 / self.total;
        for (output, sum) in output.iter_mut().zip(&self.sums) {
            *output = sum * factor;
        }
    }
}
