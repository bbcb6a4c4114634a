//! How one expert's output comes back to its rows, which the host has decided on.

use candle_core::cuda_backend::CudaStorage;
use candle_core::{Layout, Result};

use crate::ops::cuda::gpu::Gpu;
use crate::ops::cuda::rows::{SpreadParameters, add_rows};
use crate::ops::cuda::storage::{address, copy_of, of_slice};

/// Adds each row of `source`, weighted, to its row of `target`; the rows were checked, and no two are alike.
pub(crate) fn add_forward(
    rows: &[(usize, f32)],
    (target, target_layout): (&CudaStorage, &Layout),
    (source, source_layout): (&CudaStorage, &Layout),
) -> Result<()> {
    let (_, width) = target_layout.shape().dims2()?;
    let device = &target.device;
    let numbers: Vec<u32> = rows.iter().map(|(row, _)| *row as u32).collect();
    let weights: Vec<f32> = rows.iter().map(|(_, weight)| *weight).collect();
    let (numbers, weights) = (copy_of(device, &numbers)?, copy_of(device, &weights)?);
    let call = SpreadParameters {
        target: address::<f32>(target, target_layout)?,
        source: address::<f32>(source, source_layout)?,
        rows: of_slice(&numbers),
        weights: of_slice(&weights),
        elements: (rows.len() * width) as u64,
        width: width as u32,
    };
    add_rows(&Gpu(device), &call)
}
