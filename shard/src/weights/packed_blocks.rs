//! Blocks of GGUF files taken apart for the kernel that multiplies them: their integers and scales as they are.

use candle_core::quantized::GgmlDType;
use half::f16;

use crate::ops::cpu::quantized::{Format, Group};

/// The format that holds a type's blocks as they are; none where they are widened.
pub(crate) fn format_of(dtype: GgmlDType) -> Option<Format> {
    if dtype == GgmlDType::Q8_0 || dtype == GgmlDType::Q5_0 {
        Some(Format::Bytes)
    } else if dtype == GgmlDType::Q5_1 {
        Some(Format::BytesMinimum)
    } else if dtype == GgmlDType::Q6K {
        Some(Format::BytesNested)
    } else if dtype == GgmlDType::Q5K {
        Some(Format::BytesNestedMinimum)
    } else if dtype == GgmlDType::Q4_0 {
        Some(Format::Nibbles)
    } else if dtype == GgmlDType::Q4_1 {
        Some(Format::NibblesMinimum)
    } else if dtype == GgmlDType::Q4K {
        Some(Format::NibblesNestedMinimum)
    } else {
        None
    }
}

/// Writes the group that begins at `column` of `row`, the blocks of a whole row. Groups lie as the type's own do.
pub(super) fn read_group(dtype: GgmlDType, row: &[u8], column: usize, group: Group<'_>) {
    let (elements, bytes) = (dtype.block_size(), dtype.type_size());
    let block = &row[column / elements * bytes..][..bytes];
    let within = column % elements;
    if dtype == GgmlDType::Q8_0 {
        group.terms[0] = half_float(block, 0);
        for (element, byte) in group.elements.iter_mut().zip(&block[2..]) {
            *element = byte ^ 0x80;
        }
    } else if dtype == GgmlDType::Q4_0 {
        group.terms[0] = half_float(block, 0);
        nibbles(&block[2..], group.elements);
    } else if dtype == GgmlDType::Q4_1 {
        *group.terms = [half_float(block, 0), negative(half_float(block, 2))];
        nibbles(&block[4..], group.elements);
    } else if dtype == GgmlDType::Q5_0 {
        group.terms[0] = half_float(block, 0);
        nibbles(&block[6..], group.elements);
        fifth_bits(word(block, 2), group.elements);
        // From 0 to 31 with an offset of 16, to one of 128.
        group.elements.iter_mut().for_each(|element| *element += 112);
    } else if dtype == GgmlDType::Q5_1 {
        *group.terms = [half_float(block, 0), negative(half_float(block, 2))];
        nibbles(&block[8..], group.elements);
        fifth_bits(word(block, 4), group.elements);
    } else if dtype == GgmlDType::Q6K {
        six_bits(block, within, group);
    } else {
        nested(dtype, block, within / 32, group);
    }
}

