//! Weights of other types quantized as they are packed: a scale for each group, which follows from it alone.

use std::ops::Range;

use half::f16;

use super::format::Format;
use super::pack::{Group, PackedRow, QuantizedRows};
use crate::ops::cpu::panels::RowSource;

/// Rows that are quantized: to [`Format::Bytes`] or to [`Format::Nibbles`].
pub(crate) struct Quantizing<'a> {
    pub(crate) rows: &'a dyn RowSource,
    pub(crate) format: Format,
}

impl QuantizedRows for Quantizing<'_> {
    fn read_groups(&self, output: usize, row: &mut PackedRow) {
        self.rows.read_row(output, &mut row.values);
        let nibbles = self.format.layout().bits == 4;
        row.for_each_group(|values, group| {
            let Group { columns, elements, terms, .. } = group;
            let values = &values[columns];
            elements.fill(self.format.layout().offset);
            let scale = if nibbles { to_nibbles(values, elements) } else { to_bytes(values, elements) };
            terms[0] = scale.to_bits();
        });
    }

    fn release(&self, outputs: Range<usize>) {
        self.rows.release(outputs);
    }
}

/// The largest f16 of a scale: beyond it, weights are cut off.
fn rounded(scale: f32) -> f16 {
    f16::from_f32(scale.clamp(-65504.0, 65504.0))
}

/// The nearest whole number, as a float; halves go to the even one.
#[inline(always)]
fn whole(value: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0;
    (value + MAGIC) - MAGIC
}

/// From -127 to 127 times the largest magnitude / 127. What is not finite makes the group not a number.
fn to_bytes(values: &[f32], elements: &mut [u8]) -> f16 {
    let largest = f32::from_bits(values.iter().fold(0, |most, value| most.max(value.abs().to_bits())));
    if !largest.is_finite() {
        return f16::NAN;
    }
    let scale = rounded(largest / 127.0);
    let inverse = inverse(scale);
    for (element, value) in elements.iter_mut().zip(values) {
        *element = (whole(value * inverse).clamp(-127.0, 127.0) + 128.0) as u8;
    }
    scale
}

/// From -8 to 7 times the scale. Of the largest magnitude / -8, signed, and scales a little smaller and larger, the
/// one with the least squared error is taken.
fn to_nibbles(values: &[f32], elements: &mut [u8]) -> f16 {
    let larger = |most: f32, value: &f32| if value.abs() > most.abs() { *value } else { most };
    let largest = values.iter().fold(0.0, larger);
    if !values.iter().all(|value| value.is_finite()) {
        return f16::NAN;
    }
    let mut best = (f32::INFINITY, f16::ZERO);
    for step in -4..=4_i16 {
        let scale = rounded(largest / (f32::from(step) * 0.25 - 8.0));
        let error = nibble_error(values, scale);
        if error < best.0 {
            best = (error, scale);
        }
    }
    let scale = best.1;
    let inverse = inverse(scale);
    for (element, value) in elements.iter_mut().zip(values) {
        *element = (whole(value * inverse).clamp(-8.0, 7.0) + 8.0) as u8;
    }
    scale
}

/// The sum of squared differences.
fn nibble_error(values: &[f32], scale: f16) -> f32 {
    let (inverse, scale) = (inverse(scale), scale.to_f32());
    let difference = |value: &f32| value - whole(value * inverse).clamp(-8.0, 7.0) * scale;
    values.iter().map(difference).map(|difference| difference * difference).sum()
}

fn inverse(scale: f16) -> f32 {
    if scale == f16::ZERO { 0.0 } else { 1.0 / scale.to_f32() }
}
