//! Multiplies activations by a packed weight matrix.

use std::sync::Arc;

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Storage, Tensor, bail};

use super::contiguous;
use super::cpu::isa::Isa;
use super::cpu::unwritten::written;
use super::matrix::Matrix;

/// (rows, inputs) → (rows, outputs): a product with a packed matrix, each row's result independent of the
/// others.
#[derive(Clone)]
pub(crate) struct Linear {
    pub(crate) matrix: Arc<Matrix>,
    pub(crate) isa: Isa,
}

impl Linear {
    /// (rows, inputs) → (rows * outputs): as applying it, without a tensor around what comes out.
    pub(crate) fn product(&self, input: &Tensor) -> Result<Vec<f32>> {
        let (storage, layout) = input.storage_and_layout();
        match &*storage {
            Storage::Cpu(storage) => self.multiply(storage, layout).map(|(output, _)| output),
            Storage::Cuda(_) | Storage::Metal(_) => bail!("multiply rows: they are not in main memory"),
        }
    }

    /// Also how many rows there are.
    fn multiply(&self, input: &CpuStorage, layout: &Layout) -> Result<(Vec<f32>, usize)> {
        let (rows, inputs) = layout.shape().dims2()?;
        if inputs != self.matrix.inputs() {
            bail!("multiply rows of {inputs} elements by a matrix that takes {}", self.matrix.inputs());
        }
        let input = contiguous(input, layout)?;
        let count = rows * self.matrix.outputs();
        // SAFETY: the product writes every column of every row.
        let output = unsafe { written(count, |output| self.matrix.multiply(self.isa, input, output)) };
        Ok((output, rows))
    }
}

impl CustomOp1 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, input: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (output, rows) = self.multiply(input, layout)?;
        Ok((CpuStorage::F32(output), Shape::from((rows, self.matrix.outputs()))))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, input: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        match self.matrix.on_device() {
            Some(matrix) => matrix.forward(input, layout),
            None => bail!("multiply rows on a device: the matrix is packed for the CPU"),
        }
    }
}
