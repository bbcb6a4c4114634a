//! Multiplies activations by a packed weight matrix.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, bail};

use super::contiguous;
use super::cpu::isa::Isa;
use super::cpu::linear::multiply;
use super::cpu::panels::Panels;

/// (rows, inputs) → (rows, outputs): a product with a packed matrix, each row's result independent of the
/// others.
#[derive(Clone)]
pub(crate) struct Linear {
    pub(crate) panels: Arc<Panels>,
    pub(crate) isa: Isa,
}

impl CustomOp1 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, input: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let shape = self.panels.shape();
        let (rows, inputs) = layout.shape().dims2()?;
        if inputs != shape.inputs {
            bail!("multiply rows of {inputs} elements by a matrix that takes {}", shape.inputs);
        }
        let mut output = vec![0.0; rows * shape.outputs];
        multiply(self.isa, &self.panels, contiguous(input, layout)?, &mut output);
        Ok((CpuStorage::F32(output), Shape::from((rows, shape.outputs))))
    }
}
