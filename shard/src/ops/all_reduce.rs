//! Sums a tensor over the ranks of the group, in place.

use std::cell::Cell;

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, InplaceOp1, Layout, Result, bail};

use super::contiguous_mut;
use crate::comm::{CommError, Communicator};

/// Replaces a tensor by its sum over all ranks.
pub(crate) struct AllReduce<'a> {
    communicator: &'a dyn Communicator,
    /// Kept as it is, because candle's errors would hide which it was.
    failed: Cell<Option<CommError>>,
}

impl<'a> AllReduce<'a> {
    pub(crate) fn over(communicator: &'a dyn Communicator) -> Self {
        Self { communicator, failed: Cell::new(None) }
    }

    /// What the exchange failed with, after applying it did.
    pub(crate) fn into_failure(self) -> Option<CommError> {
        self.failed.into_inner()
    }
}

impl InplaceOp1 for AllReduce<'_> {
    fn name(&self) -> &'static str {
        "all_reduce"
    }

    fn cpu_fwd(&self, values: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let outcome = self.communicator.all_reduce(contiguous_mut(values, layout)?);
        if let Err(error) = outcome {
            let message = error.to_string();
            self.failed.set(Some(error));
            bail!("{message}");
        }
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, values: &mut CudaStorage, layout: &Layout) -> Result<()> {
        let outcome = super::cuda::exchange::all_reduce(self.communicator, values, layout)?;
        if let Err(error) = outcome {
            let message = error.to_string();
            self.failed.set(Some(error));
            bail!("{message}");
        }
        Ok(())
    }
}
