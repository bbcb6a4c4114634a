//! Rows of logits on a device, and what is found in them there.

use std::sync::Arc;

use candle_core::{Device, Storage, Tensor};

use super::ForwardError;
use crate::comm::Communicator;
use crate::ops::cuda::sampling::Sampling;
use crate::sampling::{RowAsk, RowFound, on_device};

/// (rows, vocabulary) on a device, the same on every rank.
pub(super) struct DeviceLogits {
    pub(super) rows: Tensor,
    pub(super) communicator: Arc<dyn Communicator>,
}

impl DeviceLogits {
    /// What is found in each row, where the device can tell of all of them.
    pub(super) fn ask(&self, asks: &[RowAsk<'_>]) -> Result<Option<Vec<RowFound>>, ForwardError> {
        let Some(asked) = on_device::asks(asks) else { return Ok(None) };
        let Device::Cuda(device) = self.rows.device() else { return Ok(None) };
        let sampling = {
            let (storage, layout) = self.rows.storage_and_layout();
            let Storage::Cuda(storage) = &*storage else { return Ok(None) };
            Sampling::start(&asked, storage, layout)?
        };
        self.wait()?;
        Ok(Some(on_device::found(&sampling.answers(device)?)))
    }

    /// All of them.
    pub(super) fn on_host(&self) -> Result<Vec<f32>, ForwardError> {
        self.wait()?;
        Ok(self.rows.flatten_all()?.to_vec1()?)
    }

    /// A copy from the device would wait for a lost peer for ever.
    fn wait(&self) -> Result<(), ForwardError> {
        self.communicator.nccl().map_or(Ok(()), |nccl| nccl.wait().map_err(ForwardError::Comm))
    }
}
