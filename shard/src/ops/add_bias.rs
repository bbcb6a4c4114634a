//! Adds a product's bias, in place.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, InplaceOp2, Layout, Result, bail};

use super::cpu::add_bias::add_bias;
use super::{contiguous, contiguous_mut};

/// (rows, width), bias (width): adds the bias to every row.
pub(crate) struct AddBias;

impl InplaceOp2 for AddBias {
    fn name(&self) -> &'static str {
        "add_bias"
    }

    fn cpu_fwd(
        &self,
        rows: &mut CpuStorage,
        rows_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<()> {
        let (_, width) = rows_layout.shape().dims2()?;
        let bias = contiguous::<f32>(bias, bias_layout)?;
        if bias.len() != width {
            bail!("add a bias of {} elements to rows of {width}", bias.len());
        }
        add_bias(bias, contiguous_mut(rows, rows_layout)?);
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        rows: &mut CudaStorage,
        rows_layout: &Layout,
        bias: &CudaStorage,
        bias_layout: &Layout,
    ) -> Result<()> {
        super::cuda::rows::bias_forward((rows, rows_layout), (bias, bias_layout))
    }
}
