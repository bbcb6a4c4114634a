//! Rows of several stored tensors, one below the other, as one matrix to pack.

use std::ops::Range;

use super::StoredTensor;
use crate::ops::cpu::panels::RowSource;

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
}

impl StackedRows {
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

    /// Gives back the memory its files' pages take in this process; they are read again where they are used.
    pub(crate) fn release(&self) {
        for (tensor, rows) in &self.parts {
            tensor.release(rows.clone());
        }
    }
}

impl RowSource for StackedRows {
    fn read_row(&self, output: usize, into: &mut [f32]) {
        match self.find(output) {
            Some((tensor, row)) => tensor.read(row, self.columns.clone(), into),
            None => into.fill(0.0),
        }
    }

    fn bf16_row(&self, output: usize) -> Option<&[u8]> {
        self.find(output).and_then(|(tensor, row)| tensor.bf16(row, self.columns.clone()))
    }
}
