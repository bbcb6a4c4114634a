//! Joins the group and loads this rank's part of the model.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lockstep_process::reports::Progress;
#[cfg(feature = "cuda")]
use lockstep_proto::{BlockId, Position, TokenId};
use lockstep_proto::{Blocks, Bytes, Tokens};
use thiserror::Error;
use tracing::info;

#[cfg(feature = "cuda")]
use crate::batch::BatchSequence;
use crate::batch::{BLOCK_SIZE, Batch};
#[cfg(feature = "cuda")]
use crate::comm::Nccl;
use crate::comm::{CommError, Communicator, SharedMemory, Solo, Tcp, Timed};
use crate::config::{CommunicatorAddress, Config};
use crate::decoder::{self, Decoder, Hidden, Logits, ModelSpec, SpecError};
#[cfg(feature = "cuda")]
use crate::device::gpus;
use crate::device::{DeviceError, DeviceKind, Target};
use crate::engine::{Engine, Group, LogitRows, Model, ModelError};
use crate::kv::{KvCacheDtype, KvPool};
#[cfg(feature = "cuda")]
use crate::sampling::{RowAsk, RowFound};

/// How long rank 0 waits for ranks on other hosts to start.
const RENDEZVOUS_LIMIT: Duration = Duration::from_secs(300);

/// Tokens of the step that is computed before a GPU's memory is dealt out: a large one, as long prompts make it.
#[cfg(feature = "cuda")]
const WARM_UP: Tokens = Tokens(4096);

/// Of a GPU's memory, left to what the driver and its libraries take later.
#[cfg(feature = "cuda")]
const DEVICE_MARGIN: Bytes = Bytes(512 << 20);

/// A model that cannot be served.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The group cannot be joined.
    #[error(transparent)]
    Group(#[from] CommError),
    /// The model's configuration is not understood.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// Its weights cannot be loaded.
    #[error(transparent)]
    Weights(#[from] decoder::LoadError),
    /// Its device cannot be had.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// It cannot compute.
    #[error("warm up: {source}")]
    WarmUp {
        /// Why.
        source: ModelError,
    },
    /// The device's memory is full before any KV block is in it.
    #[error(
        "keep a KV cache on the GPU: {free} of {total} are free after the weights and a step of {rows} tokens, one \
         request at least needs {block}; split the model over more GPUs with --num-shard"
    )]
    NoRoom {
        /// Bytes nobody has.
        free: Bytes,
        /// The device's.
        total: Bytes,
        /// Tokens of the step.
        rows: Tokens,
        /// Of one KV block.
        block: Bytes,
    },
    /// More than one rank, and no way to exchange data.
    #[error("join a group of {world_size} ranks alone: give --communicator shm:… or tcp:…")]
    Alone {
        /// The group's size.
        world_size: u32,
    },
}

/// A decoder with the KV blocks it works on.
pub struct Loaded {
    decoder: Decoder,
    kv: Option<KvPool>,
}

/// Joins the group and loads the model. Each piece of it advances `progress`.
///
/// # Errors
/// When the group cannot be joined or the model not be served.
pub(crate) fn load(config: &Config, progress: Progress) -> Result<Engine<Loaded>, LoadError> {
    let target = Target::open(config.device, config.joining.membership)?;
    check_precision(config, &target)?;
    let comm = Arc::new(Timed::new(join_devices(config, &target, join(config)?)?));
    let start = Instant::now();
    let rank = config.joining.membership.rank();
    info!(%rank, model = %config.model, precision = %config.precision, "loading");
    let spec = ModelSpec::read(&config.model)?;
    let group = Arc::clone(&comm) as Arc<dyn Communicator>;
    progress.advance();
    let of = (&spec, config.precision);
    let decoder = Decoder::load_onto((&target, group), &config.model, of, progress)?
        .with_kv_cache(config.kv_cache.held);
    info!(%rank, weights = %decoder.weight_bytes(), seconds = start.elapsed().as_secs_f32(), "loaded");
    let mut loaded = Loaded::new(decoder);
    let kv_budget = match target.kind() {
        DeviceKind::Cpu => config.kv_cache.budget,
        DeviceKind::Cuda => kv_on_device(&mut loaded, &target, config)?,
    };
    let group = Group { comm, epoch: config.joining.epoch, kv_budget };
    Ok(Engine::new(loaded, group))
}

/// What the device has not is refused before anything is loaded.
fn check_precision(config: &Config, target: &Target) -> Result<(), DeviceError> {
    config.precision.check(target.kind())?;
    match (target.kind(), config.kv_cache.held) {
        (DeviceKind::Cuda, KvCacheDtype::Int8) => {
            Err(DeviceError::Unsupported { option: "--kv-cache-dtype int8", instead: "give auto or bf16" })
        }
        (DeviceKind::Cuda, KvCacheDtype::Auto | KvCacheDtype::Bfloat16) | (DeviceKind::Cpu, _) => Ok(()),
    }
}

#[cfg(not(feature = "cuda"))]
#[expect(clippy::unnecessary_wraps, reason = "its twin of binaries that know GPUs may fail")]
fn join_devices(
    _: &Config,
    _: &Target,
    host: Arc<dyn Communicator>,
) -> Result<Arc<dyn Communicator>, LoadError> {
    Ok(host)
}

