//! Weights of other types quantized as they are packed: a scale for each group, which follows from it alone.

use std::ops::Range;

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::format::Format;
use super::pack::{Group, PackedRow, QuantizedRows};
use crate::ops::cpu::isa::{Isa, Kernel};
use crate::ops::cpu::panels::RowSource;
use crate::ops::cpu::simd::{LANES, Simd};

/// Rows that are quantized: to [`Format::Bytes`] or to [`Format::Nibbles`].
pub(crate) struct Quantizing<'a> {
    rows: &'a dyn RowSource,
    format: Format,
    isa: Isa,
}

impl<'a> Quantizing<'a> {
    /// With the instruction set that kernels run with; the weights are the same with any.
    pub(crate) fn of_this_machine(rows: &'a dyn RowSource, format: Format) -> Self {
        Self { rows, format, isa: Isa::of_this_machine() }
    }
}

impl QuantizedRows for Quantizing<'_> {
    fn read_groups(&self, output: usize, row: &mut PackedRow) {
        self.rows.read_row(output, &mut row.values);
        let nibbles = self.format.layout().bits == 4;
        row.for_each_group(|values, group| {
            let Group { columns, elements, terms, .. } = group;
            let values = &values[columns];
            elements.fill(self.format.layout().offset);
            let scale = if nibbles {
                self.isa.run(ToNibbles { values, elements })
            } else {
                to_bytes(values, elements)
            };
            terms[0] = scale.to_bits();
        });
    }

    fn release(&self, outputs: Range<usize>) {
        self.rows.release(outputs);
    }
}

/// The largest f16.
const LARGEST_SCALE: f32 = 65504.0;

/// Adding it rounds to an integer held in the low bits of the mantissa.
const MAGIC: f32 = 12_582_912.0;

/// The f16 of a scale: beyond the largest, weights are cut off.
fn rounded(scale: f32) -> f16 {
    f16::from_f32(scale.clamp(-LARGEST_SCALE, LARGEST_SCALE))
}

/// The nearest whole number, as a float; halves go to the even one.
#[inline(always)]
fn whole(value: f32) -> f32 {
    (value + MAGIC) - MAGIC
}

/// From -127 to 127 times the largest magnitude / 127. What is not finite makes the group not a number.
fn to_bytes(values: &[f32], elements: &mut [u8]) -> f16 {
    let largest = f32::from_bits(values.iter().fold(0, |most, value| most.max(value.abs().to_bits())));
    if !largest.is_finite() {
        return f16::NAN;
    }
    let scale = rounded(largest / 127.0);
    let inverse = inverse(scale.to_f32());
    for (element, value) in elements.iter_mut().zip(values) {
        *element = (whole(value * inverse).clamp(-127.0, 127.0) + 128.0) as u8;
    }
    scale
}

/// Scales that are tried for a group of [`Format::Nibbles`].
const CANDIDATES: usize = LANES / 2;

/// What the largest magnitude is divided by for each of them, which has two lanes: -9 to -7.25.
const DIVISORS: [f32; LANES] = {
    let mut divisors = [0.0; LANES];
    let mut lane = 0;
    while lane < LANES {
        divisors[lane] = (lane / 2) as f32 * 0.25 - 9.0;
        lane += 1;
    }
    divisors
};

/// One group from -8 to 7 times its scale. Of the largest magnitude / -8, signed, and scales a little smaller and larger,
/// the one with the least squared error is taken. The same on every instruction set: nothing is fused.
struct ToNibbles<'a> {
    /// As many as two vectors hold, at most.
    values: &'a [f32],
    elements: &'a mut [u8],
}

impl Kernel for ToNibbles<'_> {
    type Output = f16;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f16 {
        let (first, second) = self.values.split_at(self.values.len().min(LANES));
        let values = [simd.load_first(first), simd.load_first(second)];
        let Some(largest) = largest(simd, values) else { return f16::NAN };
        let mut candidates = [f16::ZERO; LANES];
        let scales = simd.div(simd.splat(largest), simd.load(&DIVISORS));
        let most = simd.splat(LARGEST_SCALE);
        let scales = simd.max(simd.min(scales, most), simd.sub(simd.splat(0.0), most));
        candidates.convert_from_f32_slice(&simd.to_array(scales));
        let mut scales = [0.0; LANES];
        candidates.convert_to_f32_slice(&mut scales);
        let best = best_scale(simd, self.values, &scales);
        let inverse = simd.splat(inverse(scales[best * 2]));
        for (elements, values) in self.elements.as_chunks_mut::<LANES>().0.iter_mut().zip(values) {
            let nibbles = simd.add(nearest_nibbles(simd, values, inverse), simd.splat(8.0 + MAGIC));
            for (element, nibble) in elements.iter_mut().zip(simd.to_array(nibbles)) {
                // The number is in the low bits.
                *element = nibble.to_bits().to_le_bytes()[0];
            }
        }
        candidates[best * 2]
    }
}

