//! Attention over block tables.
//!
//! A row and head walk the tiles of their context, one KV block each, from the first position they see to
//! their own, with an online softmax in f32 that takes in a group of tiles at a time. Every split of 512
//! positions has a softmax of its own; those of one context are joined in order. Groups and splits begin at
//! fixed positions, so neither a row's batch-mates nor how its prompt was cut into chunks nor the number of
//! threads shows in its result. Several rows and heads that read the same tile do so together; none mixes
//! with another.

mod join;
mod queries;
mod tiles;
mod visit;

use std::ops::Range;

use self::join::Softmax;
use self::queries::{CHUNK, Chunk, Scoring};
use self::tiles::{Ahead, GROUP_TILES, Scratch};
use super::isa::{Isa, Kernel};
use super::kv_element::KvElement;
use super::parallel::{SharedSlice, for_each_range};
use super::simd::{LANES, Simd};
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
    /// (blocks, KV heads, a tile of keys)
    pub(crate) keys: &'a [K],
    /// (blocks, KV heads, a tile of values)
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
    let walk = |walks: &[(Unit<'_>, Range<usize>)], found: Found<'_>| {
        for_each_range(walks.len(), operations, |range| {
            isa.run_pairs(Walks { input, walks, range, found });
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
    let mut found = vec![0.0; parts.len() * QUERIES * elements];
    walk(&parts, Found::Parts(SharedSlice::new(&mut found)));
    isa.run(Join { shape: input.shape, units: &units, found: &found, output });
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

/// Where what a walk finds belongs.
#[derive(Clone, Copy)]
enum Found<'a> {
    /// Of all that is seen: the output.
    Whole(SharedSlice<'a, f32>),
    /// Of one split: (walks, queries, elements of a softmax).
    Parts(SharedSlice<'a, f32>),
}

/// Walks over some splits each, one after the other.
struct Walks<'a, K> {
    input: AttentionInput<'a, K>,
    walks: &'a [(Unit<'a>, Range<usize>)],
    /// Which of them.
    range: Range<usize>,
    found: Found<'a>,
}

impl<K: KvElement> Kernel for Walks<'_, K> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let padded = self.input.shape.kv.padded_width();
        let queries = self.walks[self.range.clone()].iter().map(|(unit, _)| unit.queries());
        let most = queries.max().unwrap_or(0);
        let mut walk = Walk::new(simd, self.input, most);
        let mut joined: Vec<Softmax> = (0..most).map(|_| Softmax::new(padded)).collect();
        for index in self.range.clone() {
            let (unit, splits) = &self.walks[index];
            let joined = &mut joined[..unit.queries()];
            walk.read_queries(simd, unit);
            for joined in joined.iter_mut() {
                joined.clear();
            }
            let then = self.walks.get(index + 1).filter(|_| index + 1 < self.range.end);
            for split in splits.clone() {
                walk.run(simd, (unit, split), then);
                for (query, joined) in joined.iter_mut().enumerate() {
                    walk.chunks[query / CHUNK].join(simd, (query % CHUNK, split), joined);
                }
            }
            self.write(index, joined);
        }
    }
}

impl<K> Walks<'_, K> {
    /// Writes what a walk's queries found.
    #[inline(always)]
    fn write(&self, index: usize, joined: &[Softmax]) {
        let shape = self.input.shape;
        for (query, joined) in joined.iter().enumerate() {
            match self.found {
                Found::Whole(output) => {
                    let start = self.walks[index].0.output(query, shape);
                    // SAFETY: a row and head belong to one unit, and it to one thread.
                    joined.write(unsafe { output.part(start, shape.kv.head_width) });
                }
                Found::Parts(found) => {
                    let elements = Softmax::elements(shape.kv.padded_width());
                    let start = (index * QUERIES + query) * elements;
                    // SAFETY: a walk belongs to one thread.
                    joined.save(unsafe { found.part(start, elements) });
                }
            }
        }
    }
}

/// Joins what walks over single splits found.
struct Join<'a> {
    shape: AttentionShape,
    units: &'a [Unit<'a>],
    found: &'a [f32],
    output: SharedSlice<'a, f32>,
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
            let found = &self.found[(part * QUERIES + query) * elements..][..elements];
            let (sums, numbers) = found.split_at(elements - 2);
            if sees(&seen, split) {
                joined.add(simd, numbers[0], numbers[1], sums);
            }
        }
    }
}

fn sees(seen: &Range<usize>, split: usize) -> bool {
    seen.start < (split + 1) * SPLIT && seen.end > split * SPLIT
}

/// The walk of one unit after the other over the tiles it sees.
struct Walk<'a, S: Simd, K: KvElement> {
    input: AttentionInput<'a, K>,
    scoring: Scoring,
    chunks: Vec<Chunk<S, K::Step>>,
    scratch: Scratch<K::Step>,
}

impl<'a, S: Simd, K: KvElement> Walk<'a, S, K> {
    /// For units of so many queries at most.
    #[inline(always)]
    fn new(simd: S, input: AttentionInput<'a, K>, queries: usize) -> Self {
        let AttentionShape { query_heads: _, kv, scale, window: _, softcap } = input.shape;
        Self {
            input,
            scoring: Scoring { scale, softcap },
            chunks: (0..queries.div_ceil(CHUNK)).map(|_| Chunk::new(simd, kv)).collect(),
            scratch: Scratch::new::<K>(kv),
        }
    }

    #[inline(always)]
    fn read_queries(&mut self, simd: S, unit: &Unit<'_>) {
        let AttentionInput { shape, qkv, .. } = self.input;
        let width = shape.kv.head_width;
        for (index, chunk) in self.chunks[..unit.queries().div_ceil(CHUNK)].iter_mut().enumerate() {
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
    fn run(&mut self, simd: S, (unit, split): (&Unit<'_>, usize), then: Option<&(Unit<'_>, Range<usize>)>) {
        let chunks = &mut self.chunks[..unit.queries().div_ceil(CHUNK)];
        for chunk in chunks.iter_mut() {
            chunk.begin(simd);
        }
        let seen = unit.seen_by_any(self.input.shape.window);
        let tiles =
            (seen.start.max(split * SPLIT) / LANES)..seen.end.min((split + 1) * SPLIT).div_ceil(LANES);
        for group in tiles.start / GROUP_TILES..tiles.end.div_ceil(GROUP_TILES) {
            let first = group * GROUP_TILES;
            let present = tiles.start.max(first)..tiles.end.min(first + GROUP_TILES);
            let mut ahead = after(&self.input, (unit, &seen), (present.end, then));
            let group = self.scratch.group(simd, &self.input, (unit, &mut ahead), present);
            for chunk in chunks.iter_mut() {
                visit::visit(simd, self.scoring, chunk, (&group, &mut ahead));
            }
        }
    }
}

/// The tiles that are visited after those of a unit up to `end`.
#[inline(always)]
fn after<K: KvElement>(
    input: &AttentionInput<'_, K>,
    (unit, seen): (&Unit<'_>, &Range<usize>),
    (end, then): (usize, Option<&(Unit<'_>, Range<usize>)>),
) -> Ahead {
    let group =
        |first: usize, seen: &Range<usize>| first..seen.end.div_ceil(LANES).min(first + GROUP_TILES);
    if end * LANES < seen.end {
        return Ahead::new(input, unit, group(end, seen));
    }
    let Some((next, splits)) = then else { return Ahead::new(input, unit, 0..0) };
    let seen = next.seen_by_any(input.shape.window);
    Ahead::new(input, next, group(seen.start.max(splits.start * SPLIT) / LANES, &seen))
}

#[cfg(test)]
mod tests;
