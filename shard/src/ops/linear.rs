//! Multiplies activations by a packed weight matrix.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, bail};

use super::contiguous;
use super::cpu::isa::Isa;
use super::matrix::Matrix;

/// (rows, inputs) → (rows, outputs): a product with a packed matrix, each row's result independent of the
/// others.
#[derive(Clone)]
pub(crate) struct Linear {
    pub(crate) matrix: Arc<Matrix>,
    pub(crate) isa: Isa,
}

impl CustomOp1 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, input: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, inputs) = layout.shape().dims2()?;
        if inputs != self.matrix.inputs() {
            bail!("multiply rows of {inputs} elements by a matrix that takes {}", self.matrix.inputs());
        }
        let outputs = self.matrix.outputs();
        let mut output = vec![0.0; rows * outputs];
        self.matrix.multiply(self.isa, contiguous(input, layout)?, &mut output);
        Ok((CpuStorage::F32(output), Shape::from((rows, outputs))))
    }
}
