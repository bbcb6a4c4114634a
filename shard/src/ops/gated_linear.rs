//! Multiplies activations by the gate and up matrices of an MLP at once, and gates what comes out.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, bail};

use super::activation::Activation;
use super::contiguous;
use super::cpu::isa::Isa;
use super::cpu::linear::multiply_gated;
use super::cpu::panels::Panels;
use super::cpu::unwritten::{Unwritten, written};

/// (rows, inputs) → (rows, width): `activation(gate) * up`, the same bits as of the product and the activation
/// one after the other.
pub(crate) struct GatedLinear {
    /// Its columns are gate and up in turn, a vector of each.
    pub(crate) panels: Arc<Panels>,
    pub(crate) activation: Activation,
    pub(crate) isa: Isa,
}

impl CustomOp1 for GatedLinear {
    fn name(&self) -> &'static str {
        "gated_linear"
    }

    fn cpu_fwd(&self, input: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let shape = self.panels.shape();
        let (rows, inputs) = layout.shape().dims2()?;
        if inputs != shape.inputs {
            bail!("multiply rows of {inputs} elements by matrices that take {}", shape.inputs);
        }
        let width = shape.outputs / 2;
        let input = contiguous(input, layout)?;
        let multiply = |output: Unwritten<'_>| {
            multiply_gated(self.isa, &self.panels, self.activation, input, output);
        };
        // SAFETY: the product writes every column of every row.
        let output = unsafe { written(rows * width, multiply) };
        Ok((CpuStorage::F32(output), Shape::from((rows, width))))
    }
}
