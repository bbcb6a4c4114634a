//! What the engine needs of a model; the decoder is one, tests bring others.

use std::error::Error;
use std::ops::Range;

use lockstep_proto::{Blocks, Bytes, Tokens};
use thiserror::Error;

use crate::batch::Batch;
use crate::sampling::{RowAsk, RowFound};

/// One rank's part of a model with its KV blocks.
///
/// A step is [`forward`](Self::forward), then [`ask`](Self::ask). Where that answers, on its device, the answers are
/// fetched by [`answers`](Self::answers), maybe after the next step was begun; where it does not, the rows of
/// [`logits`](Self::logits) are looked at on the host.
pub trait Model {
    /// What a forward pass computes: the rows whose logits are wanted, before the logits.
    type Hidden;

    /// Logits of some of them.
    type Logits: LogitRows;

    /// Answers on their way from a device. At most two steps have some at a time.
    type Asked;

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

    /// Whether logits may be no numbers although nothing is broken: where something that is computed is held in 16 bits whose
    /// exponent is no f32's.
    fn may_overflow(&self) -> bool {
        false
    }

    /// Whether a step is only started by what is called for it, so that another may be started behind it.
    fn is_asynchronous(&self) -> bool {
        false
    }

    /// Computes `batch` on this rank, together with the others, and writes its KV. Tokens that are fed are among the answers
    /// `before` of the step before.
    ///
    /// # Errors
    /// When another rank is lost or a kernel fails. The rank is of no use afterwards.
    fn forward(&mut self, batch: &Batch, before: Option<&Self::Asked>) -> Result<Self::Hidden, ModelError>;

    /// Starts to find what is asked of each wanted row, together with the other ranks, which ask the same; nothing where
    /// that is for the host to find in [`Self::logits`]. What is fed is among the answers `before`.
    ///
    /// # Errors
    /// When another rank is lost or a kernel fails. The rank is of no use afterwards.
    fn ask(
        &mut self,
        _hidden: &Self::Hidden,
        _asks: &[RowAsk<'_>],
        _before: Option<&Self::Asked>,
    ) -> Result<Option<Self::Asked>, ModelError> {
        Ok(None)
    }

    /// Whether [`Self::answers`] has nothing to wait for.
    ///
    /// # Errors
    /// When another rank is lost or the device has failed.
    fn is_answered(&mut self, _asked: &Self::Asked) -> Result<bool, ModelError> {
        Ok(true)
    }

    /// Waits for the answers, one an ask.
    ///
    /// # Errors
    /// When another rank is lost or the device has failed.
    fn answers(&mut self, _asked: Self::Asked) -> Result<Vec<RowAnswer>, ModelError> {
        Ok(Vec::new())
    }

    /// The logits of the batch's wanted rows of a range, together with the other ranks, which ask for the same.
    ///
    /// # Errors
    /// When another rank is lost or a kernel fails. The rank is of no use afterwards.
    fn logits(&self, hidden: &Self::Hidden, rows: Range<usize>) -> Result<Self::Logits, ModelError>;
}

/// What a device says of a row.
#[derive(Clone, Debug)]
pub enum RowAnswer {
    /// What was asked, the same on every rank.
    Found(RowFound),
    /// It cannot tell, and these are the row's logits: (vocabulary). On rank 0.
    Logits(Vec<f32>),
    /// It cannot tell, and rank 0 has the logits.
    LeftToRank0,
}

/// What nobody has asked: of models that are not on a device.
#[derive(Clone, Copy, Debug)]
pub enum NeverAsked {}

/// The logits of some rows, in main memory.
pub trait LogitRows: Sync {
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
