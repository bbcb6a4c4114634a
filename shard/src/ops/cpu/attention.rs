//! Attention over block tables.
//!
//! A row and head walk the tiles of their context, one KV block each, from the first position they see to
//! their own, with an online softmax in f32. That order depends on the row's position alone, so neither its
//! batch-mates nor how its prompt was cut into chunks shows in the result. Several rows and heads that
//! read the same tile do so together; none mixes with another.

use std::ops::Range;

use super::isa::{Isa, Kernel};
use super::kv_element::KvElement;
use super::parallel::{SharedSlice, for_each_range};
use super::simd::{LANES, Simd, exp, tanh};
use crate::batch::BatchSequence;
use crate::kv::layout::KvLayout;
use crate::ops::attention::AttentionShape;

/// Queries that read a tile together: their sums fit the registers.
const QUERIES: usize = 8;

const _: () = assert!(KvLayout::SLOTS == LANES, "a tile's scores are one vector");

/// What attention reads, all of it on this rank.
#[derive(Clone, Copy)]
pub(crate) struct AttentionInput<'a, K> {
    pub(crate) shape: AttentionShape,
    pub(crate) sequences: &'a [BatchSequence],
    /// (rows, query heads, then KV heads twice, head width), of which the query heads are read.
    pub(crate) qkv: &'a [f32],
    /// (blocks, KV heads, head width, slots)
    pub(crate) keys: &'a [K],
    /// (blocks, KV heads, slots, head width)
    pub(crate) values: &'a [K],
}

/// Writes what each row and query head attends to, to `output` (rows, query heads, head width).
pub(crate) fn attend<K: KvElement>(isa: Isa, input: AttentionInput<'_, K>, output: &mut [f32]) {
    let units = units(&input);
    let head_steps = input.shape.query_heads * input.shape.kv.head_width * 2;
    let positions = |sequence: &BatchSequence| {
        let last = sequence.first_position.index() + sequence.rows;
        sequence.rows * last
    };
    let operations = input.sequences.iter().map(positions).sum::<usize>() * head_steps;
    let output = SharedSlice::new(output);
    for_each_range(units.len(), operations, |range| {
        isa.run(Units { input, units: &units[range], output });
    });
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

fn units<'a, K>(input: &AttentionInput<'a, K>) -> Vec<Unit<'a>> {
    let group = input.shape.query_heads / input.shape.kv.kv_heads;
    let heads_together = group.min(QUERIES);
    // With a window, rows begin at different tiles.
    let rows_together = if input.shape.window.is_some() { 1 } else { QUERIES / heads_together };
    let mut units = Vec::new();
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

struct Units<'a, K> {
    input: AttentionInput<'a, K>,
    units: &'a [Unit<'a>],
    output: SharedSlice<'a, f32>,
}

impl<K: KvElement> Kernel for Units<'_, K> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let mut state = State::new(simd, self.input.shape);
        for unit in self.units {
            let walk = Walk { input: self.input, unit: *unit };
            walk.read_queries(&mut state);
            walk.run(simd, &mut state);
            walk.write(simd, &state, self.output);
        }
    }
}

/// The online softmax of a unit's queries, row after row and head after head.
struct State<S: Simd> {
    /// (head width): the queries' elements, scaled.
    queries: Vec<[f32; QUERIES]>,
    /// The largest score yet.
    maxima: [f32; QUERIES],
    /// The weights' sums so far, by slot.
    weights: [S::Lanes; QUERIES],
    /// (queries, head width): the weighted values' sums so far.
    sums: [Vec<f32>; QUERIES],
    softcap: Option<f32>,
}

impl<S: Simd> State<S> {
    #[inline(always)]
    fn new(simd: S, shape: AttentionShape) -> Self {
        Self {
            queries: vec![[0.0; QUERIES]; shape.kv.head_width],
            maxima: [f32::MIN; QUERIES],
            weights: [simd.splat(0.0); QUERIES],
            sums: std::array::from_fn(|_| vec![0.0; shape.kv.head_width]),
            softcap: shape.softcap,
        }
    }
}

