//! A group of tiles taken into the online softmax of a chunk of queries.

use super::super::kv_element::KvStep;
use super::super::simd::{LANES, Simd, exp, tanh};
use super::queries::{CHUNK, Chunk, Scoring};
use super::tiles::{Ahead, GROUP_TILES, Group};

/// Slots of a group.
const SLOTS: usize = GROUP_TILES * LANES;

/// Which slots of each of a group's tiles a query sees: from the first to before the second.
type Seen = [(usize, usize); GROUP_TILES];

/// The scores of a group's slots, tile by tile.
type Scores<S> = [[<S as Simd>::Lanes; CHUNK]; GROUP_TILES];

const WHOLE: (usize, usize) = (0, LANES);

/// The weights of some tiles of a group.
#[derive(Clone, Copy)]
struct Weights<'a, P> {
    /// (queries, steps of a group)
    of_group: &'a [[P; SLOTS]; CHUNK],
    /// Where the tiles' begin.
    first_step: usize,
}

/// Takes a group into the softmax of a chunk's queries, and asks for what comes `ahead` of it meanwhile. What a
/// query does not see of it leaves its own alone.
#[inline(always)]
pub(super) fn visit<S: Simd, P: KvStep>(
    simd: S,
    scoring: Scoring,
    chunk: &mut Chunk<S, P>,
    (group, ahead): (&Group<'_, P>, &mut Ahead),
) {
    let mut seen = [[(0, 0); GROUP_TILES]; CHUNK];
    for (seen, positions) in seen.iter_mut().zip(&chunk.seen) {
        for (tile, slots) in seen.iter_mut().enumerate() {
            let start = (group.first + tile) * LANES;
            let slot = |position: usize| position.saturating_sub(start).min(LANES);
            *slots = (slot(positions.start), slot(positions.end));
        }
    }
    let mut scores = [[simd.splat(f32::MIN); CHUNK]; GROUP_TILES];
    let whole = seen.iter().all(|seen| *seen == [WHOLE; GROUP_TILES]);
    let mut read = [false; GROUP_TILES];
    for (tile, read) in read.iter_mut().enumerate() {
        *read = seen.iter().any(|seen| seen[tile].0 < seen[tile].1);
    }
    let first = read.iter().position(|read| *read);
    let Some(first) = first else { return };
    if S::WIDE && read.iter().filter(|read| **read).count() > 1 {
        // Four together take as long as two alone: what is not read repeats another, and is hidden like it.
        let mut keys = group.keys;
        for tile in 0..GROUP_TILES {
            keys[tile] = group.keys[if read[tile] { tile } else { first }];
        }
        scores = products::<S, P, GROUP_TILES>(simd, &chunk.queries, &keys, ahead);
    } else {
        for tile in 0..GROUP_TILES {
            if read[tile] {
                [scores[tile]] = products::<S, P, 1>(simd, &chunk.queries, &[group.keys[tile]], ahead);
            }
        }
    }
    let mut weights = [[P::ZERO; SLOTS]; CHUNK];
    finish_scores(simd, scoring, &mut scores, (!whole).then_some(&seen));
    let scales = weigh(simd, chunk, &scores, ((!whole).then_some(&seen), &mut weights));
    for (sums, scale) in chunk.sums.chunks_exact_mut(chunk.padded).zip(scales) {
        // Multiplying by one changes nothing.
        if scale != 1.0 {
            rescale(simd, sums, scale);
        }
    }
    add_seen_values(simd, &mut chunk.sums, (group, ahead), (&seen, &weights));
}

/// The products of a chunk's queries and the keys of `T` tiles, one lane a slot.
#[inline(always)]
fn products<S: Simd, P: KvStep, const T: usize>(
    simd: S,
    queries: &[[P; CHUNK]],
    tiles: &[&[P]; T],
    ahead: &mut Ahead,
) -> [[S::Lanes; CHUNK]; T] {
    let mut keys: [&[[P; LANES]]; T] = [&[]; T];
    for tile in 0..T {
        keys[tile] = &tiles[tile].as_chunks::<LANES>().0[..queries.len()];
    }
    let mut sums = [[simd.splat(0.0); CHUNK]; T];
    for (step, query) in queries.iter().enumerate() {
        ahead.ask(simd);
        let mut elements = [P::ZERO.splat(simd); CHUNK];
        for at in 0..CHUNK {
            elements[at] = query[at].splat(simd);
        }
        for tile in 0..T {
            let key = P::load(simd, &keys[tile][step]);
            for at in 0..CHUNK {
                sums[tile][at] = P::dot(simd, sums[tile][at], elements[at], key);
            }
        }
    }
    sums
}

/// Scales and caps scores, and hides those of slots that are not seen.
#[inline(always)]
fn finish_scores<S: Simd>(simd: S, scoring: Scoring, scores: &mut Scores<S>, seen: Option<&[Seen; CHUNK]>) {
    let scale = simd.splat(scoring.scale);
    for (tile, scores) in scores.iter_mut().enumerate() {
        for (query, score) in scores.iter_mut().enumerate() {
            let mut finished = simd.mul(*score, scale);
            if let Some(cap) = scoring.softcap {
                let cap = simd.splat(cap);
                finished = simd.mul(cap, tanh(simd, simd.div(finished, cap)));
            }
            if let Some(seen) = seen {
                finished = simd.keep(finished, seen[query][tile], f32::MIN);
            }
            *score = finished;
        }
    }
}

/// Turns scores into `weights`, adds up those, and returns what sums so far are to be multiplied by.
#[inline(always)]
fn weigh<S: Simd, P: KvStep>(
    simd: S,
    chunk: &mut Chunk<S, P>,
    scores: &Scores<S>,
    (seen, weights): (Option<&[Seen; CHUNK]>, &mut [[P; SLOTS]; CHUNK]),
) -> [f32; LANES] {
    let steps = LANES / P::ELEMENTS;
    let mut scales = [0.0; LANES];
    for query in 0..CHUNK {
        let mut largest = scores[0][query];
        for scores in &scores[1..] {
            largest = simd.max(largest, scores[query]);
        }
        let before = chunk.maxima[query];
        let maximum = before.max(simd.reduce_max(largest));
        chunk.maxima[query] = maximum;
        scales[query] = before - maximum;
    }
    let exponents = simd.load(&scales);
    simd.store(exp(simd, exponents), &mut scales);
    let ones = P::ONE.splat(simd);
    for query in 0..CHUNK {
        let maximum = simd.splat(chunk.maxima[query]);
        for tile in 0..GROUP_TILES {
            if seen.is_some_and(|seen| seen[query][tile].0 >= seen[query][tile].1) {
                continue;
            }
            let mut weight = exp(simd, simd.sub(scores[tile][query], maximum));
            if let Some(seen) = seen {
                weight = simd.keep(weight, seen[query][tile], 0.0);
            }
            P::round(simd, weight, &mut weights[query][tile * steps..][..steps]);
        }
        // Of the weights that values are multiplied by: rounding them must not show in their mean.
        let mut total = simd.mul(chunk.totals[query], simd.splat(scales[query]));
        for weights in weights[query][..GROUP_TILES * steps].as_chunks::<LANES>().0 {
            total = P::dot(simd, total, P::load(simd, weights), ones);
        }
        chunk.totals[query] = total;
    }
    scales
}

#[inline(always)]
fn rescale<S: Simd>(simd: S, sums: &mut [f32], scale: f32) {
    let scale = simd.splat(scale);
    for sums in sums.as_chunks_mut::<LANES>().0 {
        let scaled = simd.mul(simd.load(sums), scale);
        simd.store(scaled, sums);
    }
}

/// Adds the values each query sees: those of tiles that all of them see whole together, others one query after
/// the other. Slots that are not seen are not read: they may hold anything.
#[inline(always)]
fn add_seen_values<S: Simd, P: KvStep>(
    simd: S,
    sums: &mut [f32],
    (group, ahead): (&Group<'_, P>, &mut Ahead),
    (seen, weights): (&[Seen; CHUNK], &[[P; SLOTS]; CHUNK]),
) {
    let padded = sums.len() / CHUNK;
    let steps = LANES / P::ELEMENTS;
    let whole = |tile: usize| seen.iter().all(|seen| seen[tile] == WHOLE);
    let mut tile = 0;
    while tile < GROUP_TILES {
        let first = tile;
        while tile < GROUP_TILES && whole(tile) {
            tile += 1;
        }
        if first < tile {
            let weights = Weights { of_group: weights, first_step: first * steps };
            add_values(simd, sums, (&group.values[first..tile], weights), ahead);
            continue;
        }
        for query in 0..CHUNK {
            let weights = &weights[query][tile * steps..][..steps];
            let sums = &mut sums[query * padded..][..padded];
            add_slots(simd, sums, group.values[tile], (seen[query][tile], weights));
        }
        tile += 1;
    }
}

/// Adds tiles' values, weighted, to the sums (queries, padded head width), slot after slot.
#[inline(always)]
fn add_values<S: Simd, P: KvStep>(
    simd: S,
    sums: &mut [f32],
    values: (&[&[P]], Weights<'_, P>),
    ahead: &mut Ahead,
) {
    let vectors = sums.len() / CHUNK / LANES;
    let mut first = 0;
    while first < vectors {
        first += match vectors - first {
            4.. if S::WIDE => add_columns::<S, P, 4>(simd, sums, (first, values), ahead),
            _ => add_columns::<S, P, 1>(simd, sums, (first, values), ahead),
        };
    }
}

/// [`add_values`] for `V` vectors of elements from the `first` on, and returns how many those are.
#[inline(always)]
fn add_columns<S: Simd, P: KvStep, const V: usize>(
    simd: S,
    sums: &mut [f32],
    (first, (tiles, weights)): (usize, (&[&[P]], Weights<'_, P>)),
    ahead: &mut Ahead,
) -> usize {
    let padded = sums.len() / CHUNK;
    let steps = LANES / P::ELEMENTS;
    let mut added = [[simd.splat(0.0); V]; CHUNK];
    for (added, sums) in added.iter_mut().zip(sums.chunks_exact(padded)) {
        let sums = sums[first * LANES..][..V * LANES].as_chunks::<LANES>().0;
        for vector in 0..V {
            added[vector] = simd.load(&sums[vector]);
        }
    }
    for (tile, values) in tiles.iter().enumerate() {
        for step in 0..steps {
            ahead.ask(simd);
            let row = values[step * padded + first * LANES..][..V * LANES].as_chunks::<LANES>().0;
            let mut loaded = [P::ZERO.splat(simd); V];
            for vector in 0..V {
                loaded[vector] = P::load(simd, &row[vector]);
            }
            for (added, of_query) in added.iter_mut().zip(weights.of_group) {
                let weight = of_query[weights.first_step + tile * steps + step].splat(simd);
                for vector in 0..V {
                    added[vector] = P::dot(simd, added[vector], weight, loaded[vector]);
                }
            }
        }
    }
    for (added, sums) in added.iter().zip(sums.chunks_exact_mut(padded)) {
        let sums = sums[first * LANES..][..V * LANES].as_chunks_mut::<LANES>().0;
        for vector in 0..V {
            simd.store(added[vector], &mut sums[vector]);
        }
    }
    V
}

/// Adds the values of some slots of a tile to the sums (padded head width) of one query.
#[inline(always)]
fn add_slots<S: Simd, P: KvStep>(
    simd: S,
    sums: &mut [f32],
    values: &[P],
    ((first, end), weights): ((usize, usize), &[P]),
) {
    let padded = sums.len();
    for (vector, sums) in sums.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        let mut added = simd.load(sums);
        for step in first / P::ELEMENTS..end.div_ceil(P::ELEMENTS) {
            let Some(values) = values[step * padded + vector * LANES..].first_chunk::<LANES>() else {
                break;
            };
            let start = step * P::ELEMENTS;
            let kept = first.saturating_sub(start)..(end - start).min(P::ELEMENTS);
            let mut values = *values;
            if kept != (0..P::ELEMENTS) {
                for value in &mut values {
                    *value = value.keep(kept.clone());
                }
            }
            added = P::dot(simd, added, weights[step].splat(simd), P::load(simd, &values));
        }
        simd.store(added, sums);
    }
}
