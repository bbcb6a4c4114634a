//! From a rank's product with the head to whole rows of logits, all of it on the device.

use std::cell::Cell;

use candle_core::cuda_backend::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, bail};

use super::exchange::gather_vocabulary;
use super::gpu::Gpu;
use super::rows::{LogitParameters, logit_transform};
use super::storage::address;
use crate::comm::{CommError, Communicator};

/// (rows, entries of a rank) → (rows, vocabulary): divided and bounded, and gathered from all ranks. The input's
/// values are changed as well: nobody reads them afterwards.
pub(crate) struct FinishLogits<'a> {
    communicator: &'a dyn Communicator,
    vocabulary: usize,
    divide_by: f32,
    softcap: Option<f32>,
    failed: Cell<Option<CommError>>,
}

impl<'a> FinishLogits<'a> {
    pub(crate) fn new(
        communicator: &'a dyn Communicator,
        vocabulary: usize,
        (divide_by, softcap): (f32, Option<f32>),
    ) -> Self {
        Self { communicator, vocabulary, divide_by, softcap, failed: Cell::new(None) }
    }

    /// What the exchange failed with, after applying it did.
    pub(crate) fn into_failure(self) -> Option<CommError> {
        self.failed.into_inner()
    }
}

impl CustomOp1 for FinishLogits<'_> {
    fn name(&self) -> &'static str {
        "finish_logits"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("finish logits on a device: they are in main memory")
    }

    fn cuda_fwd(&self, mine: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (rows, width) = layout.shape().dims2()?;
        if self.divide_by != 1.0 || self.softcap.is_some() {
            let call = LogitParameters {
                logits: address::<f32>(mine, layout)?,
                elements: (rows * width) as u64,
                divide_by: self.divide_by,
                cap: self.softcap.unwrap_or(0.0),
            };
            logit_transform(&Gpu(&mine.device), &call)?;
        }
        match gather_vocabulary(self.communicator, self.vocabulary, mine, layout)? {
            Ok(rows_of_all) => Ok((rows_of_all, Shape::from((rows, self.vocabulary)))),
            Err(error) => {
                let message = error.to_string();
                self.failed.set(Some(error));
                bail!("{message}")
            }
        }
    }
}