/// The bits of an f16.
fn half_float(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

fn negative(bits: u16) -> u16 {
    (-f16::from_bits(bits)).to_bits()
}

fn word(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// The lower halves of sixteen bytes, then the upper ones.
fn nibbles(bytes: &[u8], elements: &mut [u8]) {
    let (lower, upper) = elements.split_at_mut(16);
    for ((lower, upper), byte) in lower.iter_mut().zip(upper).zip(bytes) {
        (*lower, *upper) = (byte & 15, byte >> 4);
    }
}

fn fifth_bits(bits: u32, elements: &mut [u8]) {
    for (at, element) in elements.iter_mut().enumerate() {
        *element |= ((bits >> at & 1) as u8) << 4;
    }
}

/// Q4_K and Q5_K: two f16, twelve bytes of small scales and minima, Q5_K's fifth bits, and halves of bytes.
fn nested(dtype: GgmlDType, block: &[u8], part: usize, group: Group<'_>) {
    *group.factors = [half_float(block, 0), half_float(block, 2)];
    let small = &block[4..16];
    *group.terms = if part < 4 {
        [small[part] & 63, small[part + 4] & 63]
    } else {
        let upper = |at: usize| small[at] >> 6 << 4;
        [small[part + 4] & 15 | upper(part - 4), small[part + 4] >> 4 | upper(part)]
    }
    .map(u16::from);
    let fifth = if dtype == GgmlDType::Q5K { Some(&block[16..48]) } else { None };
    let halves = &block[if fifth.is_some() { 48 } else { 16 }..][part / 2 * 32..][..32];
    for (at, (element, byte)) in group.elements.iter_mut().zip(halves).enumerate() {
        *element = if part.is_multiple_of(2) { byte & 15 } else { byte >> 4 };
        *element |= fifth.map_or(0, |bits| (bits[at] >> part & 1) << 4);
    }
}

/// Q6_K: lower halves, upper two bits, signed scales of 16, an f16.
fn six_bits(block: &[u8], within: usize, group: Group<'_>) {
    let (half, place) = (within / 128, within % 128);
    let (quarter, first) = (place / 32, place % 32);
    let lower = &block[half * 64 + quarter % 2 * 32 + first..][..16];
    let upper = &block[128 + half * 32 + first..][..16];
    for ((element, lower), upper) in group.elements.iter_mut().zip(lower).zip(upper) {
        let low = if quarter < 2 { lower & 15 } else { lower >> 4 };
        // From 0 to 63 with an offset of 32, to one of 128.
        *element = (low | (upper >> (quarter * 2) & 3) << 4) + 96;
    }
    group.terms[0] = u16::from(block[192 + within / 16]);
    group.factors[0] = half_float(block, 208);
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use candle_core::CpuStorage;
    use proptest::prelude::*;

    use super::*;
    use crate::ops::cpu::quantized::Scales;

    const TYPES: [GgmlDType; 8] = [
        GgmlDType::Q4_0,
        GgmlDType::Q4_1,
        GgmlDType::Q5_0,
        GgmlDType::Q5_1,
        GgmlDType::Q8_0,
        GgmlDType::Q4K,
        GgmlDType::Q5K,
        GgmlDType::Q6K,
    ];

    /// Where a type's block has its f16.
    fn half_floats(dtype: GgmlDType) -> &'static [usize] {
        if dtype == GgmlDType::Q6K {
            &[208]
        } else if [GgmlDType::Q4_0, GgmlDType::Q5_0, GgmlDType::Q8_0].contains(&dtype) {
            &[0]
        } else {
            &[0, 2]
        }
    }

    /// What the groups of a row stand for.
    fn values(dtype: GgmlDType, row: &[u8], columns: usize) -> Vec<f32> {
        let layout = format_of(dtype).unwrap().layout();
        let float = |bits: u16| f16::from_bits(bits).to_f32();
        let mut values = Vec::new();
        for column in (0..columns).step_by(layout.group) {
            let mut elements = vec![0; layout.group];
            let (mut terms, mut factors) = ([0; 2], [0; 2]);
            let columns = column..column + layout.group;
            let group =
                Group { columns, elements: &mut elements, terms: &mut terms, factors: &mut factors };
            read_group(dtype, row, column, group);
            let term = |at: usize| match layout.scales {
                Scales::Plain => float(terms[at]),
                Scales::Nested => f32::from((terms[at] as u8).cast_signed()) * float(factors[at]),
            };
            let minimum = if layout.terms == 2 { term(1) } else { 0.0 };
            let value = |element: &u8| (f32::from(*element) - f32::from(layout.offset)) * term(0) - minimum;
            values.extend(elements.iter().map(value));
        }
        values
    }

    proptest! {
        #[test]
        fn groups_stand_for_what_their_blocks_are_widened_to(
            dtype in prop::sample::select(&TYPES[..]),
            bytes in prop::collection::vec(any::<u8>(), 3 * 256),
            scales in prop::collection::vec(-9.0..9.0_f32, 6),
        ) {
            let size = dtype.type_size();
            let mut row = bytes[..3 * size].to_vec();
            for (block, bytes) in row.chunks_exact_mut(size).enumerate() {
                for (at, scale) in half_floats(dtype).iter().zip(&scales[block * 2..]) {
                    bytes[*at..at + 2].copy_from_slice(&f16::from_f32(*scale).to_le_bytes());
                }
            }
            let columns = 3 * dtype.block_size();
            let widened = dtype.from_data(Cow::Borrowed(&row)).dequantize(columns).unwrap();
            let CpuStorage::F32(widened) = widened else { panic!("blocks are widened to f32") };
            for (found, expected) in values(dtype, &row, columns).iter().zip(&widened) {
                prop_assert!((found - expected).abs() <= 1e-6 * (expected.abs() + 600.0), "{dtype:?}");
            }
        }
    }
}
