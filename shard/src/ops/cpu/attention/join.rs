//! Joins what was found of single splits.

use super::super::isa::Kernel;
use super::super::parallel::SharedSlice;
use super::super::simd::Simd;
use super::softmax::Softmax;
use super::{Unit, sees};
use crate::ops::attention::AttentionShape;

/// Joins what walks over single splits found.
pub(super) struct Join<'a> {
    pub(super) shape: AttentionShape,
    pub(super) units: &'a [Unit<'a>],
    /// (parts, queries, elements of a softmax)
    pub(super) found: &'a [f32],
    pub(super) queries: usize,
    pub(super) output: SharedSlice<'a, f32>,
}

impl Kernel for Join<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let mut joined = Softmax::new(self.shape.kv.padded_width());
        let mut first = 0;
        for unit in self.units {
            for query in 0..unit.queries() {
                self.join(simd, (unit, first, query), &mut joined);
                let start = unit.output(query, self.shape);
                // SAFETY: a row and head belong to one unit, and this is the one thread.
                joined.write(unsafe { self.output.part(start, self.shape.kv.head_width) });
            }
            first += unit.splits(self.shape.window).len();
        }
    }
}

impl Join<'_> {
    /// Joins the splits of one query of a unit, whose parts begin at `first`.
    #[inline(always)]
    fn join<S: Simd>(
        &self,
        simd: S,
        (unit, first, query): (&Unit<'_>, usize, usize),
        joined: &mut Softmax,
    ) {
        let elements = Softmax::elements(self.shape.kv.padded_width());
        let seen = unit.seen(query, self.shape.window);
        joined.clear();
        for (part, split) in (first..).zip(unit.splits(self.shape.window)) {
            let found = &self.found[(part * self.queries + query) * elements..][..elements];
            let (sums, numbers) = found.split_at(elements - 2);
            if sees(&seen, split) {
                joined.add(simd, numbers[0], numbers[1], sums);
            }
        }
    }
}
