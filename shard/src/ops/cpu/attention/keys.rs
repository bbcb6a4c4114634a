//! The scores of queries: their products with keys.

use super::super::kv_step::KvStep;
use super::super::simd::{Simd, tanh};
use super::queries::{CHUNK, Chunk, Scoring};
use super::tiles::{GROUP_TILES, Group};

/// The scores of a group's slots, tile by tile: one lane a slot.
pub(super) type Scores<S> = [[<S as Simd>::Lanes; CHUNK]; GROUP_TILES];

/// The scores of those of a group's tiles that are `read`, of which there is one at least; of the others they may be
/// anything. What is read soon is asked for meanwhile.
#[inline(always)]
pub(super) fn scores<S: Simd, P: KvStep>(
    simd: S,
    scoring: Scoring,
    chunk: &Chunk<P>,
    (group, read): (&Group<'_, P>, [bool; GROUP_TILES]),
) -> Scores<S> {
    let mut sums = [[P::zero(simd); CHUNK]; GROUP_TILES];
    if S::WIDE && read.iter().filter(|read| **read).count() > 1 {
        // Four together take as long as two alone: what is not read repeats another.
        let other = read.iter().position(|read| *read).unwrap_or(0);
        let mut rows = [group.keys[other].rows; GROUP_TILES];
        for tile in 0..GROUP_TILES {
            if read[tile] {
                rows[tile] = group.keys[tile].rows;
            }
        }
        sums = products::<S, P, GROUP_TILES>(simd, chunk, (group, 0), rows);
    } else {
        for tile in 0..GROUP_TILES {
            if read[tile] {
                [sums[tile]] = products::<S, P, 1>(simd, chunk, (group, tile), [group.keys[tile].rows]);
            }
        }
    }
    let mut scores = [[simd.splat(0.0); CHUNK]; GROUP_TILES];
    for tile in 0..GROUP_TILES {
        let of_slots = P::scales(simd, group.keys[tile].scales);
        for query in 0..CHUNK {
            let score = P::scores(simd, sums[tile][query], (chunk.scales[query], of_slots));
            scores[tile][query] = finish(simd, scoring, score);
        }
    }
    scores
}

/// The products of a chunk's queries and the keys of `T` tiles of a group from the `first` on.
#[inline(always)]
fn products<S: Simd, P: KvStep, const T: usize>(
    simd: S,
    chunk: &Chunk<P>,
    (group, first): (&Group<'_, P>, usize),
    mut keys: [&[P::Row]; T],
) -> [[P::Sums<S>; CHUNK]; T] {
    for (tile, keys) in keys.iter_mut().enumerate() {
        *keys = &keys[..chunk.queries.len()];
        group.during_keys.ask_scales::<S, P>(simd, first + tile);
    }
    let mut sums = [[P::zero(simd); CHUNK]; T];
    for (step, query) in chunk.queries.iter().enumerate() {
        // Before the queries' elements: what is checked in between keeps those out of the vectors' registers.
        let mut rows = [&keys[0][step]; T];
        for tile in 1..T {
            rows[tile] = &keys[tile][step];
        }
        let mut elements = [P::ZERO.splat(simd); CHUNK];
        for at in 0..CHUNK {
            elements[at] = query[at].splat(simd);
        }
        for tile in 0..T {
            group.during_keys.ask::<S, P>(simd, first + tile, step);
            let key = P::load(simd, rows[tile]);
            for at in 0..CHUNK {
                sums[tile][at] = P::dot(simd, sums[tile][at], elements[at], key);
            }
        }
    }
    sums
}

/// Scales and caps a score.
#[inline(always)]
fn finish<S: Simd>(simd: S, scoring: Scoring, score: S::Lanes) -> S::Lanes {
    let scaled = simd.mul(score, simd.splat(scoring.scale));
    let Some(cap) = scoring.softcap else { return scaled };
    let cap = simd.splat(cap);
    simd.mul(cap, tanh(simd, simd.div(scaled, cap)))
}
