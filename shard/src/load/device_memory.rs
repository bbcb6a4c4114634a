//! What of a GPU's memory is for KV blocks, which is found out by computing the largest step there is.

use lockstep_proto::Bytes;
use tracing::info;

use super::warm_up::{WarmedUp, warm_up};
use super::{LoadError, Loaded};
use crate::comm::Communicator;
use crate::config::Config;
use crate::decoder::{LoadError as WeightsError, ModelSpec, Split};
use crate::device::{DeviceError, DeviceKind, Target, gpus};
use crate::engine::Model;
use crate::ops::cuda::attention::SCRATCH;
use crate::ops::cuda::recording::MOST_KEPT;
use crate::plan::MemoryPlan;

/// Allowed for what the driver keeps of a recording beside the memory it computes in. What that is on a card is not known
/// yet.
const EACH_RECORDING: Bytes = Bytes(4 << 20);

/// Left to what the driver and its libraries take later, and to attention over contexts longer than a step's, which may take
/// scratch memory inside recordings and outside.
const MARGIN: Bytes = Bytes((512 << 20) + 2 * SCRATCH as u64);

/// Whether the weights, which are not loaded yet, may fit into what is free: the workspace of products is taken already.
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
    let WarmedUp { free, total, step, recording } = warm_up(loaded, (target, comm), rows)?;
    let to_come = recording.map_or(Bytes(0), |_| Bytes(EACH_RECORDING.0 * MOST_KEPT as u64));
    let ranks = u64::from(config.device.ranks_per_gpu);
    // Beside the blocks each rank has one that is nobody's.
    let kept = MARGIN + Bytes((to_come + loaded.block_bytes()).0.saturating_mul(ranks));
    let free_for_kv = free.saturating_sub(kept).0 / ranks;
    let budget = Bytes(free_for_kv).min(config.kv_cache.budget);
    let (name, architecture) = gpus::name(device)?;
    info!(
        rank = config.joining.membership.rank().0,
        gpu = name,
        architecture,
        %total,
        weights = %loaded.weight_bytes(),
        workspace = %Bytes(target.cublaslt.as_ref().map_or(0, |library| library.workspace_bytes() as u64)),
        %step,
        recordings = %(recording.unwrap_or(Bytes(0)) + to_come),
        %free,
        kv_cache = %budget,
        "memory of the GPU, after a step of {rows} tokens",
    );
    if budget < loaded.block_bytes() {
        let block = loaded.block_bytes();
        return Err(LoadError::NoRoom { free, total, rows, kept, block });
    }
    Ok(budget)
}
