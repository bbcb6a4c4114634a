//! Tokens that the step before chooses, put in their places on the device.

use candle_core::CudaDevice;
use candle_core::cuda_backend::cudarc::driver::CudaSlice;

use super::{ChosenOnDevice, Decoder};
use crate::batch::{Batch, FedRow};
use crate::ops::cuda::gpu::Gpu;
use crate::ops::cuda::kernel::Address;
use crate::ops::cuda::sampling::{FED, FeedParameters, feed_by};
use crate::ops::cuda::storage::{copy_of, of_slice};

/// A batch's tokens; where one is fed, what [`feed`] finds it by.
pub(super) fn token_words(batch: &Batch) -> Vec<u32> {
    let mut words: Vec<u32> = batch.token_ids.iter().map(|token| token.0).collect();
    for FedRow { row, chosen_in } in &batch.fed {
        if let Some(word) = words.get_mut(*row) {
            *word = FED | *chosen_in as u32;
        }
    }
    words
}

/// Starts to put fed tokens where their [words](token_words) are.
pub(super) fn feed(
    device: &CudaDevice,
    (batch, chosen): (&Batch, Option<ChosenOnDevice>),
    tokens: Address,
) -> candle_core::Result<()> {
    let Some(ChosenOnDevice { answers, rows: _ }) = chosen.filter(|_| !batch.fed.is_empty()) else {
        return Ok(());
    };
    let count = batch.token_ids.len() as u32;
    feed_by(&Gpu(device), &FeedParameters { tokens, before: Address(answers), count })
}

/// Tokens on a device, of a batch of which some are fed.
pub(super) struct FedTokens(CudaSlice<u32>);

impl FedTokens {
    /// Nothing where none is.
    pub(super) fn new(
        decoder: &Decoder,
        (batch, chosen): (&Batch, Option<ChosenOnDevice>),
    ) -> candle_core::Result<Option<Self>> {
        let Some(device) = decoder.target.gpu().filter(|_| !batch.fed.is_empty()) else { return Ok(None) };
        let tokens = copy_of(device, &token_words(batch))?;
        feed(device, (batch, chosen), of_slice(&tokens))?;
        Ok(Some(Self(tokens)))
    }

    /// Where they are.
    pub(super) fn address(&self) -> Address {
        of_slice(&self.0)
    }
}