/// One tile of one KV head, and which of its slots are seen: from the first to before the second.
struct Tile<'a, K> {
    /// (head width, slots)
    keys: &'a [K],
    /// (slots, head width)
    values: &'a [K],
    seen: (usize, usize),
}

/// One unit's walk over the tiles it sees.
struct Walk<'a, K> {
    input: AttentionInput<'a, K>,
    unit: Unit<'a>,
}

impl<'a, K: KvElement> Walk<'a, K> {
    #[inline(always)]
    fn run<S: Simd>(&self, simd: S, state: &mut State<S>) {
        state.maxima = [f32::MIN; QUERIES];
        state.weights = [simd.splat(0.0); QUERIES];
        for sums in &mut state.sums {
            sums.fill(0.0);
        }
        // Tiles that every row sees whole, together; then each row's others.
        let together = match self.input.shape.window {
            Some(_) => 0,
            None => (self.position(0) + 1) / LANES,
        };
        let heads = self.unit.heads;
        for phase in 0..=self.unit.rows {
            let (seen, tiles, queries) = match phase.checked_sub(1) {
                None => (0..together * LANES, 0..together, 0..self.unit.rows * heads),
                Some(row) => {
                    let end = self.position(row) + 1;
                    let first = self.input.shape.window.map_or(0, |window| end.saturating_sub(window));
                    let tiles = together.max(first / LANES)..end.div_ceil(LANES);
                    (first..end, tiles, row * heads..(row + 1) * heads)
                }
            };
            for tile in tiles {
                let start = tile * LANES;
                let slots = (seen.start.saturating_sub(start), (seen.end - start).min(LANES));
                self.visit(simd, state, &self.tile(tile, slots), queries.clone());
            }
        }
    }

    #[inline(always)]
    fn position(&self, row: usize) -> usize {
        self.unit.sequence.first_position.index() + self.unit.row + row
    }

    #[inline(always)]
    fn tile(&self, tile: usize, seen: (usize, usize)) -> Tile<'a, K> {
        let shape = self.input.shape;
        let kv_head = self.unit.head / (shape.query_heads / shape.kv.kv_heads);
        let start = shape.kv.tile(self.unit.sequence.blocks[tile].index(), kv_head);
        let end = start + shape.kv.tile_elements();
        Tile { keys: &self.input.keys[start..end], values: &self.input.values[start..end], seen }
    }

    /// Shows a tile to some queries, as many at a time as there is a body of code for.
    #[inline(always)]
    fn visit<S: Simd>(&self, simd: S, state: &mut State<S>, tile: &Tile<'_, K>, queries: Range<usize>) {
        let mut first = queries.start;
        while first < queries.end {
            first += match queries.end - first {
                8.. => visit::<S, K, 8>(simd, state, tile, first),
                4.. => visit::<S, K, 4>(simd, state, tile, first),
                2.. => visit::<S, K, 2>(simd, state, tile, first),
                _ => visit::<S, K, 1>(simd, state, tile, first),
            };
        }
    }

    #[inline(always)]
    fn read_queries<S: Simd>(&self, state: &mut State<S>) {
        let shape = self.input.shape;
        let width = shape.kv.head_width;
        for row in 0..self.unit.rows {
            let stride = (shape.query_heads + 2 * shape.kv.kv_heads) * width;
            let row_start = (self.unit.sequence.first_row + self.unit.row + row) * stride;
            for head in 0..self.unit.heads {
                let query = &self.input.qkv[row_start + (self.unit.head + head) * width..][..width];
                for (elements, value) in state.queries.iter_mut().zip(query) {
                    elements[row * self.unit.heads + head] = value * shape.scale;
                }
            }
        }
    }

    #[inline(always)]
    fn write<S: Simd>(&self, simd: S, state: &State<S>, output: SharedSlice<'_, f32>) {
        let width = self.input.shape.kv.head_width;
        for row in 0..self.unit.rows {
            let output_row = self.unit.sequence.first_row + self.unit.row + row;
            for head in 0..self.unit.heads {
                let query = row * self.unit.heads + head;
                let factor = 1.0 / simd.reduce_add(state.weights[query]);
                let start = (output_row * self.input.shape.query_heads + self.unit.head + head) * width;
                // SAFETY: a row and head belong to one unit, worked on by one thread.
                let output = unsafe { output.part(start, width) };
                for (output, sum) in output.iter_mut().zip(&state.sums[query]) {
                    *output = sum * factor;
                }
            }
        }
    }
}

