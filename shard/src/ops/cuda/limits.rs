//! What a GPU can do at most, for benchmarks to compare with: copying its memory, and multiplying matrices of bf16.

use std::time::Instant;

use candle_core::{CudaDevice, DType, Device, Result, Tensor, bail};

use crate::device::Target;

/// More than any cache of a GPU holds.
const COPIED: usize = 1 << 30;
/// Copies in a measurement.
const COPIES: usize = 16;
/// Rows and columns of the matrices.
const SIDE: usize = 8192;
/// Products in a measurement.
const PRODUCTS: usize = 16;

/// A GPU whose limits are measured.
pub struct GpuProbe {
    device: CudaDevice,
}

impl GpuProbe {
    /// Of the device of `target`.
    ///
    /// # Errors
    /// When it is no GPU.
    pub fn new(target: &Target) -> Result<Self> {
        match target.gpu() {
            Some(device) => Ok(Self { device: device.clone() }),
            None => bail!("measure a GPU: the model would be computed on the CPU; give --device cuda"),
        }
    }

    /// Bytes a second read and written while memory of the GPU is copied within it.
    ///
    /// # Errors
    /// When the GPU has no 2 GiB free, or fails.
    pub fn copied_bytes_per_second(&self) -> Result<f64> {
        let from = self.device.alloc_zeros::<u8>(COPIED)?;
        let mut to = self.device.alloc_zeros::<u8>(COPIED)?;
        self.device.memcpy_dtod(&from, &mut to)?;
        let seconds =
            self.seconds(|| (0..COPIES).try_for_each(|_| self.device.memcpy_dtod(&from, &mut to)))?;
        Ok((2 * COPIED * COPIES) as f64 / seconds)
    }

    /// Floating-point operations a second of large products of bf16 with sums of f32, two for each pair that is
    /// multiplied and added.
    ///
    /// # Errors
    /// When the GPU's memory is full, or it fails.
    pub fn bf16_operations_per_second(&self) -> Result<f64> {
        let device = Device::Cuda(self.device.clone());
        // Zeros draw less power than other numbers, and so are multiplied faster.
        let random = || Tensor::randn(0.0_f32, 1.0, (SIDE, SIDE), &device)?.to_dtype(DType::BF16);
        let (left, right) = (random()?, random()?);
        left.matmul(&right)?;
        let seconds = self.seconds(|| (0..PRODUCTS).try_for_each(|_| left.matmul(&right).map(drop)))?;
        Ok((2 * SIDE * SIDE * SIDE * PRODUCTS) as f64 / seconds)
    }

    fn seconds(&self, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
        let stream = self.device.cuda_stream();
        stream.synchronize().map_err(candle_core::Error::wrap)?;
        let begun = Instant::now();
        work()?;
        stream.synchronize().map_err(candle_core::Error::wrap)?;
        Ok(begun.elapsed().as_secs_f64())
    }
}
