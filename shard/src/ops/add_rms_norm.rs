//! Adds a layer's output to the residual stream and norms the sum, in one pass over memory.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape};

use super::contiguous;
use super::cpu::isa::Isa;
use super::cpu::rms_norm::{Norm, add_rms_norm};

/// residual (rows, width), delta (rows, width), weight (width) → (2, rows, width): the sum, then its norm.
pub(crate) struct AddRmsNorm {
    pub(crate) epsilon: f32,
    pub(crate) isa: Isa,
}

impl CustomOp3 for AddRmsNorm {
    fn name(&self) -> &'static str {
        "add_rms_norm"
    }

    fn cpu_fwd(
        &self,
        residual: &CpuStorage,
        residual_layout: &Layout,
        delta: &CpuStorage,
        delta_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let norm = Norm { weight: contiguous(weight, weight_layout)?, epsilon: self.epsilon };
        let residual = contiguous::<f32>(residual, residual_layout)?;
        let delta = contiguous::<f32>(delta, delta_layout)?;
        let (rows, width) = residual_layout.shape().dims2()?;
        let mut output = vec![0.0; 2 * residual.len()];
        add_rms_norm(self.isa, norm, residual, delta, &mut output);
        Ok((CpuStorage::F32(output), Shape::from((2, rows, width))))
    }
}
