//! A group of tiles taken into the online softmax of a chunk of queries.

use std::ops::Range;

use super::super::kv_step::KvStep;
use super::super::simd::{LANES, Simd};
use super::keys::scores;
use super::queries::{CHUNK, Chunk, Scoring};
use super::tiles::{GROUP_TILES, Group};
use super::values;
use super::weights::{SLOTS, weigh};

/// Which slots of each of a group's tiles a query sees: from the first to before the second.
#[derive(Clone, Copy)]
pub(super) struct Seen([(usize, usize); GROUP_TILES]);

impl Seen {
    fn nothing() -> Self {
        Self([(0, 0); GROUP_TILES])
    }

    /// Of the group that begins with the `first` tile, where the query sees these positions.
    #[inline(always)]
    fn new(first: usize, positions: &Range<usize>) -> Self {
        let mut slots = [(0, 0); GROUP_TILES];
        for (tile, slots) in slots.iter_mut().enumerate() {
            let start = (first + tile) * LANES;
            let slot = |position: usize| position.saturating_sub(start).min(LANES);
            *slots = (slot(positions.start), slot(positions.end));
        }
        Self(slots)
    }

    #[inline(always)]
    pub(super) fn slots(&self, tile: usize) -> (usize, usize) {
        self.0[tile]
    }

    #[inline(always)]
    pub(super) fn is_hidden(&self, tile: usize) -> bool {
        self.0[tile].0 >= self.0[tile].1
    }

    #[inline(always)]
    pub(super) fn is_whole(&self, tile: usize) -> bool {
        self.0[tile] == (0, LANES)
    }
}

/// Takes a group into the softmax of a chunk's queries. What a query does not see of it leaves its own alone.
#[inline(always)]
pub(super) fn visit<S: Simd, P: KvStep>(
    simd: S,
    scoring: Scoring,
    chunk: &mut Chunk<P>,
    group: &Group<'_, P>,
) {
    let start = group.first * LANES;
    if chunk.seen.iter().all(|seen| seen.start <= start && start + SLOTS <= seen.end) {
        let scores = scores(simd, scoring, chunk, (group, [true; GROUP_TILES]));
        let weights = weigh(simd, chunk, (&scores, &group.values), None);
        values::add(simd, &mut chunk.sums, (group, &weights), None);
        return;
    }
    let mut seen = [Seen::nothing(); CHUNK];
    for (seen, positions) in seen.iter_mut().zip(&chunk.seen) {
        *seen = Seen::new(group.first, positions);
    }
    let mut read = [false; GROUP_TILES];
    for (tile, read) in read.iter_mut().enumerate() {
        *read = seen.iter().any(|seen| !seen.is_hidden(tile));
    }
    if read == [false; GROUP_TILES] {
        return;
    }
    let mut scores = scores(simd, scoring, chunk, (group, read));
    for (tile, scores) in scores.iter_mut().enumerate() {
        for (score, seen) in scores.iter_mut().zip(&seen) {
            *score = simd.keep(*score, seen.slots(tile), f32::MIN);
        }
    }
    let weights = weigh(simd, chunk, (&scores, &group.values), Some(&seen));
    values::add(simd, &mut chunk.sums, (group, &weights), Some(&seen));
}
