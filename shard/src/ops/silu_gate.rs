//! The gated activation between the two products of an MLP.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape};

use super::contiguous;
use super::cpu::isa::Isa;
use super::cpu::silu_gate::silu_gate;

/// (rows, 2 * width), gate first → (rows, width): `silu(gate) * up`.
pub(crate) struct SiluGate {
    pub(crate) isa: Isa,
}

impl CustomOp1 for SiluGate {
    fn name(&self) -> &'static str {
        "silu_gate"
    }

    fn cpu_fwd(&self, gate_up: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, both) = layout.shape().dims2()?;
        let mut output = vec![0.0; rows * (both / 2)];
        silu_gate(self.isa, both / 2, contiguous(gate_up, layout)?, &mut output);
        Ok((CpuStorage::F32(output), Shape::from((rows, both / 2))))
    }
}
