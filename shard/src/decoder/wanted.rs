//! Which rows of a batch go through the last layer to its end: those whose logits are wanted.

use lockstep_proto::Tokens;

use crate::batch::{Batch, BatchSequence};

/// What the last layer attends for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// No row.
    Nothing,
    /// Every row, in its order.
    Every,
    /// The wanted rows in the order wanted, as runs of neighbouring positions of one sequence each.
    Runs(Vec<BatchSequence>),
}

impl Wanted {
    /// Of a batch that was checked.
    pub(super) fn of(batch: &Batch) -> Self {
        let Batch { token_ids, sequences, logit_rows, fed: _ } = batch;
        if logit_rows.is_empty() {
            return Self::Nothing;
        }
        if logit_rows.iter().copied().eq(0..token_ids.len()) {
            return Self::Every;
        }
        let mut runs: Vec<BatchSequence> = Vec::new();
        let mut expected = None;
        for (place, row) in logit_rows.iter().enumerate() {
            let sequence = sequences.partition_point(|sequence| sequence.first_row + sequence.rows <= *row);
            match runs.last_mut() {
                Some(run) if expected == Some((sequence, *row)) => run.rows += 1,
                Some(_) | None => runs.extend(sequences.get(sequence).map(|of| run(of, place, *row))),
            }
            expected = Some((sequence, row + 1));
        }
        Self::Runs(runs)
    }
}

/// One row of `sequence`, which stands at `place` among the wanted ones.
fn run(sequence: &BatchSequence, place: usize, row: usize) -> BatchSequence {
    let BatchSequence { first_row, rows: _, first_position, blocks } = sequence;
    let first_position = first_position.advance(Tokens::of_len(row - first_row));
    BatchSequence { first_row: place, rows: 1, first_position, blocks: blocks.clone() }
}

#[cfg(test)]
mod tests {
    use lockstep_proto::{BlockId, Position, TokenId};

    use super::*;

    fn sequence(first_row: usize, rows: usize, first_position: u32) -> BatchSequence {
        let blocks = vec![BlockId(first_position)];
        BatchSequence { first_row, rows, first_position: Position(first_position), blocks }
    }

    fn wanted(logit_rows: &[usize]) -> Wanted {
        Wanted::of(&Batch {
            token_ids: vec![TokenId(0); 6],
            sequences: vec![sequence(0, 3, 10), sequence(3, 1, 20), sequence(4, 2, 30)],
            logit_rows: logit_rows.to_vec(),
            fed: Vec::new(),
        })
    }

    /// A run of `rows` from `place` on, at `position` of the sequence that began at `first`.
    fn run(place: usize, rows: usize, position: u32, first: u32) -> BatchSequence {
        BatchSequence { blocks: vec![BlockId(first)], ..sequence(place, rows, position) }
    }

    #[test]
    fn wanted_rows_are_runs_within_their_sequences() {
        assert_eq!(wanted(&[]), Wanted::Nothing);
        assert_eq!(wanted(&[0, 1, 2, 3, 4, 5]), Wanted::Every);
        let last_of_each = vec![run(0, 1, 12, 10), run(1, 1, 20, 20), run(2, 1, 31, 30)];
        assert_eq!(wanted(&[2, 3, 5]), Wanted::Runs(last_of_each));
        let joined = vec![run(0, 2, 11, 10), run(2, 1, 20, 20), run(3, 2, 30, 30)];
        assert_eq!(wanted(&[1, 2, 3, 4, 5]), Wanted::Runs(joined));
        let any_order = vec![run(0, 1, 31, 30), run(1, 1, 10, 10), run(2, 1, 10, 10)];
        assert_eq!(wanted(&[5, 0, 0]), Wanted::Runs(any_order));
    }
}
