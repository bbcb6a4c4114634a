//! One stored tensor, read row by row.

use std::ops::Range;
use std::sync::Arc;

use candle_core::quantized::GgmlDType;
use half::{bf16, f16};
use lockstep_models::FileBytes;
use lockstep_models::gguf::{ElementType, RowOrder};
use safetensors::Dtype as StoredDtype;

use super::{blocks, packed_blocks};
use crate::dtype::Dtype;
use crate::ops::cpu::quantized::Group;

/// The element types that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    Bf16,
    F16,
    F32,
    /// Packed into blocks, with scales of their own.
    Blocks(GgmlDType),
}

impl Element {
    pub(crate) fn of(dtype: StoredDtype) -> Option<Self> {
        [(StoredDtype::BF16, Self::Bf16), (StoredDtype::F16, Self::F16), (StoredDtype::F32, Self::F32)]
            .into_iter()
            .find_map(|(candidate, element)| (candidate == dtype).then_some(element))
    }

    pub(crate) fn of_gguf(element: ElementType) -> Self {
        match element {
            ElementType::F32 => Self::F32,
            ElementType::F16 => Self::F16,
            ElementType::Bf16 => Self::Bf16,
            ElementType::Q4_0 => Self::Blocks(GgmlDType::Q4_0),
            ElementType::Q4_1 => Self::Blocks(GgmlDType::Q4_1),
            ElementType::Q5_0 => Self::Blocks(GgmlDType::Q5_0),
            ElementType::Q5_1 => Self::Blocks(GgmlDType::Q5_1),
            ElementType::Q8_0 => Self::Blocks(GgmlDType::Q8_0),
            ElementType::Q2K => Self::Blocks(GgmlDType::Q2K),
            ElementType::Q3K => Self::Blocks(GgmlDType::Q3K),
            ElementType::Q4K => Self::Blocks(GgmlDType::Q4K),
            ElementType::Q5K => Self::Blocks(GgmlDType::Q5K),
            ElementType::Q6K => Self::Blocks(GgmlDType::Q6K),
        }
    }

    /// Bytes that so many elements take: whole blocks of them.
    fn bytes(self, elements: usize) -> usize {
        match self {
            Self::Bf16 | Self::F16 => elements * 2,
            Self::F32 => elements * 4,
            Self::Blocks(dtype) => elements / dtype.block_size() * dtype.type_size(),
        }
    }
}

/// A tensor where it lies in its file: (rows, columns), or (columns) as one row.
#[derive(Clone)]
pub(crate) struct StoredTensor {
    file: Arc<FileBytes>,
    bytes: Range<usize>,
    element: Element,
    shape: TensorShape,
    order: RowOrder,
}

/// How a tensor's elements are counted.
#[derive(Clone, Copy)]
enum TensorShape {
    Rows { columns: usize },
    Vector { length: usize },
}

impl StoredTensor {
    /// `bytes` of `file` hold a tensor of `shape`: its header was checked to say so. `order` says how its rows
    /// lie, or where it has none, its elements.
    pub(crate) fn new(
        file: Arc<FileBytes>,
        bytes: Range<usize>,
        element: Element,
        shape: &[usize],
        order: RowOrder,
    ) -> Self {
        let shape = match shape {
            [length] => TensorShape::Vector { length: *length },
            [.., columns] => TensorShape::Rows { columns: *columns },
            [] => TensorShape::Vector { length: 1 },
        };
        Self { file, bytes, element, shape, order }
    }

    /// Widens some columns of a row, exactly, into `into`, which is as long as they are many.
    pub(crate) fn read(&self, row: usize, columns: Range<usize>, into: &mut [f32]) {
        match (self.shape, self.order) {
            (TensorShape::Rows { .. }, order) => self.read_stored(order.stored(row), columns, into),
            (TensorShape::Vector { .. }, RowOrder::Same) => self.read_stored(0, columns, into),
            (TensorShape::Vector { length }, order @ RowOrder::AdjacentPairs { .. }) => {
                let mut stored = vec![0.0; length];
                self.read_stored(0, 0..length, &mut stored);
                for (value, column) in into.iter_mut().zip(columns) {
                    *value = stored[order.stored(column)];
                }
            }
        }
    }

