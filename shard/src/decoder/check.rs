//! Whether a batch makes sense for a model and a pool, so that no kernel need ask.

use std::ops::Range;

use lockstep_proto::{BlockId, Blocks, Position, TokenId, Tokens};
use thiserror::Error;

use super::{ChosenOnDevice, Decoder, Hidden};
use crate::batch::{BLOCK_SIZE, Batch, BatchSequence, FedRow};
use crate::kv::KvPool;

/// A batch that makes no sense.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BatchError {
    /// The sequences do not cover the rows once and in order.
    #[error("compute a batch of {rows} rows: its sequences cover {covered} in order")]
    Rows {
        /// Tokens there are.
        rows: usize,
        /// Rows the sequences name, up to the first out of order.
        covered: usize,
    },
    /// A token outside the vocabulary.
    #[error("compute token {token}: the vocabulary has {vocabulary} entries")]
    Token {
        /// The token.
        token: TokenId,
        /// Entries there are.
        vocabulary: u32,
    },
    /// A position the model does not have.
    #[error("compute {rows} tokens from position {}: the model has {positions} positions", .first.0)]
    Position {
        /// The first row's position.
        first: Position,
        /// Rows from there.
        rows: usize,
        /// Positions there are.
        positions: Tokens,
    },
    /// A block table that ends before the last row.
    #[error("compute {rows} tokens from position {}: the block table has {blocks} blocks of 16", .first.0)]
    Table {
        /// The first row's position.
        first: Position,
        /// Rows from there.
        rows: usize,
        /// Blocks there are.
        blocks: Blocks,
    },
    /// A block that is not in the pool.
    #[error("use KV block {block}: the pool has {blocks}")]
    Block {
        /// The block.
        block: BlockId,
        /// Blocks there are.
        blocks: Blocks,
    },
    /// Logits wanted of a row that is not there.
    #[error("return logits of row {row}: the batch has {rows} rows")]
    LogitRow {
        /// The row.
        row: usize,
        /// Rows there are.
        rows: usize,
    },
    /// Logits wanted of more rows than asked for them.
    #[error("return logits {} to {} of a batch: it asked for {rows}", .slice.start, .slice.end)]
    Slice {
        /// The slice.
        slice: Range<usize>,
        /// Rows that asked for logits.
        rows: usize,
    },
    /// A token of the step before that nobody has.
    #[error(
        "feed row {row} of a batch by row {chosen_in} of the step before: the device has {rows} of its rows"
    )]
    Fed {
        /// The row.
        row: usize,
        /// Where its token would be.
        chosen_in: usize,
        /// Rows there are.
        rows: usize,
    },
    /// A pool that was not made by this decoder.
    #[error("use a KV pool of {found} layers: the model has {expected}")]
    Pool {
        /// Layers of the pool.
        found: usize,
        /// Layers of the model.
        expected: usize,
    },
}

pub(super) fn check(decoder: &Decoder, batch: &Batch, kv: &KvPool) -> Result<(), BatchError> {
    let rows = batch.token_ids.len();
    let vocabulary = decoder.spec.vocabulary_size();
    if kv.layers.len() != decoder.layers.len() {
        return Err(BatchError::Pool { found: kv.layers.len(), expected: decoder.layers.len() });
    }
    let mut covered: usize = 0;
    for sequence in &batch.sequences {
        if sequence.first_row != covered || sequence.rows > rows - covered {
            return Err(BatchError::Rows { rows, covered });
        }
        covered += sequence.rows;
        check_sequence(decoder, sequence, kv)?;
    }
    if covered != rows {
        return Err(BatchError::Rows { rows, covered });
    }
    if let Some(token) = batch.token_ids.iter().find(|token| token.0 >= vocabulary) {
        return Err(BatchError::Token { token: *token, vocabulary });
    }
    match batch.logit_rows.iter().find(|row| **row >= rows) {
        Some(row) => Err(BatchError::LogitRow { row: *row, rows }),
        None => Ok(()),
    }
}

pub(super) fn check_fed(batch: &Batch, chosen: Option<ChosenOnDevice>) -> Result<(), BatchError> {
    let rows = chosen.map_or(0, |chosen| chosen.rows);
    let is_there = |fed: &FedRow| fed.chosen_in < rows && fed.row < batch.token_ids.len();
    match batch.fed.iter().find(|fed| !is_there(fed)) {
        Some(FedRow { row, chosen_in }) => Err(BatchError::Fed { row: *row, chosen_in: *chosen_in, rows }),
        None => Ok(()),
    }
}

pub(super) fn check_slice(hidden: &Hidden, slice: &Range<usize>) -> Result<(), BatchError> {
    let rows = hidden.len();
    if slice.start > slice.end || slice.end > rows {
        return Err(BatchError::Slice { slice: slice.clone(), rows });
    }
    Ok(())
}

fn check_sequence(decoder: &Decoder, sequence: &BatchSequence, kv: &KvPool) -> Result<(), BatchError> {
    let (first, rows) = (sequence.first_position, sequence.rows);
    let end = first.index().saturating_add(rows);
    let positions = decoder.spec.max_positions();
    if end > positions.len() {
        return Err(BatchError::Position { first, rows, positions });
    }
    let needed = Tokens::of_len(end).blocks_ceil(BLOCK_SIZE).len();
    let Some(used) = sequence.blocks.get(..needed) else {
        return Err(BatchError::Table { first, rows, blocks: Blocks::of_len(sequence.blocks.len()) });
    };
    match used.iter().find(|block| block.index() >= kv.blocks().len()) {
        Some(block) => Err(BatchError::Block { block: *block, blocks: kv.blocks() }),
        None => Ok(()),
    }
}
