//! Adds a layer's output to the residual stream and norms the sum, in one pass over memory.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, bail};

use super::contiguous;
use super::cpu::isa::Isa;
use super::cpu::norm::{Sum, add_norm_rows};
use super::cpu::unwritten::{Unwritten, written};
use super::norm::{Norm, NormKind};

/// residual (rows, width), delta (rows, width), a [`Norm`]'s parameters → (2, rows, width):
/// `residual + delta_scale * delta`, then the norm of that. A scale of one changes no bit of the sum.
pub(crate) struct AddNorm {
    pub(crate) kind: NormKind,
    pub(crate) epsilon: f32,
    pub(crate) delta_scale: f32,
    pub(crate) isa: Isa,
}

impl CustomOp3 for AddNorm {
    fn name(&self) -> &'static str {
        "add_norm"
    }

    fn cpu_fwd(
        &self,
        residual: &CpuStorage,
        residual_layout: &Layout,
        delta: &CpuStorage,
        delta_layout: &Layout,
        parameters: &CpuStorage,
        parameters_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (rows, width) = residual_layout.shape().dims2()?;
        if delta_layout.shape() != residual_layout.shape() {
            let (delta, residual) = (delta_layout.shape(), residual_layout.shape());
            bail!("add a layer's output of shape {delta:?} to a residual stream of shape {residual:?}");
        }
        let norm = Norm { kind: self.kind, epsilon: self.epsilon, isa: self.isa };
        let norm = norm.of_rows(width, parameters, parameters_layout)?;
        let residual = contiguous::<f32>(residual, residual_layout)?;
        let delta = contiguous::<f32>(delta, delta_layout)?;
        let sum = Sum { residual, delta, delta_scale: self.delta_scale };
        let add = |output: Unwritten<'_>| add_norm_rows(self.isa, norm, sum, output);
        // SAFETY: sum and norm of every row are written.
        let output = unsafe { written(2 * residual.len(), add) };
        Ok((CpuStorage::F32(output), Shape::from((2, rows, width))))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        residual: &CudaStorage,
        residual_layout: &Layout,
        delta: &CudaStorage,
        delta_layout: &Layout,
        parameters: &CudaStorage,
        parameters_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let parameters = (parameters, parameters_layout);
        super::cuda::norm::add_forward(self, (residual, residual_layout), (delta, delta_layout), parameters)
    }
}
