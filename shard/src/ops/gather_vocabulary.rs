//! Puts the ranks' slices of the vocabulary together into whole rows of logits.

use crate::comm::{CommError, Communicator};

/// (rows, entries a rank) → (rows, vocabulary): slices in the order of ranks, without the last one's padding. Where
/// one rank has all, nothing is moved: a step's logits may take as long to copy as a layer to compute.
///
/// # Errors
/// When the other ranks cannot be reached.
pub(crate) fn gather_vocabulary(
    communicator: &dyn Communicator,
    vocabulary: usize,
    mine: Vec<f32>,
    rows: usize,
) -> Result<Vec<f32>, CommError> {
    let ranks = communicator.world_size() as usize;
    if ranks == 1 && mine.len() == rows * vocabulary {
        return Ok(mine);
    }
    let width = mine.len() / rows.max(1);
    let mut all = vec![0.0; mine.len() * ranks];
    communicator.all_gather(&mine, &mut all)?;
    drop(mine);
    if rows == 1 {
        // The padding is at the end.
        all.truncate(vocabulary);
        return Ok(all);
    }
    let mut output = Vec::with_capacity(rows * vocabulary);
    for row in 0..rows {
        let mut left = vocabulary;
        for rank in 0..ranks {
            let count = width.min(left);
            output.extend_from_slice(&all[(rank * rows + row) * width..][..count]);
            left -= count;
        }
    }
    Ok(output)
}
