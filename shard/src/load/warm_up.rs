//! Computes the largest steps there are once, and leaves the device with the memory they take and no more.

use lockstep_proto::{BlockId, Blocks, Bytes, Position, TokenId, Tokens};

use super::{LoadError, Loaded, boxed};
use crate::batch::{BLOCK_SIZE, Batch, BatchSequence};
use crate::comm::Communicator;
use crate::decoder::MOST_ROWS;
use crate::device::memory_pool::MemoryPool;
use crate::device::{DeviceError, Target, gpus};
use crate::engine::{Model, ModelError};

/// A device's memory after that.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WarmedUp {
    /// Of the device's memory what no rank has.
    pub(crate) free: Bytes,
    /// All of it.
    pub(crate) total: Bytes,
    /// What this rank keeps for the values of a step.
    pub(crate) step: Bytes,
    /// What a recording has taken; none where nothing was recorded.
    pub(crate) recording: Option<Bytes>,
}

/// Computes a step of `rows` tokens, and the largest recording where steps are recorded. Every rank of the group does.
///
/// What a step takes stays in this process's pool, so that later steps find it there; the blocks they were computed over,
/// and what loading has left, go back to the device, of which KV blocks take other, larger pieces. Ranks that share a GPU
/// have a pool each: what is free is what none of them has, once all have given back.
///
/// # Errors
/// When a step cannot be computed, or a rank is lost.
pub(crate) fn warm_up(
    loaded: &mut Loaded,
    (target, comm): (&Target, &dyn Communicator),
    rows: Tokens,
) -> Result<WarmedUp, LoadError> {
    let Some(device) = target.gpu() else { return Err(LoadError::Device(DeviceError::NotBuilt)) };
    let warm_up_failed = |source| LoadError::WarmUp { source };
    let pool = MemoryPool::of(device)?;
    pool.give_back_all_but(Bytes(0))?;
    let before = pool.reserved()?;
    compute(loaded, &prompts(loaded, rows)).map_err(warm_up_failed)?;
    let (unrecorded, _) = gpus::memory(device)?;
    if target.records {
        record(loaded, rows).map_err(warm_up_failed)?;
    }
    let (recorded, _) = gpus::memory(device)?;
    let kv = loaded.kv.take();
    let is_recorded = kv.as_ref().is_some_and(|kv| kv.replays() > 0);
    // One more is nobody's.
    let blocks = kv.as_ref().map_or(0, |kv| u64::from(kv.blocks().0) + 1);
    let kept = pool.reserved()?.saturating_sub(Bytes(loaded.block_bytes().0.saturating_mul(blocks)));
    drop(kv);
    pool.give_back_all_but(kept)?;
    // All ranks record, or none.
    let mut with_recordings = [if is_recorded { 1.0 } else { 0.0 }];
    comm.all_reduce(&mut with_recordings)?;
    if with_recordings[0] < comm.world_size() as f32 {
        loaded.decoder.record_nothing();
    }
    let (free, total) = gpus::memory(device)?;
    Ok(WarmedUp {
        free: Bytes(free),
        total: Bytes(total),
        step: kept.saturating_sub(before),
        recording: is_recorded.then_some(Bytes(unrecorded.saturating_sub(recorded))),
    })
}

/// Computes a batch. The blocks it is in are given back.
fn compute(loaded: &mut Loaded, batch: &Batch) -> Result<(), ModelError> {
    let tables = batch.sequences.iter().flat_map(|sequence| &sequence.blocks);
    let blocks = tables.map(|block| block.0 + 1).max().unwrap_or(0);
    if loaded.kv.as_ref().is_none_or(|kv| kv.blocks() != Blocks(blocks)) {
        loaded.allocate_kv(Blocks(blocks))?;
    }
    let hidden = loaded.forward(batch, None)?;
    let rows = loaded.logit_rows_at_once().min(hidden.len());
    let logits = loaded.logits(&hidden, 0..rows)?;
    logits.on_host().map(|_| ()).map_err(boxed)
}

/// Records the largest step that only decodes, and replays it: its memory is taken then.
fn record(loaded: &mut Loaded, rows: Tokens) -> Result<(), ModelError> {
    let batch = decoding(loaded, rows);
    // The first time it is run.
    (0..2).try_for_each(|_| compute(loaded, &batch))
}

/// A step of so many tokens, of contexts as long as the model allows.
fn prompts(loaded: &Loaded, rows: Tokens) -> Batch {
    let longest = loaded.max_positions().min(rows);
    let sequence = |first_row: usize| BatchSequence {
        first_row,
        rows: longest.len().min(rows.len() - first_row),
        first_position: Position(0),
        blocks: blocks_of(longest),
    };
    Batch {
        token_ids: vec![TokenId(0); rows.len()],
        sequences: (0..rows.len()).step_by(longest.len().max(1)).map(sequence).collect(),
        logit_rows: (0..loaded.logit_rows_at_once().min(rows.len())).collect(),
        fed: Vec::new(),
    }
}

/// A step that goes on with as many contexts of such lengths as there are recordings for.
fn decoding(loaded: &Loaded, rows: Tokens) -> Batch {
    let longest = loaded.max_positions().min(rows);
    let count = rows.len().min(MOST_ROWS);
    let sequence = |first_row: usize| BatchSequence {
        first_row,
        rows: 1,
        first_position: Position(longest.0.saturating_sub(1)),
        blocks: blocks_of(longest),
    };
    Batch {
        token_ids: vec![TokenId(0); count],
        sequences: (0..count).map(sequence).collect(),
        logit_rows: (0..count).collect(),
        fed: Vec::new(),
    }
}

/// The same blocks for every sequence: nobody reads what comes out.
fn blocks_of(context: Tokens) -> Vec<BlockId> {
    (0..context.blocks_ceil(BLOCK_SIZE).0).map(BlockId).collect()
}
