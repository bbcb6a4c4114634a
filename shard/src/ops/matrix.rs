//! Packed matrices of linear layers, whatever their weights are held in.

use super::cpu::isa::Isa;
use super::cpu::linear;
use super::cpu::panels::{PanelShape, Panels};
use super::cpu::quantized::{self, Columns, Format, QuantizedPanels};
use super::cpu::unwritten::{Unwritten, written};
use super::tiles::TileFormat;
use crate::device::DeviceKind;
use crate::dtype::Dtype;
#[cfg(feature = "cuda")]
use crate::ops::cuda::product::DeviceMatrix;

/// How a matrix is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    /// Element by element.
    Elements(Dtype),
    /// In groups with scales.
    Quantized(Format),
    /// In floating-point numbers of 8 bits with a scale for a row, which only GPUs multiply by.
    Float8,
}

impl Packing {
    /// Bytes a matrix takes on a device.
    pub(crate) fn bytes(self, shape: PanelShape, on: DeviceKind) -> usize {
        match (self, on) {
            (Self::Elements(dtype), DeviceKind::Cpu) => shape.bytes(dtype),
            (Self::Elements(dtype), DeviceKind::Cuda) => shape.outputs * shape.inputs * dtype.bytes(),
            (Self::Quantized(format), DeviceKind::Cpu) => format.bytes(shape),
            (Self::Quantized(format), DeviceKind::Cuda) => TileFormat::from(format).bytes(shape),
            (Self::Float8, _) => TileFormat::Float8.bytes(shape),
        }
    }
}

/// A packed matrix.
pub(crate) enum Packed {
    Elements(Panels),
    Quantized(QuantizedPanels),
}

impl Packed {
    pub(crate) fn shape(&self) -> PanelShape {
        match self {
            Self::Elements(panels) => panels.shape(),
            Self::Quantized(panels) => panels.shape(),
        }
    }
}

/// Matrices that take the same rows and whose columns stand beside each other.
pub(crate) struct Matrix {
    parts: Vec<Packed>,
    #[cfg(feature = "cuda")]
    on_device: Option<DeviceMatrix>,
}

impl Matrix {
    /// All of one inner dimension, the first for the first columns.
    ///
    /// # Errors
    /// When packing one fails.
    pub(crate) fn new<E>(parts: impl Iterator<Item = Result<Packed, E>>) -> Result<Self, E> {
        Ok(Self {
            parts: parts.collect::<Result<_, E>>()?,
            #[cfg(feature = "cuda")]
            on_device: None,
        })
    }

    /// Of a device.
    #[cfg(feature = "cuda")]
    pub(crate) fn of_device(matrix: DeviceMatrix) -> Self {
        Self { parts: Vec::new(), on_device: Some(matrix) }
    }

    /// It on its device, where it is on one.
    #[cfg(feature = "cuda")]
    pub(crate) fn on_device(&self) -> Option<&DeviceMatrix> {
        self.on_device.as_ref()
    }

    /// Length of the dot products.
    pub(crate) fn inputs(&self) -> usize {
        self.parts.first().map_or(0, |part| part.shape().inputs)
    }

    /// Columns of the product.
    pub(crate) fn outputs(&self) -> usize {
        self.parts.iter().map(|part| part.shape().outputs).sum()
    }

    /// Multiplies `input` (rows, inputs) into `output` (rows, outputs), all of which is written.
    pub(crate) fn multiply(&self, isa: Isa, input: &[f32], output: Unwritten<'_>) {
        let width = self.outputs();
        let mut first = 0;
        for part in &self.parts {
            let outputs = part.shape().outputs;
            match part {
                Packed::Elements(panels) if outputs == width => {
                    linear::multiply(isa, panels, input, output);
                }
                Packed::Elements(panels) => {
                    let count = output.len() / width.max(1) * outputs;
                    // SAFETY: the product writes every column of every row.
                    let columns =
                        unsafe { written(count, |columns| linear::multiply(isa, panels, input, columns)) };
                    for (row, columns) in columns.chunks_exact(outputs.max(1)).enumerate() {
                        // SAFETY: one thread writes one row after the other.
                        let part = unsafe { output.part(row * width + first, outputs) };
                        part.write_copy_of_slice(columns);
                    }
                }
                Packed::Quantized(panels) => {
                    quantized::multiply(isa, panels, input, Columns { values: output, width, first });
                }
            }
            first += outputs;
        }
    }
}
