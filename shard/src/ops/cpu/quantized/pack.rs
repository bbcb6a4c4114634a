//! Packs quantized rows into panels.

use std::io;
use std::ops::Range;

#[cfg(feature = "cuda")]
use half::f16;
use rayon::prelude::*;

use super::format::{Format, Layout, STEP, Scales};
use crate::ops::cpu::huge_memory::HugeMemory;
use crate::ops::cpu::panels::PanelShape;
use crate::ops::cpu::simd::LANES;

/// Panels packed by one thread before their rows are released.
const PANELS_TOGETHER: usize = 32;

/// A packed matrix of quantized weights.
pub(crate) struct QuantizedPanels {
    memory: HugeMemory,
    shape: PanelShape,
    format: Format,
}

/// Where packed rows come from.
pub(crate) trait QuantizedRows: Sync {
    /// Writes all groups of a row of the weight.
    fn read_groups(&self, output: usize, row: &mut PackedRow);

    /// Is told which rows are not read any more.
    fn release(&self, _outputs: Range<usize>) {}
}

/// One row of a weight, quantized. Every segment is padded to whole blocks by zeroes.
pub(crate) struct PackedRow {
    shape: PanelShape,
    layout: Layout,
    /// One byte an element, whatever its bits.
    elements: Vec<u8>,
    /// Of each group its scale and its minimum: the bits of an f16, or where they are nested, a signed byte.
    terms: Vec<[u16; 2]>,
    /// Of each block what they are multiplied by, where they are nested: the bits of an f16.
    factors: Vec<[u16; 2]>,
    /// The row in single precision, for those who quantize it.
    pub(super) values: Vec<f32>,
}

/// One group of a row, to be written.
pub(crate) struct Group<'a> {
    /// Its elements of the row. At the end of a segment there may be fewer than a group has, and none.
    pub(crate) columns: Range<usize>,
    /// As many as a group has, whatever there are of the row.
    pub(crate) elements: &'a mut [u8],
    /// Scale and minimum.
    pub(crate) terms: &'a mut [u16; 2],
    /// What these are multiplied by. The groups of a block share it.
    pub(crate) factors: &'a mut [u16; 2],
}

impl PackedRow {
    pub(crate) fn new(shape: PanelShape, layout: Layout) -> Self {
        let blocks = layout.panel_blocks(shape);
        Self {
            shape,
            layout,
            elements: vec![0; blocks * layout.block()],
            terms: vec![[0; 2]; blocks * layout.groups],
            factors: vec![[0; 2]; blocks],
            values: vec![0.0; shape.inputs],
        }
    }

    /// Hands out all groups, front to back.
    pub(crate) fn for_each_group(&mut self, mut write: impl FnMut(&[f32], Group<'_>)) {
        let (layout, length) = (self.layout, self.shape.inputs / self.shape.segments);
        let in_segment = layout.segment_blocks(self.shape) * layout.groups;
        let groups = self.elements.chunks_exact_mut(layout.group).zip(&mut self.terms);
        for (index, (elements, terms)) in groups.enumerate() {
            let (segment, within) = (index / in_segment, index % in_segment * layout.group);
            let column = |within: usize| segment * length + within.min(length);
            let columns = column(within)..column(within + layout.group);
            let factors = &mut self.factors[index / layout.groups];
            write(&self.values, Group { columns, elements, terms, factors });
        }
    }
}

#[cfg(feature = "cuda")]
impl PackedRow {
    /// The elements of a segment, padding included.
    pub(crate) fn elements(&self, segment: usize) -> &[u8] {
        let length = self.layout.segment_blocks(self.shape) * self.layout.block();
        &self.elements[segment * length..][..length]
    }

