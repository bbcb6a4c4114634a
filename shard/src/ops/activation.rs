//! The activation between the products of an MLP, with or without a gate.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, InplaceOp1, Layout, Result, Shape, bail};

use super::cpu::activation::{activate, gate};
use super::cpu::isa::Isa;
use super::cpu::unwritten::{Unwritten, written};
use super::{contiguous, contiguous_mut};

/// A function of every element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + e^-x)`.
    Silu,
    /// `0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`.
    GeluTanh,
}

/// (rows, 2 * width), gate first → (rows, width): `activation(gate) * up`.
pub(crate) struct GatedActivation {
    pub(crate) activation: Activation,
    pub(crate) isa: Isa,
}

impl CustomOp1 for GatedActivation {
    fn name(&self) -> &'static str {
        "gated_activation"
    }

    fn cpu_fwd(&self, gate_up: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, both) = layout.shape().dims2()?;
        if !both.is_multiple_of(2) {
            bail!("activate rows of {both} elements: they are no gate and up of one width");
        }
        let (width, gate_up) = (both / 2, contiguous(gate_up, layout)?);
        let gated = |output: Unwritten<'_>| gate(self.isa, self.activation, width, gate_up, output);
        // SAFETY: every element of every row is gated.
        let output = unsafe { written(rows * width, gated) };
        Ok((CpuStorage::F32(output), Shape::from((rows, both / 2))))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, gate_up: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        super::cuda::rows::gate_forward(self.activation, gate_up, layout)
    }
}

/// (rows, width), in place: `activation(x)`.
pub(crate) struct PlainActivation {
    pub(crate) activation: Activation,
    pub(crate) isa: Isa,
}

impl InplaceOp1 for PlainActivation {
    fn name(&self) -> &'static str {
        "plain_activation"
    }

    fn cpu_fwd(&self, values: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (_, width) = layout.shape().dims2()?;
        activate(self.isa, self.activation, width, contiguous_mut(values, layout)?);
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, values: &mut CudaStorage, layout: &Layout) -> Result<()> {
        super::cuda::rows::activate_forward(self.activation, values, layout)
    }
}
