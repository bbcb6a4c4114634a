//! Copies the rows that are wanted further on.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape};

use super::contiguous;

/// (rows, width) → (wanted rows, width), in the order wanted.
pub(crate) struct SelectRows<'a> {
    pub(crate) rows: &'a [usize],
}

impl CustomOp1 for SelectRows<'_> {
    fn name(&self) -> &'static str {
        "select_rows"
    }

    fn cpu_fwd(&self, input: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, width) = layout.shape().dims2()?;
        let input = contiguous::<f32>(input, layout)?;
        let mut output = Vec::with_capacity(self.rows.len() * width);
        for row in self.rows {
            output.extend_from_slice(&input[row * width..][..width]);
        }
        Ok((CpuStorage::F32(output), Shape::from((self.rows.len(), width))))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, input: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let rows: Vec<u32> = self.rows.iter().map(|row| *row as u32).collect();
        super::cuda::rows::pick_forward((&rows, 1.0), input, layout)
    }
}