    /// Some columns of a row as they are stored, where that is in 16 bits of this type, as this machine holds them.
    pub(crate) fn stored(&self, dtype: Dtype, row: usize, columns: Range<usize>) -> Option<&[u8]> {
        let of_16_bits = match dtype {
            Dtype::Bfloat16 => self.element == Element::Bf16,
            Dtype::Float16 => self.element == Element::F16,
            Dtype::Float32 => false,
        };
        if !of_16_bits || cfg!(target_endian = "big") {
            return None;
        }
        let row = match (self.shape, self.order) {
            (TensorShape::Rows { .. }, order) => order.stored(row),
            (TensorShape::Vector { .. }, RowOrder::Same) => 0,
            (TensorShape::Vector { .. }, RowOrder::AdjacentPairs { .. }) => return None,
        };
        let start = (row * self.columns() + columns.start) * 2;
        Some(&self.file[self.bytes.clone()][start..start + columns.len() * 2])
    }

    /// Writes the group that begins at `column` of a row, where the tensor holds blocks of a type that has groups.
    pub(crate) fn read_group(&self, row: usize, column: usize, group: Group<'_>) {
        let Element::Blocks(dtype) = self.element else { return };
        let length = self.element.bytes(self.columns());
        let row = &self.file[self.bytes.clone()][self.order.stored(row) * length..][..length];
        packed_blocks::read_group(dtype, row, column, group);
    }

    /// Has some rows read from disk, where they are not in memory.
    pub(crate) fn prefetch(&self, rows: Range<usize>) {
        self.file.prefetch(self.bytes_of(rows));
    }

    /// Gives back the memory some rows' pages take in this process. Rows that lie in another order do so within
    /// heads, of which a rank has whole ones.
    pub(crate) fn release(&self, rows: Range<usize>) {
        self.file.release(self.bytes_of(rows));
    }

    fn bytes_of(&self, rows: Range<usize>) -> Range<usize> {
        let row = self.element.bytes(self.columns());
        let start = self.bytes.start + rows.start * row;
        start..start + rows.len() * row
    }

    /// All of one row.
    pub(crate) fn row(&self, row: usize) -> Vec<f32> {
        let columns = self.columns();
        let mut values = vec![0.0; columns];
        self.read(row, 0..columns, &mut values);
        values
    }

    fn columns(&self) -> usize {
        match self.shape {
            TensorShape::Rows { columns } => columns,
            TensorShape::Vector { length } => length,
        }
    }

    /// Some columns of the row that lies at `row`.
    fn read_stored(&self, row: usize, columns: Range<usize>, into: &mut [f32]) {
        let length = self.element.bytes(self.columns());
        let row = &self.file[self.bytes.clone()][row * length..][..length];
        let plain = |size: usize| &row[columns.start * size..columns.end * size];
        // Files carry no alignment: elements are put together from their bytes.
        match self.element {
            Element::Bf16 => {
                for (value, bytes) in into.iter_mut().zip(plain(2).as_chunks().0) {
                    *value = bf16::from_le_bytes(*bytes).to_f32();
                }
            }
            Element::F16 => {
                for (value, bytes) in into.iter_mut().zip(plain(2).as_chunks().0) {
                    *value = f16::from_le_bytes(*bytes).to_f32();
                }
            }
            Element::F32 => {
                for (value, bytes) in into.iter_mut().zip(plain(4).as_chunks().0) {
                    *value = f32::from_le_bytes(*bytes);
                }
            }
            Element::Blocks(dtype) => blocks::read(dtype, row, columns, into),
        }
    }
}
