//! Rows of logits on a device.

use std::sync::Arc;

use candle_core::Tensor;

use super::ForwardError;
use crate::comm::Communicator;

/// (rows, vocabulary) on a device, the same on every rank.
pub(super) struct DeviceLogits {
    pub(super) rows: Tensor,
    pub(super) communicator: Arc<dyn Communicator>,
}

impl DeviceLogits {
    /// All of them.
    pub(super) fn on_host(&self) -> Result<Vec<f32>, ForwardError> {
        self.wait()?;
        Ok(self.rows.flatten_all()?.to_vec1()?)
    }

    /// One of them.
    pub(super) fn row_on_host(&self, row: usize) -> Result<Vec<f32>, ForwardError> {
        self.wait()?;
        Ok(self.rows.get(row)?.to_vec1()?)
    }

    /// A copy from the device would wait for a lost peer for ever.
    fn wait(&self) -> Result<(), ForwardError> {
        self.communicator.nccl().map_or(Ok(()), |nccl| nccl.wait().map_err(ForwardError::Comm))
    }
}
