//! Multiplies activations by the gate and up matrices of an MLP at once, and gates what comes out.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, bail};

use super::activation::Activation;
use super::contiguous;
use super::cpu::isa::Isa;
use super::cpu::linear::multiply_gated;
use super::cpu::panels::Panels;
use super::cpu::unwritten::{Unwritten, written};
#[cfg(feature = "cuda")]
use super::cuda::product::DeviceGate;

/// (rows, inputs) → (rows, width): `activation(gate) * up`, the same bits as of the product and the activation
/// one after the other.
pub(crate) struct GatedLinear {
    /// Columns of both in turn, a vector of each; absent where they are on a device.
    panels: Option<Panels>,
    #[cfg(feature = "cuda")]
    on_device: Option<DeviceGate>,
    activation: Activation,
    isa: Isa,
}

impl GatedLinear {
    /// Columns of gate and up in turn, a vector of each.
    pub(crate) fn new(panels: Panels, activation: Activation, isa: Isa) -> Self {
        Self {
            panels: Some(panels),
            #[cfg(feature = "cuda")]
            on_device: None,
            activation,
            isa,
        }
    }

    /// Of a device.
    #[cfg(feature = "cuda")]
    pub(crate) fn of_device(gate: DeviceGate, activation: Activation, isa: Isa) -> Self {
        Self { panels: None, on_device: Some(gate), activation, isa }
    }
}

impl CustomOp1 for GatedLinear {
    fn name(&self) -> &'static str {
        "gated_linear"
    }

    fn cpu_fwd(&self, input: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let Some(panels) = &self.panels else {
            bail!("multiply rows in main memory: the matrix is on a device")
        };
        let shape = panels.shape();
        let (rows, inputs) = layout.shape().dims2()?;
        if inputs != shape.inputs {
            bail!("multiply rows of {inputs} elements by matrices that take {}", shape.inputs);
        }
        let width = shape.outputs / 2;
        let input = contiguous(input, layout)?;
        let multiply = |output: Unwritten<'_>| {
            multiply_gated(self.isa, panels, self.activation, input, output);
        };
        // SAFETY: the product writes every column of every row.
        let output = unsafe { written(rows * width, multiply) };
        Ok((CpuStorage::F32(output), Shape::from((rows, width))))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, input: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        match &self.on_device {
            Some(gate) => gate.forward(self.activation, input, layout),
            None => bail!("multiply rows on a device: the matrix is packed for the CPU"),
        }
    }
}
