//! Activations quantized for a product: signed bytes, and for each group of a row what the kernel needs of it.

use std::ops::Range;

use super::format::{Layout, STEP};
use crate::ops::cpu::isa::{Isa, Kernel};
use crate::ops::cpu::panels::PanelShape;
use crate::ops::cpu::parallel::for_each_range;
use crate::ops::cpu::simd::Simd;
use crate::ops::cpu::unwritten::{Unwritten, written};

/// Elements of a row that share a scale.
const SHARED: usize = 32;

/// Scalar operations that quantizing an element is worth.
const OPERATIONS: usize = 8;

/// Words of a group beside its elements: what sums of products begin with, for weights that are stored with an
/// offset; what an element's byte is multiplied by; and the negative sum of what its elements stand for.
pub(super) const GROUP_TERMS: usize = 3;

/// Quantized rows, as words of four bytes, in tiles of rows. A tile holds its groups one after the other, and a
/// group for each step of four elements a word of each row, then each of its terms of each row: the kernel reads it
/// front to back. Segments are padded to whole blocks by zeroes.
pub(super) struct Activations {
    words: Vec<u32>,
    /// Words a row takes, whatever the tile.
    row_words: usize,
    rows: usize,
    tiles: TileRows,
}

/// How many rows the tiles have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TileRows {
    /// 8, 4, 2 or 1.
    Many,
    /// 4 or 1.
    Few,
}

impl TileRows {
    /// Rows of the tile that begins where so many are left.
    #[inline(always)]
    pub(super) fn of(self, left: usize) -> usize {
        match (self, left) {
            (Self::Many, 8..) => 8,
            (Self::Many | Self::Few, 4..) => 4,
            (Self::Many, 2..) => 2,
            (Self::Many | Self::Few, _) => 1,
        }
    }
}

/// Words of a row's group.
pub(super) const fn group_words(group: usize) -> usize {
    group / STEP + GROUP_TERMS
}

impl Activations {
    /// Quantizes `input` (rows, inputs). A row's scales follow from that row alone.
    pub(super) fn new(
        isa: Isa,
        (shape, layout): (PanelShape, Layout),
        tiles: TileRows,
        input: &[f32],
    ) -> Self {
        let rows = input.len() / shape.inputs.max(1);
        let row_words = layout.panel_blocks(shape) * layout.groups * group_words(layout.group);
        let quantize = |words: Unwritten<'_, u32>| {
            // Tiles of rows, the largest first: all but the last eight rows are in whole ones.
            for_each_range(rows.div_ceil(8), input.len() * OPERATIONS, |eights| {
                let mut row = eights.start * 8;
                let end = rows.min(eights.end * 8);
                while row < end {
                    let count = tiles.of(rows - row);
                    // SAFETY: no two tiles have a row in common.
                    let words = unsafe { words.cleared(row * row_words, count * row_words) };
                    let input = &input[row * shape.inputs..(row + count) * shape.inputs];
                    isa.run(QuantizeTile { shape, layout, input, words, count });
                    row += count;
                }
            });
        };
        // SAFETY: every row is in a tile.
        let words = unsafe { written(rows * row_words, quantize) };
        Self { words, row_words, rows, tiles }
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn tiles(&self) -> TileRows {
        self.tiles
    }

    /// The words of the tile of `count` rows that begins with `row`.
    #[inline(always)]
    pub(super) fn tile(&self, row: usize, count: usize) -> &[u32] {
        &self.words[row * self.row_words..(row + count) * self.row_words]
    }
}

/// Quantizes the rows of a tile.
struct QuantizeTile<'a> {
    shape: PanelShape,
    layout: Layout,
    input: &'a [f32],
    words: &'a mut [u32],
    count: usize,
}

impl Kernel for QuantizeTile<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) {
        let Self { shape, layout, input, words, count } = self;
        let length = shape.inputs / shape.segments;
        let shared_words = SHARED / layout.group * group_words(layout.group) * count;
        let in_segment = layout.segment_blocks(shape) * layout.block() / SHARED;
        for (row, input) in input.chunks_exact(shape.inputs).enumerate() {
            for (index, words) in words.chunks_exact_mut(shared_words).enumerate() {
                let columns = part(index % in_segment, length);
                let segment = &input[index / in_segment * length..][..length];
                let mut elements = [0; SHARED];
                let scale = match segment[columns.clone()].as_array::<SHARED>() {
                    Some(whole) => quantize(whole, &mut elements),
                    None => {
                        let mut whole = [0.0; SHARED];
                        whole[..columns.len()].copy_from_slice(&segment[columns]);
                        quantize(&whole, &mut elements)
                    }
                };
                write(layout, (&elements, scale), words, (row, count));
            }
        }
    }
}

/// The `index`-th elements of a segment that share a scale; fewer at its end, or none.
#[inline(always)]
fn part(index: usize, length: usize) -> Range<usize> {
    (index * SHARED).min(length)..((index + 1) * SHARED).min(length)
}

/// Writes the groups that share a scale.
#[inline(always)]
fn write(
    layout: Layout,
    (elements, scale): (&[i8; SHARED], f32),
    words: &mut [u32],
    (row, count): (usize, usize),
) {
    let steps = layout.group / STEP;
    let groups = words.chunks_exact_mut(group_words(layout.group) * count);
    for (elements, words) in elements.chunks_exact(layout.group).zip(groups) {
        let mut sum = 0;
        for (step, four) in elements.as_chunks::<STEP>().0.iter().enumerate() {
            words[step * count + row] = u32::from_le_bytes(four.map(i8::cast_unsigned));
            sum += four.iter().map(|element| i32::from(*element)).sum::<i32>();
        }
        let start = -i32::from(layout.offset) * sum;
        let terms = [start.cast_unsigned(), scale.to_bits(), (-(sum as f32 * scale)).to_bits()];
        for (term, bits) in terms.into_iter().enumerate() {
            words[(steps + term) * count + row] = bits;
        }
    }
}

/// From -127 to 127 times the largest magnitude / 127, which is returned. What is not finite makes the scale so: a
/// broken model must not look well.
#[inline(always)]
fn quantize(values: &[f32; SHARED], elements: &mut [i8; SHARED]) -> f32 {
    /// Added to a number below 2^22, it leaves the nearest whole number in the low bits; halves go to the even.
    const MAGIC: f32 = 12_582_912.0;
    /// Magnitudes below vanish: their inverse would not be finite.
    const LEAST: f32 = 1e-36;

    // As integers, what is not a number is larger than any.
    let largest = values.iter().fold(0, |most, value| most.max(value.to_bits() & 0x7fff_ffff));
    let largest = f32::from_bits(largest);
    let inverse = if largest < LEAST { 0.0 } else { 127.0 / largest };
    for (element, value) in elements.iter_mut().zip(values) {
        let bits = (value * inverse + MAGIC).to_bits();
        *element = bits.to_le_bytes()[0].cast_signed();
    }
    largest / 127.0
}
