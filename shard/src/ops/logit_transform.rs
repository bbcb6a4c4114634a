//! Divides and bounds logits, in place.

use candle_core::{CpuStorage, InplaceOp1, Layout, Result};

use super::contiguous_mut;
use super::cpu::isa::Isa;
use super::cpu::logit_transform::transform;

/// (rows, vocabulary), in place: `y = x / divide_by`, then `cap * tanh(y / cap)` where there is a cap.
pub(crate) struct LogitTransform {
    pub(crate) divide_by: f32,
    /// What logits stay below, of either sign.
    pub(crate) softcap: Option<f32>,
    pub(crate) isa: Isa,
}

impl InplaceOp1 for LogitTransform {
    fn name(&self) -> &'static str {
        "logit_transform"
    }

    fn cpu_fwd(&self, logits: &mut CpuStorage, layout: &Layout) -> Result<()> {
        transform(self.isa, self.divide_by, self.softcap, contiguous_mut(logits, layout)?);
        Ok(())
    }
}
