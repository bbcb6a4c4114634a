//! Root mean square norm of rows.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape};

use super::contiguous;
use super::cpu::isa::Isa;
use super::cpu::rms_norm::{Norm, rms_norm};

/// (rows, width), weight (width) → (rows, width).
pub(crate) struct RmsNorm {
    pub(crate) epsilon: f32,
    pub(crate) isa: Isa,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn cpu_fwd(
        &self,
        input: &CpuStorage,
        input_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let norm = Norm { weight: contiguous(weight, weight_layout)?, epsilon: self.epsilon };
        let input = contiguous::<f32>(input, input_layout)?;
        let mut normed = vec![0.0; input.len()];
        rms_norm(self.isa, norm, input, &mut normed);
        Ok((CpuStorage::F32(normed), input_layout.shape().clone()))
    }
}
