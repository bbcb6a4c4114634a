//! What of a GPU's memory is for KV blocks, which is found out by computing the largest step there is.

use lockstep_proto::{BlockId, Blocks, Bytes, Position, TokenId, Tokens};
use tracing::info;

use super::{LoadError, Loaded, boxed};
use crate::batch::{BLOCK_SIZE, Batch, BatchSequence};
use crate::comm::Communicator;
use crate::config::Config;
use crate::decoder::{LoadError as WeightsError, MOST_ROWS, ModelSpec, Split};
use crate::device::{DeviceError, DeviceKind, Target, gpus};
use crate::engine::{Model, ModelError};
use crate::ops::cuda::attention::SCRATCH;
use crate::ops::cuda::recording::MOST_KEPT;
use crate::plan::MemoryPlan;

/// Allowed for what the driver keeps of a recording beside the memory it computes in. What that is on a card is not known
/// yet.
const EACH_RECORDING: Bytes = Bytes(4 << 20);

/// Left to what the driver and its libraries take later, and to attention over contexts longer than a step's, which may take
/// scratch memory inside recordings and outside.
const MARGIN: Bytes = Bytes((512 << 20) + 2 * SCRATCH as u64);

/// Whether the weights, which are not loaded yet, may fit.
pub(super) fn check_weights_fit(
    config: &Config,
    target: &Target,
    spec: &ModelSpec,
) -> Result<(), LoadError> {
    let Some(device) = target.gpu() else { return Ok(()) };
    let membership = config.joining.membership;
    let split = Split { rank: membership.rank(), world_size: membership.world_size() };
    let plan =
        MemoryPlan::of(spec, (config.precision, DeviceKind::Cuda), split).map_err(WeightsError::Split)?;
    let (free, total) = gpus::memory(device)?;
    let (weights, free, total) = (plan.weights, Bytes(free), Bytes(total));
    if weights > free { Err(LoadError::NoRoomForWeights { weights, free, total }) } else { Ok(()) }
}

/// Memory for KV blocks: this rank's share of what nobody has after a large step was computed once, less a margin;
/// what was asked for where that is less. Every rank of the group computes the step, so that all have their weights.
pub(super) fn budget_on_device(
    loaded: &mut Loaded,
    (target, comm): (&Target, &dyn Communicator),
    config: &Config,
) -> Result<Bytes, LoadError> {
    let Some(device) = target.gpu() else { return Err(LoadError::Device(DeviceError::NotBuilt)) };
    let rows = config.kv_cache.largest_step;
    let warm_up_failed = |source| LoadError::WarmUp { source };
    compute(loaded, &prompts(loaded, rows)).map_err(warm_up_failed)?;
    let (before, _) = gpus::memory(device)?;
    let to_come = if target.records { record(loaded, rows).map_err(warm_up_failed)? } else { Bytes(0) };
    // All ranks record, or none.
    let mut with_recordings = [if to_come > Bytes(0) { 1.0 } else { 0.0 }];
    comm.all_reduce(&mut with_recordings)?;
    if with_recordings[0] < comm.world_size() as f32 {
        loaded.decoder.record_nothing();
    }
    loaded.kv = None;
    let (free, total) = gpus::memory(device)?;
    let ranks = u64::from(config.device.ranks_per_gpu);
    // Beside the blocks each rank has one that is nobody's.
    let kept = MARGIN + Bytes((to_come + loaded.block_bytes()).0.saturating_mul(ranks));
    let free_for_kv = Bytes(free).saturating_sub(kept).0 / ranks;
    let budget = Bytes(free_for_kv).min(config.kv_cache.budget);
    let (name, architecture) = gpus::name(device)?;
    info!(
        rank = config.joining.membership.rank().0,
        gpu = name,
        architecture,
        total = %Bytes(total),
        weights = %loaded.weight_bytes(),
        recordings = %(Bytes(before).saturating_sub(Bytes(free)) + to_come),
        free = %Bytes(free),
        kv_cache = %budget,
        "memory of the GPU, after a step of {rows} tokens",
    );
    if budget < loaded.block_bytes() {
        let (free, total, block) = (Bytes(free), Bytes(total), loaded.block_bytes());
        return Err(LoadError::NoRoom { free, total, rows, kept, block });
    }
    Ok(budget)
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

/// Records the largest step that only decodes, and replays it: its memory is taken then. Returns what is not, of others
/// that will be recorded.
fn record(loaded: &mut Loaded, rows: Tokens) -> Result<Bytes, ModelError> {
    let batch = decoding(loaded, rows);
    // The first time it is run.
    for _ in 0..2 {
        compute(loaded, &batch)?;
    }
    let is_recorded = loaded.kv.take().is_some_and(|kv| kv.replays() > 0);
    Ok(if is_recorded { Bytes(EACH_RECORDING.0 * MOST_KEPT as u64) } else { Bytes(0) })
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
