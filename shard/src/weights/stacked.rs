//! Rows of several stored tensors, one below the other, as one matrix to pack.

use std::ops::Range;

use super::StoredTensor;
use crate::dtype::Dtype;
use crate::ops::cpu::panels::RowSource;
use crate::ops::cpu::quantized::{Group, PackedRow, QuantizedRows};
use crate::ops::cpu::simd::LANES;

/// Rows of several tensors, and the columns of them that a rank has.
pub(crate) struct StackedRows {
    parts: Vec<(StoredTensor, Range<usize>)>,
    columns: Range<usize>,
}

impl StackedRows {
    /// `parts` name the rows taken of each tensor, in order; rows after the last are zero.
    pub(crate) fn new(parts: Vec<(StoredTensor, Range<usize>)>, columns: Range<usize>) -> Self {
        Self { parts, columns }
    }

    /// Has the rows read from disk, where they are not in memory.
    pub(crate) fn prefetch(&self) {
        for (tensor, rows) in &self.parts {
            tensor.prefetch(rows.clone());
        }
    }

    /// The tensor a row is in, and its place there; none after the last.
    fn find(&self, output: usize) -> Option<(&StoredTensor, usize)> {
        let mut row = output;
        for (tensor, rows) in &self.parts {
            if row < rows.len() {
                return Some((tensor, rows.start + row));
            }
            row -= rows.len();
        }
        None
    }
}

impl RowSource for StackedRows {
    fn read_row(&self, output: usize, into: &mut [f32]) {
        match self.find(output) {
            Some((tensor, row)) => tensor.read(row, self.columns.clone(), into),
            None => into.fill(0.0),
        }
    }

    fn stored_row(&self, output: usize, dtype: Dtype) -> Option<&[u8]> {
        self.find(output).and_then(|(tensor, row)| tensor.stored(dtype, row, self.columns.clone()))
    }

    /// Gives back the memory the rows' pages take in this process.
    fn release(&self, outputs: Range<usize>) {
        let mut before = 0;
        for (tensor, rows) in &self.parts {
            let in_part = |output: usize| output.saturating_sub(before).min(rows.len());
            let (first, end) = (in_part(outputs.start), in_part(outputs.end));
            tensor.release(rows.start + first..rows.start + end);
            before += rows.len();
        }
    }
}

/// Rows of a gate and of what it gates, by turns: as many of each as a vector has lanes.
pub(crate) struct GateBesideUp {
    rows: StackedRows,
    width: usize,
}

impl GateBesideUp {
    /// Of `rows` the gate's `width` come first. They are a multiple of [`LANES`].
    pub(crate) fn new(rows: StackedRows, width: usize) -> Self {
        Self { rows, width }
    }

    fn place(&self, output: usize) -> usize {
        let (group, lane) = (output / LANES, output % LANES);
        group / 2 * LANES + lane + if group.is_multiple_of(2) { 0 } else { self.width }
    }
}

impl RowSource for GateBesideUp {
    fn read_row(&self, output: usize, into: &mut [f32]) {
        self.rows.read_row(self.place(output), into);
    }

    fn stored_row(&self, output: usize, dtype: Dtype) -> Option<&[u8]> {
        self.rows.stored_row(self.place(output), dtype)
    }

    /// They are whole panels.
    fn release(&self, outputs: Range<usize>) {
        let (first, end) = (outputs.start / 2, outputs.end / 2);
        RowSource::release(&self.rows, first..end);
        RowSource::release(&self.rows, self.width + first..self.width + end);
    }
}

/// Rows whose tensors hold blocks, as they are.
impl QuantizedRows for StackedRows {
    fn read_groups(&self, output: usize, row: &mut PackedRow) {
        let found = self.find(output);
        row.for_each_group(|_, group| match found {
            Some((tensor, row)) if !group.columns.is_empty() => {
                tensor.read_group(row, self.columns.start + group.columns.start, group);
            }
            Some(_) | None => {
                let Group { elements, terms, factors, .. } = group;
                elements.fill(0);
                (*terms, *factors) = ([0; 2], [0; 2]);
            }
        });
    }

    fn release(&self, outputs: Range<usize>) {
        RowSource::release(self, outputs);
    }
}
