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

impl RowSource for StackedRows {
    fn read_row(&self, output: usize, into: &mut [f32]) {
        let mut row = output;
        for (tensor, rows) in &self.parts {
            if row < rows.len() {
                tensor.read(rows.start + row, self.columns.clone(), into);
                return;
            }
            row -= rows.len();
        }
        into.fill(0.0);
    }
}