/// Adds a tile to the online softmax of the `Q` queries from `first` on, and returns how many those are.
#[inline(always)]
fn visit<S: Simd, K: KvElement, const Q: usize>(
    simd: S,
    state: &mut State<S>,
    tile: &Tile<'_, K>,
    first: usize,
) -> usize {
    let mut scores = scores::<S, K, Q>(simd, &state.queries, tile.keys, first);
    if let Some(cap) = state.softcap {
        let cap = simd.splat(cap);
        for score in &mut scores {
            *score = simd.mul(cap, tanh(simd, simd.div(*score, cap)));
        }
    }
    let whole = tile.seen == (0, LANES);
    let mut scales = [0.0; LANES];
    for query in 0..Q {
        if !whole {
            scores[query] = simd.keep(scores[query], tile.seen, f32::MIN);
        }
        let before = state.maxima[first + query];
        let maximum = before.max(simd.reduce_max(scores[query]));
        state.maxima[first + query] = maximum;
        scales[query] = before - maximum;
    }
    let exponents = simd.load(&scales);
    simd.store(exp(simd, exponents), &mut scales);
    let mut weights = [[0.0; LANES]; Q];
    for query in 0..Q {
        let mut weight = exp(simd, simd.sub(scores[query], simd.splat(state.maxima[first + query])));
        if !whole {
            weight = simd.keep(weight, tile.seen, 0.0);
        }
        let sum = &mut state.weights[first + query];
        *sum = simd.mul_add(*sum, simd.splat(scales[query]), weight);
        simd.store(weight, &mut weights[query]);
    }
    add_values::<S, K, Q>(simd, &mut state.sums[first..first + Q], tile, (&scales, &weights));
    Q
}

/// The products of `Q` queries and a tile's keys, one lane a slot.
#[inline(always)]
fn scores<S: Simd, K: KvElement, const Q: usize>(
    simd: S,
    queries: &[[f32; QUERIES]],
    keys: &[K],
    first: usize,
) -> [S::Lanes; Q] {
    let mut scores = [simd.splat(0.0); Q];
    for (elements, keys) in queries.iter().zip(keys.as_chunks::<LANES>().0) {
        let keys = K::load(simd, keys);
        let elements = &elements[first..first + Q];
        for query in 0..Q {
            scores[query] = simd.mul_add(simd.splat(elements[query]), keys, scores[query]);
        }
    }
    scores
}

/// Scales `Q` queries' sums (head width) and adds a tile's values, weighted, slot after slot.
#[inline(always)]
fn add_values<S: Simd, K: KvElement, const Q: usize>(
    simd: S,
    sums: &mut [Vec<f32>],
    tile: &Tile<'_, K>,
    (scales, weights): (&[f32; LANES], &[[f32; LANES]; Q]),
) {
    let width = tile.values.len() / LANES;
    for first in (0..width).step_by(LANES) {
        let count = LANES.min(width - first);
        let mut added = [simd.splat(0.0); Q];
        for query in 0..Q {
            let sum = simd.load_first(&sums[query][first..first + count]);
            added[query] = simd.mul(sum, simd.splat(scales[query]));
        }
        let mut slot = tile.seen.0;
        while slot < tile.seen.1 {
            let values = K::load_first(simd, &tile.values[slot * width + first..][..count]);
            for query in 0..Q {
                added[query] = simd.mul_add(simd.splat(weights[query][slot]), values, added[query]);
            }
            slot += 1;
        }
        for query in 0..Q {
            simd.store_first(added[query], &mut sums[query][first..first + count]);
        }
    }
}

#[cfg(test)]
mod tests;
