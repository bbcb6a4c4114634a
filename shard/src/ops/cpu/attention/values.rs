//! The weighted sums of values.

use super::super::kv_step::KvStep;
use super::super::simd::{LANES, Simd};
use super::queries::CHUNK;
use super::tiles::{GROUP_TILES, Group};
use super::visit::Seen;
use super::weights::Weights;

/// Adds a group's values, by their weights, to the sums (queries, padded head width). What is read soon is asked for
/// meanwhile.
#[inline(always)]
pub(super) fn add<S: Simd, P: KvStep>(
    simd: S,
    sums: &mut [f32],
    (group, weights): (&Group<'_, P>, &Weights<P>),
    seen: Option<&[Seen; CHUNK]>,
) {
    // Where elements have scales, products are integers: of what is not seen they are zero, whatever it is.
    let Some(seen) = seen.filter(|_| !P::SCALED) else {
        return add_tiles(simd, sums, (group, weights), (0, GROUP_TILES));
    };
    // Elsewhere slots that are not seen are not read: they may hold what is no number, also when multiplied by zero. Tiles
    // that all queries see whole go together, others one query after the other.
    let padded = sums.len() / CHUNK;
    let whole = |tile: usize| seen.iter().all(|seen| seen.is_whole(tile));
    let mut tile = 0;
    while tile < GROUP_TILES {
        let first = tile;
        while tile < GROUP_TILES && whole(tile) {
            tile += 1;
        }
        if first < tile {
            add_tiles(simd, sums, (group, weights), (first, tile));
            continue;
        }
        let steps = LANES / P::ELEMENTS;
        for (query, sums) in sums.chunks_exact_mut(padded).enumerate() {
            let weights = &weights.of_group[query][tile * steps..][..steps];
            add_slots(simd, sums, group.values[tile].rows, (seen[query].slots(tile), weights));
        }
        tile += 1;
    }
}

/// Adds the values of the tiles from the first to before the second, slot after slot.
#[inline(always)]
fn add_tiles<S: Simd, P: KvStep>(
    simd: S,
    sums: &mut [f32],
    group: (&Group<'_, P>, &Weights<P>),
    tiles: (usize, usize),
) {
    let vectors = sums.len() / CHUNK / LANES;
    let mut first = 0;
    while first < vectors {
        first += match vectors - first {
            4.. if S::WIDE => add_columns::<S, P, 4>(simd, sums, group, (first, tiles)),
            _ => add_columns::<S, P, 1>(simd, sums, group, (first, tiles)),
        };
    }
}

/// [`add_tiles`] for `V` vectors of elements from the `first` on, and returns how many those are.
#[inline(always)]
fn add_columns<S: Simd, P: KvStep, const V: usize>(
    simd: S,
    sums: &mut [f32],
    (group, weights): (&Group<'_, P>, &Weights<P>),
    (first, tiles): (usize, (usize, usize)),
) -> usize {
    let padded = sums.len() / CHUNK;
    let (vectors, steps) = (padded / LANES, LANES / P::ELEMENTS);
    let mut added = [[P::zero(simd); V]; CHUNK];
    for (added, sums) in added.iter_mut().zip(sums.chunks_exact(padded)) {
        let sums = &sums.as_chunks::<LANES>().0[first..][..V];
        for vector in 0..V {
            added[vector] = P::open(simd, &sums[vector]);
        }
    }
    for tile in tiles.0..tiles.1 {
        let rows = group.values[tile].rows;
        if first == 0 {
            group.during_values.ask_scales::<S, P>(simd, tile);
        }
        for step in 0..steps {
            let at = step * vectors + first;
            let Some(row) = rows.get(at..).and_then(|rows| rows.first_chunk::<V>()) else { break };
            let mut values = [P::ZERO.splat(simd); V];
            for vector in 0..V {
                group.during_values.ask::<S, P>(simd, tile, at + vector);
                values[vector] = P::load(simd, &row[vector]);
            }
            for (added, of_query) in added.iter_mut().zip(&weights.of_group) {
                let weight = of_query[tile * steps + step].splat(simd);
                for vector in 0..V {
                    added[vector] = P::dot(simd, added[vector], weight, values[vector]);
                }
            }
        }
    }
    for (query, (added, sums)) in added.iter().zip(sums.chunks_exact_mut(padded)).enumerate() {
        let sums = &mut sums.as_chunks_mut::<LANES>().0[first..][..V];
        for vector in 0..V {
            P::close(simd, added[vector], weights.units[query], &mut sums[vector]);
        }
    }
    V
}

/// Adds the values of some slots of a tile, which have no scales, to the sums (padded head width) of one query.
#[inline(always)]
fn add_slots<S: Simd, P: KvStep>(
    simd: S,
    sums: &mut [f32],
    rows: &[P::Row],
    ((first, end), weights): ((usize, usize), &[P]),
) {
    let vectors = sums.len() / LANES;
    for (vector, sums) in sums.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        let mut added = P::open(simd, sums);
        let steps = first / P::ELEMENTS..end.div_ceil(P::ELEMENTS);
        for (step, weight) in steps.clone().zip(&weights[steps]) {
            let Some(row) = rows.get(step * vectors + vector) else { break };
            let start = step * P::ELEMENTS;
            let kept = first.saturating_sub(start)..(end - start).min(P::ELEMENTS);
            let row = if kept == (0..P::ELEMENTS) { *row } else { P::keep(*row, kept) };
            added = P::dot(simd, added, weight.splat(simd), P::load(simd, &row));
        }
        P::close(simd, added, 1.0, sums);
    }
}
