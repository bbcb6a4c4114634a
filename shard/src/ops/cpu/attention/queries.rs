//! Queries that visit tiles together, and the online softmax of each.

use std::ops::Range;

use super::super::kv_element::KvStep;
use super::super::simd::{LANES, Simd};
use super::join::Softmax;
use super::sees;
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
pub(super) struct Chunk<S: Simd, P> {
    /// (steps of a head): an element or a pair of each.
    pub(super) queries: Vec<[P; CHUNK]>,
    /// The positions each sees.
    pub(super) seen: [Range<usize>; CHUNK],
    /// The largest score yet.
    pub(super) maxima: [f32; CHUNK],
    /// The sums of the weights so far, spread over lanes.
    pub(super) totals: [S::Lanes; CHUNK],
    /// (queries, padded head width): the sums of the weighted values so far.
    pub(super) sums: Vec<f32>,
    pub(super) padded: usize,
}

impl<S: Simd, P: KvStep> Chunk<S, P> {
    #[inline(always)]
    pub(super) fn new(simd: S, layout: KvLayout) -> Self {
        let padded = layout.padded_width();
        Self {
            queries: vec![[P::ZERO; CHUNK]; layout.head_width.div_ceil(P::ELEMENTS)],
            seen: [0..0, 0..0, 0..0, 0..0],
            maxima: [f32::MIN; CHUNK],
            totals: [simd.splat(0.0); CHUNK],
            sums: vec![0.0; CHUNK * padded],
            padded,
        }
    }

    /// Sets one of the queries, which sees the positions of `seen`.
    #[inline(always)]
    pub(super) fn set(&mut self, simd: S, query: usize, elements: &[f32], seen: Range<usize>) {
        self.seen[query] = seen;
        let mut steps = [P::ZERO; LANES];
        let together = LANES / P::ELEMENTS;
        for (elements, to) in elements.chunks(LANES).zip(self.queries.chunks_mut(together)) {
            P::round(simd, simd.load_first(elements), &mut steps[..together]);
            for (to, step) in to.iter_mut().zip(&steps) {
                to[query] = *step;
            }
        }
    }

    /// Forgets the tiles that were visited.
    #[inline(always)]
    pub(super) fn begin(&mut self, simd: S) {
        self.maxima = [f32::MIN; CHUNK];
        self.totals = [simd.splat(0.0); CHUNK];
        self.sums.fill(0.0);
    }

    /// Adds what a query found in a split to what it found in those before.
    #[inline(always)]
    pub(super) fn join(&self, simd: S, (query, split): (usize, usize), joined: &mut Softmax) {
        if sees(&self.seen[query], split) {
            let sums = &self.sums[query * self.padded..][..self.padded];
            joined.add(simd, self.maxima[query], simd.reduce_add(self.totals[query]), sums);
        }
    }
}
