//! Queries that visit tiles together, and the online softmax of each.

use std::ops::Range;

use super::super::kv_step::KvStep;
use super::super::simd::{LANES, Simd};
use super::sees;
use super::softmax::Softmax;
use crate::kv::layout::KvLayout;

/// Queries of a chunk: the sums of so many fit the registers.
pub(super) const CHUNK: usize = 4;

/// What becomes of a product of query and key.
#[derive(Clone, Copy)]
pub(super) struct Scoring {
    pub(super) scale: f32,
    pub(super) softcap: Option<f32>,
}

/// A few queries.
pub(super) struct Chunk<P> {
    /// (steps of a head): an element or a pair of each.
    pub(super) queries: Vec<[P; CHUNK]>,
    /// What each one's elements are numbers of.
    pub(super) scales: [f32; CHUNK],
    /// The positions each sees.
    pub(super) seen: [Range<usize>; CHUNK],
    /// The largest score yet.
    pub(super) maxima: [f32; CHUNK],
    /// The sums of the weights so far, spread over lanes.
    pub(super) totals: [[f32; LANES]; CHUNK],
    /// (queries, padded head width): the sums of the weighted values so far.
    pub(super) sums: Vec<f32>,
    padded: usize,
}

impl<P: KvStep> Chunk<P> {
    pub(super) fn new(layout: KvLayout) -> Self {
        let padded = layout.padded_width();
        Self {
            queries: vec![[P::ZERO; CHUNK]; layout.head_width.div_ceil(P::ELEMENTS)],
            scales: [1.0; CHUNK],
            seen: [0..0, 0..0, 0..0, 0..0],
            maxima: [f32::MIN; CHUNK],
            totals: [[0.0; LANES]; CHUNK],
            sums: vec![0.0; CHUNK * padded],
            padded,
        }
    }

    /// Sets one of the queries, which sees the positions of `seen`.
    #[inline(always)]
    pub(super) fn set<S: Simd>(&mut self, simd: S, query: usize, elements: &[f32], seen: Range<usize>) {
        self.seen[query] = seen;
        let (scale, factor) = P::query_scale(simd, elements);
        self.scales[query] = scale;
        let mut steps = [P::ZERO; LANES];
        let together = LANES / P::ELEMENTS;
        for (elements, to) in elements.chunks(LANES).zip(self.queries.chunks_mut(together)) {
            let numbers = simd.mul(simd.load_first(elements), simd.splat(factor));
            P::write(simd, numbers, &mut steps[..together]);
            for (to, step) in to.iter_mut().zip(&steps) {
                to[query] = *step;
            }
        }
    }

    /// Forgets the tiles that were visited.
    #[inline(always)]
    pub(super) fn begin(&mut self) {
        self.maxima = [f32::MIN; CHUNK];
        self.totals = [[0.0; LANES]; CHUNK];
        self.sums.fill(0.0);
    }

    /// Multiplies what a query added up of values so far.
    #[inline(always)]
    pub(super) fn rescale<S: Simd>(&mut self, simd: S, query: usize, by: f32) {
        // Multiplying by one changes nothing.
        if by == 1.0 {
            return;
        }
        let by = simd.splat(by);
        for sums in self.sums[query * self.padded..][..self.padded].as_chunks_mut::<LANES>().0 {
            let scaled = simd.mul(simd.load(sums), by);
            simd.store(scaled, sums);
        }
    }

    /// Adds what a query found in a split to what it found in those before.
    #[inline(always)]
    pub(super) fn join<S: Simd>(&self, simd: S, (query, split): (usize, usize), joined: &mut Softmax) {
        if sees(&self.seen[query], split) {
            let sums = &self.sums[query * self.padded..][..self.padded];
            joined.add(simd, self.maxima[query], simd.reduce_add(simd.load(&self.totals[query])), sums);
        }
    }
}
