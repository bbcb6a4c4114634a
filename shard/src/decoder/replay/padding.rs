//! Batches of single tokens, padded to few sizes and few lengths of context.

use lockstep_proto::{BlockId, Position, TokenId};

use crate::batch::{BLOCK_SIZE, Batch, BatchSequence};

/// Rows of the largest batch that is padded.
pub(crate) const MOST_ROWS: usize = 256;

/// Positions of the shortest context that is told from longer ones.
const LEAST_CONTEXT: usize = 256;

/// A batch with as many rows as a recording has.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Padded {
    /// The rows that were asked for come first.
    pub(super) batch: Batch,
    /// Positions that no row sees more of: a power of two.
    pub(super) context: usize,
    /// The slot of rows of padding: nobody else's.
    pub(super) spare_slot: u32,
}

impl Padded {
    /// Of a batch in which each sequence has one row, all of which are wanted. Rows of padding are of the first position, in the
    /// block `spare`.
    pub(super) fn of(batch: &Batch, spare: BlockId) -> Option<Self> {
        let Batch { token_ids, sequences, logit_rows, fed } = batch;
        let asked = token_ids.len();
        let is_decoding = sequences.iter().all(|sequence| sequence.rows == 1);
        let all_are_wanted = logit_rows.iter().copied().eq(0..asked);
        if !is_decoding || !all_are_wanted || asked == 0 || asked > MOST_ROWS {
            return None;
        }
        let rows = padded_rows(asked);
        let longest = sequences.iter().map(|sequence| sequence.first_position.index() + 1).max()?;
        let padding = (asked..rows).map(|first_row| BatchSequence {
            first_row,
            rows: 1,
            first_position: Position(0),
            blocks: vec![spare],
        });
        let tokens = std::iter::repeat_n(TokenId(0), rows - asked);
        let batch = Batch {
            token_ids: token_ids.iter().copied().chain(tokens).collect(),
            sequences: sequences.iter().cloned().chain(padding).collect(),
            logit_rows: (0..rows).collect(),
            fed: fed.clone(),
        };
        let context = longest.next_power_of_two().max(LEAST_CONTEXT);
        Some(Self { batch, context, spare_slot: spare.0 * BLOCK_SIZE.len() as u32 })
    }
}

/// Few sizes, none much larger than what it is for.
fn padded_rows(rows: usize) -> usize {
    match rows {
        0..=2 => rows,
        3..=4 => 4,
        5..=64 => rows.next_multiple_of(8),
        _ => rows.next_multiple_of(16),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(first_row: usize, position: u32) -> BatchSequence {
        BatchSequence {
            first_row,
            rows: 1,
            first_position: Position(position),
            blocks: vec![BlockId(3), BlockId(5)],
        }
    }

    fn batch(positions: &[u32]) -> Batch {
        Batch {
            token_ids: positions.iter().map(|position| TokenId(position + 7)).collect(),
            sequences: positions.iter().enumerate().map(|(row, at)| sequence(row, *at)).collect(),
            logit_rows: (0..positions.len()).collect(),
            fed: Vec::new(),
        }
    }

    #[test]
    fn rows_are_added_in_a_block_nobody_has() {
        let padded = Padded::of(&batch(&[20, 0, 31]), BlockId(99)).unwrap();
        assert_eq!(padded.batch.token_ids, [27, 7, 38, 0].map(TokenId));
        assert_eq!(padded.batch.logit_rows, [0, 1, 2, 3]);
        assert_eq!(padded.batch.sequences[..3], batch(&[20, 0, 31]).sequences);
        let added = BatchSequence { blocks: vec![BlockId(99)], ..sequence(3, 0) };
        assert_eq!(padded.batch.sequences[3..], [added]);
    }

    #[test]
    fn contexts_are_told_apart_by_powers_of_two() {
        let context = |position| Padded::of(&batch(&[4, position]), BlockId(99)).unwrap().context;
        assert_eq!([0, 255, 256, 511, 512, 5000].map(context), [256, 256, 512, 512, 1024, 8192]);
    }

    #[test]
    fn sizes_are_few_and_close() {
        let sizes: std::collections::BTreeSet<usize> = (1..=MOST_ROWS).map(padded_rows).collect();
        assert_eq!(sizes.len(), 3 + 8 + 12);
        assert!((1..=MOST_ROWS).all(|rows| (rows..rows + 16).contains(&padded_rows(rows))));
        assert_eq!(padded_rows(MOST_ROWS), MOST_ROWS);
    }

    #[test]
    fn prompts_and_rows_that_nobody_wants_are_left_alone() {
        let decoding = batch(&[20, 1]);
        assert!(Padded::of(&decoding, BlockId(99)).is_some());
        assert_eq!(Padded::of(&Batch { logit_rows: vec![1], ..decoding.clone() }, BlockId(99)), None);
        assert_eq!(Padded::of(&Batch { logit_rows: vec![1, 0], ..decoding.clone() }, BlockId(99)), None);
        let mut chunk = decoding;
        chunk.sequences[1].rows = 2;
        chunk.token_ids.push(TokenId(1));
        chunk.logit_rows.push(2);
        assert_eq!(Padded::of(&chunk, BlockId(99)), None);
        let large = batch(&vec![5; MOST_ROWS + 1]);
        assert_eq!(Padded::of(&large, BlockId(99)), None);
    }
}
