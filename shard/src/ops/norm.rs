//! Norms of rows.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, bail};

use super::contiguous;
use super::cpu::isa::Isa;
use super::cpu::norm::{RowNorm, norm_rows};

/// What a row is divided by, and whether its mean is taken off first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// `x / sqrt(mean(x^2) + epsilon)`.
    RootMeanSquare,
    /// `(x - mean(x)) / sqrt(variance(x) + epsilon)`, the variance being the mean square of the differences.
    Layer,
}

/// (rows, width), parameters → (rows, width). The parameters are (1, width), the weights, or (2, width), the
/// weights and then the biases.
pub(crate) struct Norm {
    pub(crate) kind: NormKind,
    pub(crate) epsilon: f32,
    pub(crate) isa: Isa,
}

impl Norm {
    /// The norm of rows of `width` elements with these parameters.
    pub(super) fn of_rows<'a>(
        &self,
        width: usize,
        parameters: &'a CpuStorage,
        layout: &Layout,
    ) -> Result<RowNorm<'a>> {
        let (count, found) = layout.shape().dims2()?;
        if !(1..=2).contains(&count) || found != width || width == 0 {
            bail!("norm rows of {width} elements: the parameters are of shape {:?}", layout.shape());
        }
        let (weight, bias) = contiguous::<f32>(parameters, layout)?.split_at(width);
        let bias = (count == 2).then_some(bias);
        Ok(RowNorm { kind: self.kind, epsilon: self.epsilon, weight, bias })
    }
}

impl CustomOp2 for Norm {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn cpu_fwd(
        &self,
        input: &CpuStorage,
        input_layout: &Layout,
        parameters: &CpuStorage,
        parameters_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (_, width) = input_layout.shape().dims2()?;
        let rows = self.of_rows(width, parameters, parameters_layout)?;
        let input = contiguous::<f32>(input, input_layout)?;
        let mut normed = vec![0.0; input.len()];
        norm_rows(self.isa, rows, input, &mut normed);
        Ok((CpuStorage::F32(normed), input_layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        input: &CudaStorage,
        input_layout: &Layout,
        parameters: &CudaStorage,
        parameters_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        super::cuda::norm::forward(self, (input, input_layout), (parameters, parameters_layout))
    }
}
