//! What the engine needs of a model; the decoder is one, tests bring others.

use std::error::Error;
use std::ops::Range;

use lockstep_proto::{Blocks, Bytes, Tokens};
use thiserror::Error;

use crate::batch::Batch;
use crate::sampling::{RowAsk, RowFound};

/// One rank's part of a model with its KV blocks.
pub trait Model {
    /// What a forward pass computes: the rows whose logits are wanted, before the logits.
    type Hidden;

    /// Logits of some of them.
    type Logits: LogitRows;

    /// Entries in a row of logits.
    fn vocabulary_size(&self) -> u32;

    /// Longest context its positions allow.
    fn max_positions(&self) -> Tokens;

    /// Tokens a KV block holds.
    fn block_size(&self) -> Tokens;

    /// Bytes one KV block takes on this rank.
    fn block_bytes(&self) -> Bytes;

    /// Bytes of weights on this rank.
    fn weight_bytes(&self) -> Bytes;

    /// Names the arithmetic: equal names mean bit-equal results.
    fn arithmetic(&self) -> String;

    /// Makes room for `blocks` KV blocks; what was there before is dropped.
    ///
    /// # Errors
    /// When there is not enough memory.
    fn allocate_kv(&mut self, blocks: Blocks) -> Result<(), ModelError>;

    /// How many rows of logits are computed at once, at least one; the same on every rank.
    fn logit_rows_at_once(&self) -> usize;

    /// Computes `batch` on this rank, together with the others, and writes its KV.
    ///
    /// # Errors
    /// When another rank is lost or a kernel fails. The rank is of no use afterwards.
    fn forward(&mut self, batch: &Batch) -> Result<Self::Hidden, ModelError>;

    /// The logits of the batch's wanted rows of a range, together with the other ranks, which ask for the same.
    ///
    /// # Errors
    /// When another rank is lost or a kernel fails. The rank is of no use afterwards.
    fn logits(&self, hidden: &Self::Hidden, rows: Range<usize>) -> Result<Self::Logits, ModelError>;
}

/// The logits of some rows.
pub trait LogitRows: Sync {
    /// What is found in each row, where the rows are not in main memory; nothing where they are, or are there
    /// afterwards.
    ///
    /// # Errors
    /// When the device they are on fails, or another rank is lost.
    fn ask(&mut self, _asks: &[RowAsk<'_>]) -> Result<Option<Vec<RowFound>>, ModelError> {
        Ok(None)
    }

    /// (vocabulary): of the range's `index`-th row.
    fn row(&self, index: usize) -> &[f32];
}

/// Why a model could not do what was asked.
#[derive(Debug, Error)]
#[error(transparent)]
pub struct ModelError(#[from] Box<dyn Error + Send + Sync>);

impl LogitRows for Vec<Vec<f32>> {
    fn row(&self, index: usize) -> &[f32] {
        &self[index]
    }
}