/// The value of the largest magnitude; absent where one is not finite.
#[inline(always)]
fn largest<S: Simd>(simd: S, [first, second]: [S::Lanes; 2]) -> Option<f32> {
    let zero = simd.splat(0.0);
    // What is not finite times zero is not a number.
    let zeros = simd.add(simd.mul(first, zero), simd.mul(second, zero));
    if simd.reduce_add(zeros) != 0.0 {
        return None;
    }
    let most = simd.reduce_max(simd.max(first, second));
    let least = -simd.reduce_max(simd.sub(zero, simd.min(first, second)));
    Some(if most >= -least { most } else { least })
}

/// Which of the candidates has the least sum of squared differences, the first of equal ones.
#[inline(always)]
fn best_scale<S: Simd>(simd: S, values: &[f32], scales: &[f32; LANES]) -> usize {
    let inverses = simd.load(&scales.map(inverse));
    let scales = simd.load(scales);
    let mut errors = simd.splat(0.0);
    let (pairs, rest) = values.as_chunks::<2>();
    let odd = rest.first().map(|last| [*last, 0.0]);
    // Values in turn for the two lanes that each candidate has.
    for [first, second] in pairs.iter().copied().chain(odd) {
        let values = simd.alternate(first, second);
        let difference = simd.sub(values, simd.mul(nearest_nibbles(simd, values, inverses), scales));
        errors = simd.add(errors, simd.mul(difference, difference));
    }
    let errors = simd.to_array(errors);
    let errors = errors.as_chunks::<2>().0.iter().map(|[first, second]| first + second);
    // Numbers that are not negative compare as their bits do.
    let ranked = errors.zip(0_u64..).map(|(error, candidate)| u64::from(error.to_bits()) << 32 | candidate);
    ranked.min().map_or(0, |best| best as usize % CANDIDATES)
}

/// The whole number from -8 to 7 nearest to each value times `inverse`; halves go to the even one.
#[inline(always)]
fn nearest_nibbles<S: Simd>(simd: S, values: S::Lanes, inverse: S::Lanes) -> S::Lanes {
    let magic = simd.splat(MAGIC);
    let whole = simd.sub(simd.add(simd.mul(values, inverse), magic), magic);
    simd.min(simd.max(whole, simd.splat(-8.0)), simd.splat(7.0))
}

/// Zero for zero.
#[inline(always)]
fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::reference::Random;

    /// Candidates one by one, in double precision: the least squared error.
    fn least_error(values: &[f32]) -> f64 {
        let larger = |most: f32, value: &f32| if value.abs() > most.abs() { *value } else { most };
        let largest = values.iter().fold(0.0, larger);
        let scales = (-4..=3_i16).map(|step| rounded(largest / (f32::from(step) * 0.25 - 8.0)).to_f64());
        let error = |scale: f64| -> f64 {
            let nibble = |value: f64| (value / scale).round_ties_even().clamp(-8.0, 7.0);
            values
                .iter()
                .map(|value| f64::from(*value))
                .map(|value| (value - nibble(value) * scale).powi(2))
                .sum()
        };
        scales.map(error).fold(f64::INFINITY, f64::min)
    }

    #[test]
    fn nibbles_are_the_nearest_of_the_best_scale_on_every_set() {
        let mut random = Random::new(3);
        for length in [32, 31, 17, 16, 3, 1] {
            for size in [1e-3, 1.0, 1e3] {
                let values: Vec<f32> =
                    random.values(length).into_iter().map(|value| value * size).collect();
                let found = Isa::all_of_this_machine().into_iter().map(|isa| {
                    let mut elements = [0; 32];
                    let scale = isa.run(ToNibbles { values: &values, elements: &mut elements });
                    (scale, elements)
                });
                let found: Vec<(f16, [u8; 32])> = found.collect();
                assert!(found.iter().all(|one| one == &found[0]), "{found:?}");
                let (scale, elements) = found[0];
                let held = |element: u8| (f64::from(element) - 8.0) * scale.to_f64();
                let pairs = values.iter().zip(elements);
                let error: f64 =
                    pairs.map(|(value, element)| (f64::from(*value) - held(element)).powi(2)).sum();
                assert!(error <= least_error(&values) * (1.0 + 1e-5), "{error} {values:?}");
                assert!(
                    elements[length..].iter().all(|element| *element == 8),
                    "what is not there is zero"
                );
            }
        }
    }

    #[test]
    fn a_group_with_a_value_that_is_not_finite_has_no_scale() {
        for isa in Isa::all_of_this_machine() {
            for (place, broken) in [(0, f32::NAN), (15, f32::INFINITY), (31, f32::NEG_INFINITY)] {
                let mut values = [1.0; 32];
                values[place] = broken;
                assert!(
                    isa.run(ToNibbles { values: &values, elements: &mut [0; 32] }).is_nan(),
                    "{isa} {broken}"
                );
            }
        }
    }
}