    /// Scale and minimum of a group of a segment as f16. Nested ones are multiplied out and rounded.
    pub(crate) fn terms(&self, segment: usize, group: usize) -> [u16; 2] {
        let group = segment * self.layout.segment_blocks(self.shape) * self.layout.groups + group;
        let (terms, factors) = (self.terms[group], self.factors[group / self.layout.groups]);
        match self.layout.scales {
            Scales::Plain => terms,
            Scales::Nested => std::array::from_fn(|at| {
                let small = f32::from(terms[at].to_le_bytes()[0].cast_signed());
                f16::from_f32(small * f16::from_bits(factors[at]).to_f32()).to_bits()
            }),
        }
    }
}

impl QuantizedPanels {
    /// Packs `source`.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub(crate) fn pack(shape: PanelShape, format: Format, source: &dyn QuantizedRows) -> io::Result<Self> {
        let layout = format.layout();
        let mut memory = HugeMemory::zeroed(format.bytes(shape))?;
        let panel_bytes = layout.panel_blocks(shape) * layout.block_bytes();
        if panel_bytes > 0 {
            let together = memory.as_mut_slice().par_chunks_mut(panel_bytes * PANELS_TOGETHER).enumerate();
            together.for_each_init(
                || PackedRow::new(shape, layout),
                |row, (first, panels)| {
                    let mut done = first * PANELS_TOGETHER * LANES;
                    let begun = done;
                    for panel in panels.chunks_exact_mut(panel_bytes) {
                        let outputs = done..shape.outputs.min(done + LANES);
                        done = outputs.end;
                        row.pack(source, outputs, panel);
                    }
                    source.release(begun..done);
                },
            );
        }
        Ok(Self { memory, shape, format })
    }

    pub(crate) fn shape(&self) -> PanelShape {
        self.shape
    }

    pub(super) fn format(&self) -> Format {
        self.format
    }

    /// All panels, one after the other.
    pub(super) fn bytes(&self) -> &[u8] {
        self.memory.as_slice()
    }
}

impl PackedRow {
    /// Packs the rows of one panel.
    fn pack(&mut self, source: &dyn QuantizedRows, outputs: Range<usize>, panel: &mut [u8]) {
        for (lane, output) in outputs.enumerate() {
            source.read_groups(output, self);
            self.scatter(lane, panel);
        }
    }

    /// Writes the row to one column of a panel.
    fn scatter(&self, lane: usize, panel: &mut [u8]) {
        let layout = self.layout;
        let blocks = panel.chunks_exact_mut(layout.block_bytes());
        let rows = self.elements.chunks_exact(layout.block()).zip(self.terms.chunks_exact(layout.groups));
        for ((block, (elements, terms)), factors) in blocks.zip(rows).zip(&self.factors) {
            let groups =
                block.chunks_exact_mut(layout.group_bytes()).zip(elements.chunks_exact(layout.group));
            for (group, elements) in groups {
                match layout.bits {
                    4 => scatter_nibbles(lane, group, elements),
                    _ => scatter_bytes(lane, group, elements),
                }
            }
            for (group, terms) in terms.iter().enumerate() {
                for (term, bits) in terms.iter().enumerate().take(layout.terms) {
                    put(layout.scales, &mut block[layout.term_at(group, term)..], lane, *bits);
                }
            }
            if layout.scales == Scales::Nested {
                for (term, bits) in factors.iter().enumerate().take(layout.terms) {
                    put(Scales::Plain, &mut block[layout.factor_at(term)..], lane, *bits);
                }
            }
        }
    }
}

fn scatter_bytes(lane: usize, group: &mut [u8], elements: &[u8]) {
    for (step, four) in group.as_chunks_mut::<64>().0.iter_mut().zip(elements.as_chunks::<STEP>().0) {
        step.as_chunks_mut::<STEP>().0[lane] = *four;
    }
}

/// The first half of a group's steps in the lower halves of bytes, the second in the upper ones.
fn scatter_nibbles(lane: usize, group: &mut [u8], elements: &[u8]) {
    let (lower, upper) = elements.split_at(elements.len() / 2);
    let steps = lower.as_chunks::<STEP>().0.iter().zip(upper.as_chunks::<STEP>().0);
    for (step, (lower, upper)) in group.as_chunks_mut::<64>().0.iter_mut().zip(steps) {
        step.as_chunks_mut::<STEP>().0[lane] = std::array::from_fn(|at| lower[at] | upper[at] << 4);
    }
}

fn put(scales: Scales, terms: &mut [u8], lane: usize, bits: u16) {
    match scales {
        Scales::Plain => terms[lane * 2..lane * 2 + 2].copy_from_slice(&bits.to_le_bytes()),
        Scales::Nested => terms[lane] = bits.to_le_bytes()[0],
    }
}
