//! Rows from one place of a device to another.

use candle_core::cuda_backend::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, InplaceOp2, Layout, Result, Shape, bail};

use super::storage::{room, wrapped};

/// A copy of a tensor of f32, or its elements as the first of another.
pub(crate) struct Copy;

/// The elements of a contiguous tensor.
fn range(layout: &Layout) -> Result<std::ops::Range<usize>> {
    match layout.contiguous_offsets() {
        Some((first, end)) => Ok(first..end),
        None => bail!("copy a tensor of shape {:?}: it is not contiguous", layout.shape()),
    }
}

impl CustomOp1 for Copy {
    fn name(&self) -> &'static str {
        "copy"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("copy a tensor on a device: it is in main memory")
    }

    fn cuda_fwd(&self, source: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let source_slice = source.as_cuda_slice::<f32>()?.slice(range(layout)?);
        let mut copy = room::<f32>(&source.device, source_slice.len())?;
        source.device.memcpy_dtod(&source_slice, &mut copy)?;
        Ok((wrapped(copy, &source.device), layout.shape().clone()))
    }
}

impl InplaceOp2 for Copy {
    fn name(&self) -> &'static str {
        "copy_into"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<()> {
        bail!("copy a tensor on a device: it is in main memory")
    }

    fn cuda_fwd(
        &self,
        target: &mut CudaStorage,
        target_layout: &Layout,
        source: &CudaStorage,
        source_layout: &Layout,
    ) -> Result<()> {
        let source_slice = source.as_cuda_slice::<f32>()?.slice(range(source_layout)?);
        let (room, count) = (range(target_layout)?, source_slice.len());
        if room.len() < count {
            bail!("copy {count} elements: there is room for {}", room.len());
        }
        let mut part = target.as_cuda_slice_mut::<f32>()?.slice_mut(room.start..room.start + count);
        source.device.memcpy_dtod(&source_slice, &mut part)
    }
}
