//! What one forward pass computes: rows of tokens, and where each sequence's KV is.

use lockstep_proto::{BlockId, Position, TokenId, Tokens};

/// Tokens a KV block holds, and the tile in which attention walks a context.
pub const BLOCK_SIZE: Tokens = Tokens(16);

/// Tokens of several sequences, computed together. One row is one token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// (rows): the tokens, sequence after sequence.
    pub token_ids: Vec<TokenId>,
    /// The sequences, in the order of their rows; together they cover every row once.
    pub sequences: Vec<BatchSequence>,
    /// The rows whose logits are wanted, in the order wanted.
    pub logit_rows: Vec<usize>,
    /// Rows whose tokens nobody on the host knows yet.
    pub fed: Vec<FedRow>,
}

/// A row whose token is one that the step before chooses; what stands for it among the tokens means nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FedRow {
    /// Which row of the batch.
    pub row: usize,
    /// In which of the wanted rows of the step before it is chosen.
    pub chosen_in: usize,
}

/// One sequence's part of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchSequence {
    /// Its first row in the batch.
    pub first_row: usize,
    /// How many rows it has.
    pub rows: usize,
    /// The position of its first row's token; later rows follow. KV of all earlier positions was written.
    pub first_position: Position,
    /// Its whole block table, from position 0 on.
    pub blocks: Vec<BlockId>,
}

impl BatchSequence {
    /// Block and slot of each of its rows.
    pub(crate) fn slots(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let first = self.first_position.index();
        let size = BLOCK_SIZE.len();
        (first..first + self.rows)
            .map(move |position| (self.blocks[position / size].index(), position % size))
    }
}
