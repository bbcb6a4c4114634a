//! One stored tensor, read row by row.

use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};
use lockstep_models::FileBytes;
use safetensors::Dtype as StoredDtype;

/// The element types that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    Bf16,
    F16,
    F32,
}

impl Element {
    pub(crate) fn of(dtype: StoredDtype) -> Option<Self> {
        [(StoredDtype::BF16, Self::Bf16), (StoredDtype::F16, Self::F16), (StoredDtype::F32, Self::F32)]
            .into_iter()
            .find_map(|(candidate, element)| (candidate == dtype).then_some(element))
    }

    fn bytes(self) -> usize {
        match self {
            Self::Bf16 | Self::F16 => 2,
            Self::F32 => 4,
        }
    }
}

/// A tensor where it lies in its file: (rows, columns), or (columns) as one row.
#[derive(Clone)]
pub(crate) struct StoredTensor {
    file: Arc<FileBytes>,
    bytes: Range<usize>,
    element: Element,
    columns: usize,
}

impl StoredTensor {
    /// `bytes` of `file` hold a tensor of `shape`: its header was checked to say so.
    pub(crate) fn new(
        file: Arc<FileBytes>,
        bytes: Range<usize>,
        element: Element,
        shape: &[usize],
    ) -> Self {
        Self { file, bytes, element, columns: shape.last().copied().unwrap_or(1) }
    }

    /// Widens some columns of a row, exactly, into `into`, which is as long as they are many.
    pub(crate) fn read(&self, row: usize, columns: Range<usize>, into: &mut [f32]) {
        let size = self.element.bytes();
        let start = (row * self.columns + columns.start) * size;
        // Files carry no alignment: elements are put together from their bytes.
        let bytes = &self.file[self.bytes.clone()][start..start + columns.len() * size];
        match self.element {
            Element::Bf16 => {
                for (value, bytes) in into.iter_mut().zip(bytes.as_chunks().0) {
                    *value = bf16::from_le_bytes(*bytes).to_f32();
                }
            }
            Element::F16 => {
                for (value, bytes) in into.iter_mut().zip(bytes.as_chunks().0) {
                    *value = f16::from_le_bytes(*bytes).to_f32();
                }
            }
            Element::F32 => {
                for (value, bytes) in into.iter_mut().zip(bytes.as_chunks().0) {
                    *value = f32::from_le_bytes(*bytes);
                }
            }
        }
    }

    /// Some columns of a row as they are stored, where that is bf16 as this machine holds it.
    pub(crate) fn bf16(&self, row: usize, columns: Range<usize>) -> Option<&[u8]> {
        if self.element != Element::Bf16 || cfg!(target_endian = "big") {
            return None;
        }
        let start = (row * self.columns + columns.start) * 2;
        Some(&self.file[self.bytes.clone()][start..start + columns.len() * 2])
    }

    /// Gives back the memory some rows' pages take in this process.
    pub(crate) fn release(&self, rows: Range<usize>) {
        let row = self.columns * self.element.bytes();
        let start = self.bytes.start + rows.start * row;
        self.file.release(start..start + rows.len() * row);
    }

    /// All of one row.
    pub(crate) fn row(&self, row: usize) -> Vec<f32> {
        let mut values = vec![0.0; self.columns];
        self.read(row, 0..self.columns, &mut values);
        values
    }
}
