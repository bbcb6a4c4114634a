//! What of a GPU's memory is for KV blocks, which is found out by computing the largest step there is.

use lockstep_proto::{BlockId, Bytes, Position, TokenId, Tokens};
use tracing::info;

use super::{LoadError, Loaded, boxed};
use crate::batch::{BLOCK_SIZE, Batch, BatchSequence};
use crate::config::Config;
use crate::decoder::{LoadError as WeightsError, ModelSpec, Split};
use crate::device::{DeviceError, Target, gpus};
use crate::engine::{Model, ModelError};
use crate::plan::MemoryPlan;

/// Left to what the driver and its libraries take later.
const MARGIN: Bytes = Bytes(512 << 20);

/// Whether the weights, which are not loaded yet, may fit.
pub(super) fn check_weights_fit(
    config: &Config,
    target: &Target,
    spec: &ModelSpec,
) -> Result<(), LoadError> {
    let Some(device) = target.gpu() else { return Ok(()) };
    let membership = config.joining.membership;
    let split = Split { rank: membership.rank(), world_size: membership.world_size() };
    let plan = MemoryPlan::of(spec, config.precision, split).map_err(WeightsError::Split)?;
    let (free, total) = gpus::memory(device)?;
    let (weights, free, total) = (plan.weights, Bytes(free), Bytes(total));
    if weights > free { Err(LoadError::NoRoomForWeights { weights, free, total }) } else { Ok(()) }
}

/// Memory for KV blocks: this rank's share of what nobody has after a large step was computed once, less a margin;
/// what was asked for where that is less. Every rank of the group computes the step, so that all have their weights.
pub(super) fn budget_on_device(
    loaded: &mut Loaded,
    target: &Target,
    config: &Config,
) -> Result<Bytes, LoadError> {
    let Some(device) = target.gpu() else { return Err(LoadError::Device(DeviceError::NotBuilt)) };
    let rows = config.kv_cache.largest_step;
    warm_up(loaded, rows).map_err(|source| LoadError::WarmUp { source })?;
    let (free, total) = gpus::memory(device)?;
    let free_for_kv = Bytes(free).saturating_sub(MARGIN).0 / u64::from(config.device.ranks_per_gpu);
    let budget = Bytes(free_for_kv).min(config.kv_cache.budget);
    let (name, architecture) = gpus::name(device)?;
    info!(
        rank = %config.joining.membership.rank(),
        gpu = name,
        architecture,
        total = %Bytes(total),
        weights = %loaded.weight_bytes(),
        free = %Bytes(free),
        kv_cache = %budget,
        "memory of the GPU, after a step of {rows} tokens",
    );
    if budget < loaded.block_bytes() {
        let (free, total, block) = (Bytes(free), Bytes(total), loaded.block_bytes());
        return Err(LoadError::NoRoom { free, total, rows, kept: MARGIN, block });
    }
    Ok(budget)
}

/// Computes a step of so many tokens, of contexts as long as the model allows. Their blocks are given back.
fn warm_up(loaded: &mut Loaded, rows: Tokens) -> Result<(), ModelError> {
    let longest = loaded.max_positions().min(rows);
    let blocks = longest.blocks_ceil(BLOCK_SIZE);
    loaded.allocate_kv(blocks)?;
    let blocks: Vec<_> = (0..blocks.0).map(BlockId).collect();
    // All of them write to the same blocks: nobody reads what comes out.
    let sequence = |first_row: usize| BatchSequence {
        first_row,
        rows: longest.len().min(rows.len() - first_row),
        first_position: Position(0),
        blocks: blocks.clone(),
    };
    let batch = Batch {
        token_ids: vec![TokenId(0); rows.len()],
        sequences: (0..rows.len()).step_by(longest.len().max(1)).map(sequence).collect(),
        logit_rows: (0..loaded.logit_rows_at_once().min(rows.len())).collect(),
    };
    let hidden = loaded.forward(&batch)?;
    let logits = loaded.logits(&hidden, 0..hidden.len())?;
    logits.on_host().map_err(boxed)?;
    loaded.kv = None;
    Ok(())
}
