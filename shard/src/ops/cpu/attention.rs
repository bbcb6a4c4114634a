//! Attention over block tables.
//!
//! A row and head walk the tiles of their context, one KV block each, from the first position they see to
//! their own, with an online softmax in f32 that takes in a group of tiles at a time. Every split of 512
//! positions has a softmax of its own; those of one context are joined in order. Groups and splits begin at
//! fixed positions, so neither a row's batch-mates nor how its prompt was cut into chunks nor the number of
//! threads shows in its result. Several rows and heads that read the same tile do so together; none mixes
//! with another.

mod join;
mod keys;
mod queries;
mod softmax;
mod tiles;
mod values;
mod visit;
mod walk;
mod weights;

use std::ops::Range;

use self::join::Join;
use self::queries::CHUNK;
use self::softmax::Softmax;
use self::tiles::GROUP_TILES;
use self::walk::{Found, Room, Walks};
use super::isa::Isa;
use super::kv_element::KvElement;
use super::parallel::{SharedSlice, for_each_range_in};
use super::simd::LANES;
use crate::batch::BatchSequence;
use crate::kv::layout::KvLayout;
use crate::ops::attention::AttentionShape;

/// Queries that visit a group of tiles one chunk after the other, while it is in the nearest cache.
const QUERIES: usize = 8 * CHUNK;

/// Positions of a split: a few times what joining it costs.
const SPLIT: usize = 512;

/// Units of work below which the splits of a long context are worked on in parallel.
const FEW_UNITS: usize = 64;

const _: () = assert!(KvLayout::SLOTS == LANES, "a tile's scores are one vector");
const _: () = assert!(SPLIT.is_multiple_of(GROUP_TILES * LANES), "a split is whole groups");

/// What attention reads, all of it on this rank.
#[derive(Clone, Copy)]
pub(crate) struct AttentionInput<'a, K> {
    pub(crate) shape: AttentionShape,
    pub(crate) sequences: &'a [BatchSequence],
    /// (rows, query heads, then KV heads twice, head width), of which the query heads are read.
    pub(crate) qkv: &'a [f32],
    /// (tiles, elements of a tile of keys)
    pub(crate) keys: &'a [K],
    /// (tiles, elements of a tile of values)
    pub(crate) values: &'a [K],
}

/// Writes what each row and query head attends to, to `output` (rows, query heads, head width).
pub(crate) fn attend<K: KvElement>(isa: Isa, input: AttentionInput<'_, K>, output: &mut [f32]) {
    let window = input.shape.window;
    let units = units(&input);
    let head_steps = input.shape.query_heads * input.shape.kv.head_width * 2;
    let positions = |sequence: &BatchSequence| {
        let last = sequence.first_position.index() + sequence.rows;
        sequence.rows * last
    };
    let operations = input.sequences.iter().map(positions).sum::<usize>() * head_steps;
    let output = SharedSlice::new(output);
    let queries = units.iter().map(Unit::queries).max().unwrap_or(0);
    let walk = |walks: &[(Unit<'_>, Range<usize>)], found: Found<'_>| {
        let room = || Room::new(input.shape.kv, queries);
        for_each_range_in(walks.len(), operations, room, |room, range| {
            isa.run_pairs(Walks { input, walks, range, found, room });
        });
    };
    if units.len() >= FEW_UNITS || units.iter().all(|unit| unit.splits(window).len() == 1) {
        let whole: Vec<_> = units.into_iter().map(|unit| (unit, unit.splits(window))).collect();
        walk(&whole, Found::Whole(output));
        return;
    }
    let parts: Vec<_> = units
        .iter()
        .flat_map(|unit| unit.splits(window).map(move |split| (*unit, split..split + 1)))
        .collect();
    let elements = Softmax::elements(input.shape.kv.padded_width());
    let mut found = vec![0.0; parts.len() * queries * elements];
    walk(&parts, Found::Parts(SharedSlice::new(&mut found), queries));
    isa.run(Join { shape: input.shape, units: &units, found: &found, queries, output });
}

/// Rows of one sequence and query heads of one KV head, at most [`QUERIES`] together.
#[derive(Clone, Copy)]
struct Unit<'a> {
    sequence: &'a BatchSequence,
    /// Counted from the sequence's first row.
    row: usize,
    rows: usize,
    /// Counted from the rank's first query head.
    head: usize,
    heads: usize,
}

impl Unit<'_> {
    /// Whether they are the same queries.
    fn is(&self, other: &Self) -> bool {
        std::ptr::eq(self.sequence, other.sequence) && (self.row, self.head) == (other.row, other.head)
    }

    fn queries(&self) -> usize {
        self.rows * self.heads
    }

    /// The positions its `query`-th query sees.
    fn seen(&self, query: usize, window: Option<usize>) -> Range<usize> {
        let end = self.sequence.first_position.index() + self.row + query / self.heads + 1;
        window.map_or(0, |window| end.saturating_sub(window))..end
    }

    /// The positions its queries see.
    fn seen_by_any(&self, window: Option<usize>) -> Range<usize> {
        self.seen(0, window).start..self.seen(self.queries() - 1, window).end
    }

    fn splits(&self, window: Option<usize>) -> Range<usize> {
        let seen = self.seen_by_any(window);
        seen.start / SPLIT..seen.end.div_ceil(SPLIT)
    }

    fn kv_head(&self, shape: AttentionShape) -> usize {
        self.head / (shape.query_heads / shape.kv.kv_heads)
    }

    /// Where in `output` its `query`-th query's result begins.
    fn output(&self, query: usize, shape: AttentionShape) -> usize {
        let row = self.sequence.first_row + self.row + query / self.heads;
        (row * shape.query_heads + self.head + query % self.heads) * shape.kv.head_width
    }
}

fn units<'a, K>(input: &AttentionInput<'a, K>) -> Vec<Unit<'a>> {
    let group = input.shape.query_heads / input.shape.kv.kv_heads;
    let heads_together = group.min(QUERIES);
    let rows_together = QUERIES / heads_together;
    let of = |sequence: &BatchSequence| sequence.rows.div_ceil(rows_together);
    let parts = input.shape.kv.kv_heads * group.div_ceil(heads_together);
    let mut units = Vec::with_capacity(input.sequences.iter().map(of).sum::<usize>() * parts);
    for sequence in input.sequences {
        for row in (0..sequence.rows).step_by(rows_together) {
            let rows = rows_together.min(sequence.rows - row);
            for first in (0..input.shape.query_heads).step_by(group) {
                for head in (first..first + group).step_by(heads_together) {
                    let heads = heads_together.min(first + group - head);
                    units.push(Unit { sequence, row, rows, head, heads });
                }
            }
        }
    }
    units
}

/// Whether a query that sees these positions sees some of the split.
fn sees(seen: &Range<usize>, split: usize) -> bool {
    seen.start < (split + 1) * SPLIT && seen.end > split * SPLIT
}

#[cfg(test)]
mod tests;