/// Connects the ranks' devices where there are several, each with a GPU of its own, and all of them have NCCL.
#[cfg(feature = "cuda")]
fn join_devices(
    config: &Config,
    target: &Target,
    host: Arc<dyn Communicator>,
) -> Result<Arc<dyn Communicator>, LoadError> {
    let Some(device) = target.gpu() else { return Ok(host) };
    let ranks = host.world_size();
    if ranks == 1 {
        return Ok(host);
    }
    if config.device.ranks_per_gpu > 1 {
        tracing::warn!("ranks exchange through main memory: they share GPUs, which NCCL does not take");
        return Ok(host);
    }
    let mut with_nccl = [if gpus::have_nccl() { 1.0 } else { 0.0 }];
    host.all_reduce(&mut with_nccl)?;
    if with_nccl[0] < ranks as f32 {
        tracing::warn!("ranks exchange through main memory: not all of them can open libnccl.so.2");
        return Ok(host);
    }
    Ok(Arc::new(Nccl::join(host, device.clone(), config.joining, target.order())?))
}

#[cfg(not(feature = "cuda"))]
fn kv_on_device(_: &mut Loaded, _: &Target, _: &Config) -> Result<Bytes, LoadError> {
    Err(LoadError::Device(DeviceError::NotBuilt))
}

/// Memory for KV blocks: this rank's share of what nobody has after a large step was computed once, less a margin;
/// what was asked for where that is less. Every rank of the group computes the step, so that all have their weights.
#[cfg(feature = "cuda")]
fn kv_on_device(loaded: &mut Loaded, target: &Target, config: &Config) -> Result<Bytes, LoadError> {
    let Some(device) = target.gpu() else { return Err(LoadError::Device(DeviceError::NotBuilt)) };
    let rows = WARM_UP.min(loaded.max_positions());
    loaded.warm_up(rows).map_err(|source| LoadError::WarmUp { source })?;
    let (free, total) = gpus::memory(device)?;
    let free_for_kv = Bytes(free).saturating_sub(DEVICE_MARGIN).0 / u64::from(config.device.ranks_per_gpu);
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
        return Err(LoadError::NoRoom { free, total, rows, block });
    }
    Ok(budget)
}

fn join(config: &Config) -> Result<Arc<dyn Communicator>, LoadError> {
    let joining = config.joining;
    let world_size = joining.membership.world_size();
    Ok(match &config.communicator {
        CommunicatorAddress::Solo if world_size == 1 => Arc::new(Solo),
        CommunicatorAddress::Solo => return Err(LoadError::Alone { world_size }),
        CommunicatorAddress::SharedMemory(path) => Arc::new(SharedMemory::open(path, joining)?),
        CommunicatorAddress::Tcp(rendezvous) => Arc::new(Tcp::join(rendezvous, joining, RENDEZVOUS_LIMIT)?),
    })
}

impl Loaded {
    /// Without KV blocks yet.
    pub fn new(decoder: Decoder) -> Self {
        Self { decoder, kv: None }
    }

    /// Computes a step of so many tokens, whose blocks are given back.
    #[cfg(feature = "cuda")]
    fn warm_up(&mut self, rows: Tokens) -> Result<(), ModelError> {
        let blocks = rows.blocks_ceil(BLOCK_SIZE);
        self.allocate_kv(blocks)?;
        let batch = Batch {
            token_ids: vec![TokenId(0); rows.len()],
            sequences: vec![BatchSequence {
                first_row: 0,
                rows: rows.len(),
                first_position: Position(0),
                blocks: (0..blocks.0).map(BlockId).collect(),
            }],
            logit_rows: (0..self.logit_rows_at_once().min(rows.len())).collect(),
        };
        let hidden = self.forward(&batch)?;
        let logits = self.logits(&hidden, 0..hidden.len())?;
        logits.on_host().map_err(boxed)?;
        self.kv = None;
        Ok(())
    }
}

impl Model for Loaded {
    type Hidden = Hidden;
    type Logits = Logits;

    fn vocabulary_size(&self) -> u32 {
        self.decoder.spec().vocabulary_size()
    }

    fn max_positions(&self) -> Tokens {
        self.decoder.spec().max_positions()
    }

    fn block_size(&self) -> Tokens {
        BLOCK_SIZE
    }

    fn block_bytes(&self) -> Bytes {
        self.decoder.block_bytes()
    }

    fn weight_bytes(&self) -> Bytes {
        self.decoder.weight_bytes()
    }

    fn arithmetic(&self) -> String {
        self.decoder.arithmetic()
    }

    fn allocate_kv(&mut self, blocks: Blocks) -> Result<(), ModelError> {
        // The old pool goes first: both together may not fit.
        self.kv = None;
        self.kv = Some(self.decoder.allocate_kv(blocks).map_err(boxed)?);
        Ok(())
    }

    fn logit_rows_at_once(&self) -> usize {
        self.decoder.logit_rows_at_once()
    }

    fn forward(&mut self, batch: &Batch) -> Result<Hidden, ModelError> {
        let kv = self.kv.as_mut().expect("the engine takes no step before it has allocated KV blocks");
        self.decoder.forward(batch, kv).map_err(boxed)
    }

    fn logits(&self, hidden: &Hidden, rows: Range<usize>) -> Result<Logits, ModelError> {
        self.decoder.logits(hidden, rows).map_err(boxed)
    }
}

impl LogitRows for Logits {
    #[cfg(feature = "cuda")]
    fn ask(&mut self, asks: &[RowAsk<'_>]) -> Result<Option<Vec<RowFound>>, ModelError> {
        Logits::ask(self, asks).map_err(boxed)
    }

    fn row(&self, index: usize) -> &[f32] {
        Logits::row(self, index)
    }
}

fn boxed(error: impl std::error::Error + Send + Sync + 'static) -> ModelError {
    ModelError::from(Box::<dyn std::error::Error + Send + Sync>::from(error))
}
