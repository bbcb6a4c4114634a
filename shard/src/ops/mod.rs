//! The operators of the forward pass. One file each, with what every device needs of it: the CPU path calls
//! a kernel in [`cpu`], the one on GPUs one in `cuda`.

pub(crate) mod activation;
pub(crate) mod add_bias;
pub(crate) mod add_norm;
pub(crate) mod all_reduce;
pub(crate) mod attention;
pub(crate) mod attention_probe;
pub(crate) mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
pub(crate) mod experts;
pub(crate) mod gated_linear;
pub(crate) mod gather_vocabulary;
pub(crate) mod head_norm;
pub(crate) mod linear;
pub(crate) mod matrix;
pub(crate) mod norm;
pub(crate) mod placed;
pub(crate) mod projection_norm;
#[cfg(test)]
pub(crate) mod reference;
pub(crate) mod rope;
pub(crate) mod select_rows;
pub(crate) mod tiles;
pub(crate) mod write_heads;
pub(crate) mod write_kv;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, Layout, Result, WithDType, bail};

use crate::ops::cpu::kv_element::KvElement;

/// Counted up whenever a bit of any operator's results, or of weights quantized at load, becomes another: what a build
/// before it began is not gone on with then. Tests of attention and of quantized products fail where theirs do; of
/// other operators whoever changes them has to know.
pub(crate) const REVISION: u32 = 2;

/// The same of operators on GPUs, of which no test fails: whoever changes their order of sums has to know.
pub(crate) const GPU_REVISION: u32 = 5;

/// The elements of a contiguous tensor.
fn contiguous<'a, T: WithDType>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    let Some((first, end)) = layout.contiguous_offsets() else {
        bail!("read a tensor of shape {:?}: it is not contiguous", layout.shape())
    };
    Ok(&storage.as_slice::<T>()?[first..end])
}

/// The elements of a contiguous tensor, to be written.
fn contiguous_mut<'a, T: KvElement>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [T]> {
    let found = storage.dtype();
    let (Some((first, end)), Some(elements)) = (layout.contiguous_offsets(), T::elements_mut(storage))
    else {
        bail!(
            "write a tensor of shape {:?} and type {found:?}: not contiguous {:?}",
            layout.shape(),
            T::DTYPE
        )
    };
    Ok(&mut elements[first..end])
}
