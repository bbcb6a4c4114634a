//! Walks over the tiles of a context, one split of it after the other.

use std::ops::Range;

use super::super::isa::Kernel;
use super::super::kv_element::KvElement;
use super::super::kv_step::KvStep;
use super::super::parallel::SharedSlice;
use super::super::simd::{LANES, Simd};
use super::queries::{CHUNK, Chunk, Scoring};
use super::softmax::Softmax;
use super::tiles::{GROUP_TILES, Group};
use super::visit::visit;
use super::{AttentionInput, SPLIT, Unit};
use crate::kv::layout::KvLayout;
use crate::ops::attention::AttentionShape;

/// Where what a walk finds belongs.
#[derive(Clone, Copy)]
pub(super) enum Found<'a> {
    /// Of all that is seen: the output.
    Whole(SharedSlice<'a, f32>),
    /// Of one split: (walks, so many queries, elements of a softmax).
    Parts(SharedSlice<'a, f32>, usize),
}

/// What a thread walks with.
pub(super) struct Room<P> {
    chunks: Vec<Chunk<P>>,
    /// What each query of a unit found in all splits so far.
    joined: Vec<Softmax>,
}

impl<P: KvStep> Room<P> {
    /// For units of so many queries at most.
    pub(super) fn new(layout: KvLayout, queries: usize) -> Self {
        Self {
            chunks: (0..queries.div_ceil(CHUNK)).map(|_| Chunk::new(layout)).collect(),
            joined: (0..queries).map(|_| Softmax::new(layout.padded_width())).collect(),
        }
    }
}

/// Walks over some splits each, one after the other.
pub(super) struct Walks<'a, K: KvElement> {
    pub(super) input: AttentionInput<'a, K>,
    pub(super) walks: &'a [(Unit<'a>, Range<usize>)],
    /// Which of them.
    pub(super) range: Range<usize>,
    pub(super) found: Found<'a>,
    pub(super) room: &'a mut Room<K::Step>,
}

impl<K: KvElement> Kernel for Walks<'_, K> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        for index in self.range.clone() {
            let (unit, splits) = &self.walks[index];
            // Neighbouring walks are mostly splits of the same unit's context.
            let before = index.checked_sub(1).filter(|before| self.range.contains(before));
            if before.is_none_or(|before| !self.walks[before].0.is(unit)) {
                self.read_queries(simd, unit);
            }
            for joined in &mut self.room.joined[..unit.queries()] {
                joined.clear();
            }
            let then = self.walks.get(index + 1).filter(|_| index + 1 < self.range.end);
            for split in splits.clone() {
                self.walk(simd, (unit, split), then);
                for (query, joined) in self.room.joined[..unit.queries()].iter_mut().enumerate() {
                    self.room.chunks[query / CHUNK].join(simd, (query % CHUNK, split), joined);
                }
            }
            self.write(index);
        }
    }
}

impl<K: KvElement> Walks<'_, K> {
    #[inline(always)]
    fn read_queries<S: Simd>(&mut self, simd: S, unit: &Unit<'_>) {
        let AttentionInput { shape, qkv, .. } = self.input;
        let width = shape.kv.head_width;
        for (index, chunk) in self.room.chunks[..unit.queries().div_ceil(CHUNK)].iter_mut().enumerate() {
            for at in 0..CHUNK {
                // What is left of the last chunk repeats its last query.
                let query = (index * CHUNK + at).min(unit.queries() - 1);
                let row = unit.sequence.first_row + unit.row + query / unit.heads;
                let head = unit.head + query % unit.heads;
                let elements = &qkv[row * shape.row_elements() + head * width..][..width];
                chunk.set(simd, at, elements, unit.seen(query, shape.window));
            }
        }
    }

    /// Shows the tiles of a split to every chunk of the unit's queries. `then` is what is walked afterwards.
    #[inline(always)]
    fn walk<S: Simd>(
        &mut self,
        simd: S,
        (unit, split): (&Unit<'_>, usize),
        then: Option<&(Unit<'_>, Range<usize>)>,
    ) {
        let AttentionShape { scale, softcap, window, .. } = self.input.shape;
        let scoring = Scoring { scale, softcap };
        let chunks = &mut self.room.chunks[..unit.queries().div_ceil(CHUNK)];
        for chunk in chunks.iter_mut() {
            chunk.begin();
        }
        let seen = unit.seen_by_any(window);
        let tiles =
            (seen.start.max(split * SPLIT) / LANES)..seen.end.min((split + 1) * SPLIT).div_ceil(LANES);
        for group in tiles.start / GROUP_TILES..tiles.end.div_ceil(GROUP_TILES) {
            let first = group * GROUP_TILES;
            let present = tiles.start.max(first)..tiles.end.min(first + GROUP_TILES);
            let next = after(window, (unit, &seen, present.end), then);
            let group = Group::new(&self.input, (unit, present), next);
            for chunk in chunks.iter_mut() {
                visit(simd, scoring, chunk, &group);
            }
        }
    }

    /// Writes what a walk's queries found.
    #[inline(always)]
    fn write(&self, index: usize) {
        let (shape, queries) = (self.input.shape, self.walks[index].0.queries());
        for (query, joined) in self.room.joined[..queries].iter().enumerate() {
            match self.found {
                Found::Whole(output) => {
                    let start = self.walks[index].0.output(query, shape);
                    // SAFETY: a row and head belong to one unit, and it to one thread.
                    joined.write(unsafe { output.part(start, shape.kv.head_width) });
                }
                Found::Parts(found, queries) => {
                    let elements = Softmax::elements(shape.kv.padded_width());
                    let start = (index * queries + query) * elements;
                    // SAFETY: a walk belongs to one thread.
                    joined.save(unsafe { found.part(start, elements) });
                }
            }
        }
    }
}

/// The tiles that are visited after those of a unit up to `end`: of the unit, or `then`.
#[inline(always)]
fn after<'a>(
    window: Option<usize>,
    (unit, seen, end): (&'a Unit<'a>, &Range<usize>, usize),
    then: Option<&'a (Unit<'a>, Range<usize>)>,
) -> Option<(&'a Unit<'a>, Range<usize>)> {
    let group =
        |first: usize, seen: &Range<usize>| first..seen.end.div_ceil(LANES).min(first + GROUP_TILES);
    if end * LANES < seen.end {
        return Some((unit, group(end, seen)));
    }
    let (next, splits) = then?;
    let seen = next.seen_by_any(window);
    Some((next, group(seen.start.max(splits.start * SPLIT) / LANES, &seen)))
}
