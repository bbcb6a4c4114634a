//! The weights that scores become.

use super::super::kv_step::KvStep;
use super::super::simd::{LANES, Simd, exp};
use super::keys::Scores;
use super::queries::{CHUNK, Chunk};
use super::tiles::{GROUP_TILES, Tile};
use super::visit::Seen;

/// Slots of a group.
pub(super) const SLOTS: usize = GROUP_TILES * LANES;

/// What weights of a group's values are, at the largest, where values have scales.
const LARGEST: f32 = i16::MAX as f32;

/// What is smaller than this beside a total of at least one counts as nothing.
const NOTHING: f32 = 1e-30;

/// The weights of a group's slots, as values are multiplied by them.
pub(super) struct Weights<P> {
    /// (queries, steps of a group)
    pub(super) of_group: [[P; SLOTS]; CHUNK],
    /// What each query's are numbers of, where values have scales.
    pub(super) units: [f32; CHUNK],
}

/// Turns scores into weights, adds those up, and multiplies what was added before by what a larger score makes of it. What
/// a query does not see has no weight.
#[inline(always)]
pub(super) fn weigh<S: Simd, P: KvStep>(
    simd: S,
    chunk: &mut Chunk<P>,
    (scores, values): (&Scores<S>, &[Tile<'_, P>; GROUP_TILES]),
    seen: Option<&[Seen; CHUNK]>,
) -> Weights<P> {
    let mut exponents = [0.0; LANES];
    for query in 0..CHUNK {
        let mut largest = scores[0][query];
        for scores in &scores[1..] {
            largest = simd.max(largest, scores[query]);
        }
        let before = chunk.maxima[query];
        let maximum = before.max(simd.reduce_max(largest));
        chunk.maxima[query] = maximum;
        exponents[query] = before - maximum;
    }
    // Mostly no score is larger than all before.
    let kept = if exponents[..CHUNK].iter().all(|exponent| *exponent == 0.0) {
        [1.0; LANES]
    } else {
        simd.to_array(exp(simd, simd.load(&exponents)))
    };
    let mut weights = Weights { of_group: [[P::ZERO; SLOTS]; CHUNK], units: [1.0; CHUNK] };
    for query in 0..CHUNK {
        let maximum = simd.splat(chunk.maxima[query]);
        let mut of_slots = [simd.splat(0.0); GROUP_TILES];
        for tile in 0..GROUP_TILES {
            if seen.is_none_or(|seen| !seen[query].is_hidden(tile)) {
                let weight = exp(simd, simd.sub(scores[tile][query], maximum));
                of_slots[tile] = keep(simd, weight, seen.map(|seen| seen[query].slots(tile)));
            }
        }
        let total = simd.mul(simd.load(&chunk.totals[query]), simd.splat(kept[query]));
        let steps = &mut weights.of_group[query];
        let total = if P::SCALED {
            let of_values = (values, seen.map(|seen| &seen[query]));
            let (total, unit) = write_scaled(simd, (total, &of_slots), of_values, steps);
            weights.units[query] = unit;
            total
        } else {
            write(simd, (total, &of_slots), steps)
        };
        simd.store(total, &mut chunk.totals[query]);
        chunk.rescale(simd, query, kept[query]);
    }
    weights
}

/// The lanes of slots that are seen, and zero elsewhere.
#[inline(always)]
fn keep<S: Simd>(simd: S, lanes: S::Lanes, seen: Option<(usize, usize)>) -> S::Lanes {
    seen.map_or(lanes, |slots| simd.keep(lanes, slots, 0.0))
}

/// Rounds a query's weights, and returns `total` and what they are then: rounding them must not show in the mean of the
/// values.
#[inline(always)]
fn write<S: Simd, P: KvStep>(
    simd: S,
    (mut total, of_slots): (S::Lanes, &[S::Lanes; GROUP_TILES]),
    steps: &mut [P; SLOTS],
) -> S::Lanes {
    for (weights, steps) in of_slots.iter().zip(steps.chunks_exact_mut(LANES / P::ELEMENTS)) {
        total = simd.add(total, P::write(simd, *weights, steps));
    }
    total
}

/// Rounds a query's weights, times the scales of the values they are of, to what the largest of them is
/// [`LARGEST`] of, and returns `total` and the weights, and what was rounded to.
#[inline(always)]
fn write_scaled<S: Simd, P: KvStep>(
    simd: S,
    (mut total, of_slots): (S::Lanes, &[S::Lanes; GROUP_TILES]),
    (values, seen): (&[Tile<'_, P>; GROUP_TILES], Option<&Seen>),
    steps: &mut [P; SLOTS],
) -> (S::Lanes, f32) {
    let mut most = simd.splat(0.0);
    let mut scaled = *of_slots;
    for tile in 0..GROUP_TILES {
        let product = simd.mul(of_slots[tile], P::scales(simd, values[tile].scales));
        scaled[tile] = keep(simd, product, seen.map(|seen| seen.slots(tile)));
        most = simd.max(scaled[tile], most);
        // A scale that is no number is none in any integer: the total is to be none then.
        total = simd.mul_add(scaled[tile], simd.splat(0.0), simd.add(total, of_slots[tile]));
    }
    let unit = simd.reduce_max(most).max(NOTHING) / LARGEST;
    let factor = simd.splat(1.0 / unit);
    for (scaled, steps) in scaled.iter().zip(steps.chunks_exact_mut(LANES / P::ELEMENTS)) {
        P::write(simd, simd.mul(*scaled, factor), steps);
    }
    (total, unit)
}
