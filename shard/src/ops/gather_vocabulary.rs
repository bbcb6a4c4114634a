//! Puts the ranks' slices of the vocabulary together into whole rows of logits.

use std::cell::Cell;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, bail};

use super::contiguous;
use crate::comm::{CommError, Communicator};

/// (rows, entries a rank) → (rows, vocabulary): slices in the order of ranks, without the last one's padding.
pub(crate) struct GatherVocabulary<'a> {
    communicator: &'a dyn Communicator,
    vocabulary: usize,
    /// Kept as it is, because candle's errors would hide which it was.
    failed: Cell<Option<CommError>>,
}

impl<'a> GatherVocabulary<'a> {
    pub(crate) fn over(communicator: &'a dyn Communicator, vocabulary: usize) -> Self {
        Self { communicator, vocabulary, failed: Cell::new(None) }
    }

    /// What the exchange failed with, after applying it did.
    pub(crate) fn into_failure(self) -> Option<CommError> {
        self.failed.into_inner()
    }
}

impl CustomOp1 for GatherVocabulary<'_> {
    fn name(&self) -> &'static str {
        "gather_vocabulary"
    }

    fn cpu_fwd(&self, mine: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, width) = layout.shape().dims2()?;
        let mine = contiguous::<f32>(mine, layout)?;
        let ranks = self.communicator.world_size() as usize;
        let mut all = vec![0.0; mine.len() * ranks];
        if let Err(error) = self.communicator.all_gather(mine, &mut all) {
            let message = error.to_string();
            self.failed.set(Some(error));
            bail!("{message}");
        }
        let mut output = Vec::with_capacity(rows * self.vocabulary);
        for row in 0..rows {
            let mut left = self.vocabulary;
            for rank in 0..ranks {
                let count = width.min(left);
                output.extend_from_slice(&all[(rank * rows + row) * width..][..count]);
                left -= count;
            }
        }
        Ok((CpuStorage::F32(output), Shape::from((rows, self.vocabulary))))
    }
}
